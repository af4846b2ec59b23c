//! LPIPS (arXiv 1801.03924), version 0.1: how different two images look, by weighted differences of an image classifier's features.

use std::path::Path;

use image::RgbImage;
use tch::{Device, Kind, Tensor, no_grad};
use unet::nn::Conv2d;
use unet::weights::{Cursor, Init, Tensors, Weights};

use super::{bytes, finite_values, named, weights};
use crate::error::{Error, Result};
use crate::metric::PairScorer;

/// The classifier whose features are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LpipsTrunk {
    /// AlexNet: the authors' choice for comparing images.
    Alex,
    /// VGG-16: the authors' choice for losses, and what most papers on compression state.
    Vgg,
}

/// A convolution of the trunk: its place in `features`, channels, kernel, stride, padding; a maximum pooling comes before it; its
/// output is compared.
struct Stage {
    place: usize,
    io: [i64; 2],
    geometry: [i64; 3],
    pool: bool,
    compared: bool,
}

impl LpipsTrunk {
    /// The trunk that a file of torchvision's weights is of.
    fn of(shape: &[i64]) -> Option<Self> {
        match shape {
            [64, 3, 11, 11] => Some(Self::Alex),
            [64, 3, 3, 3] => Some(Self::Vgg),
            _ => None,
        }
    }

    fn stages(self) -> Vec<Stage> {
        let stage = |(place, i, o, geometry, pool, compared)| Stage { place, io: [i, o], geometry, pool, compared };
        let same = [3, 1, 1];
        match self {
            Self::Alex => [
                (0, 3, 64, [11, 4, 2], false, true),
                (3, 64, 192, [5, 1, 2], true, true),
                (6, 192, 384, same, true, true),
                (8, 384, 256, same, false, true),
                (10, 256, 256, same, false, true),
            ]
            .map(stage)
            .into(),
            Self::Vgg => [
                (0, 3, 64, same, false, false),
                (2, 64, 64, same, false, true),
                (5, 64, 128, same, true, false),
                (7, 128, 128, same, false, true),
                (10, 128, 256, same, true, false),
                (12, 256, 256, same, false, false),
                (14, 256, 256, same, false, true),
                (17, 256, 512, same, true, false),
                (19, 512, 512, same, false, false),
                (21, 512, 512, same, false, true),
                (24, 512, 512, same, true, false),
                (26, 512, 512, same, false, false),
                (28, 512, 512, same, false, true),
            ]
            .map(stage)
            .into(),
        }
    }

    /// Side and stride of its maximum pooling.
    fn pooling(self) -> [i64; 2] {
        match self {
            Self::Alex => [3, 2],
            Self::Vgg => [2, 2],
        }
    }
}

/// Mean and deviation of the classifiers' inputs, for values from -1 to 1.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];

/// A trunk with the learned weight of each feature.
pub struct Lpips {
    trunk: LpipsTrunk,
    stages: Vec<(Stage, Conv2d)>,
    /// `[1, C, 1, 1]` for each compared output.
    weights: Vec<Tensor>,
    device: Device,
    batch: usize,
}

impl Lpips {
    /// Opens torchvision's `alexnet-owt-7be5be79.pth` or `vgg16-397923af.pth`, and the `alex.pth` or `vgg.pth` of LPIPS that
    /// belongs to it (version 0.1).
    ///
    /// # Errors
    /// [`Error::Unet`] when a file cannot be read or does not fit the other, [`Error::Format`] for another classifier.
    pub fn open(trunk: &Path, linear: &Path, device: Device, batch: usize) -> Result<Self> {
        let file = unet::weights::TensorFile::open(trunk)?;
        let which = file.shape("features.0.weight").and_then(LpipsTrunk::of).ok_or_else(|| Error::Format {
            path: trunk.into(),
            problem: "neither torchvision's AlexNet nor its VGG-16".into(),
            hint: "name alexnet-owt-7be5be79.pth or vgg16-397923af.pth".into(),
        })?;
        Self::build(which, weights(trunk, device, features)?, weights(linear, device, |key| Some(key.into()))?, device, batch)
    }

    /// The same from tensors in memory: those of the trunk and those of LPIPS, by the keys of the two files.
    ///
    /// # Errors
    /// As [`Lpips::open`].
    pub fn from_tensors(trunk: Tensors, linear: Tensors, batch: usize) -> Result<Self> {
        let first = trunk.get("features.0.weight").ok_or_else(|| Error::input("trunk", "`features.0.weight`", "none"))?;
        let device = first.device();
        let which =
            LpipsTrunk::of(&first.size()).ok_or_else(|| Error::input("trunk", "AlexNet or VGG-16", format!("{:?}", first.size())))?;
        Self::build(which, named(trunk, features), named(linear, |key| Some(key.into())), device, batch)
    }

    fn build(trunk: LpipsTrunk, of_trunk: Weights, of_linear: Weights, device: Device, batch: usize) -> Result<Self> {
        if batch == 0 {
            return Err(Error::input("batch", "at least 1", "0"));
        }
        let (root, linear): (Cursor, Cursor) = (of_trunk.root().pp("features"), of_linear.root());
        let conv = |s: &Stage| Conv2d::new(&root.pp(s.place), s.io[0], s.io[1], s.geometry[0], s.geometry[1], s.geometry[2]);
        let stages: Vec<(Stage, Conv2d)> = trunk
            .stages()
            .into_iter()
            .map(|s| {
                let c = conv(&s);
                (s, c)
            })
            .collect();
        let compared = stages.iter().filter(|(s, _)| s.compared).enumerate();
        // Version 0.1 has a dropout before each weight, so the weight is number 1 of its `model`.
        let weights =
            compared.map(|(n, (s, _))| linear.pp(format!("lin{n}.model.1")).tensor("weight", &[1, s.io[1], 1, 1], Init::Ones)).collect();
        of_trunk.finish()?;
        of_linear.finish()?;
        Ok(Self { trunk, stages, weights, device, batch })
    }

    /// Which classifier it compares by.
    pub fn trunk(&self) -> LpipsTrunk {
        self.trunk
    }

    /// The distance of each pair of images; 0 for equal ones.
    ///
    /// # Errors
    /// [`Error::Input`] for other numbers or sizes, [`Error::NotFinite`] when the network gives NaN.
    pub fn distances(&self, a: &[RgbImage], b: &[RgbImage]) -> Result<Vec<f64>> {
        if a.is_empty() || a.len() != b.len() {
            return Err(Error::input("images", format!("{} in both sets, at least one", a.len()), b.len().to_string()));
        }
        if let Some((x, y)) = a.iter().zip(b).find(|(x, y)| x.dimensions() != y.dimensions()) {
            return Err(Error::input("images", format!("two of {:?} pixels", x.dimensions()), format!("{:?}", y.dimensions())));
        }
        let mut out = Vec::with_capacity(a.len());
        let mut at = 0;
        for same in a.chunk_by(|a, b| a.dimensions() == b.dimensions()) {
            for chunk in same.chunks(self.batch) {
                let others = &b[at..at + chunk.len()];
                let pixels = |p: &[RgbImage]| Ok::<_, Error>(bytes(&p.iter().collect::<Vec<_>>(), self.device)? / 127.5 - 1.0);
                let (x, y) = (pixels(chunk)?, pixels(others)?);
                out.extend(finite_values("an LPIPS distance", &no_grad(|| self.forward(&x, &y)))?);
                at += chunk.len();
            }
        }
        Ok(out)
    }

    /// Values from -1 to 1, `[B, 3, H, W]` twice -> `[B]`.
    fn forward(&self, a: &Tensor, b: &Tensor) -> Tensor {
        let rgb = |v: [f32; 3]| Tensor::from_slice(&v).to_device(self.device).view([1, 3, 1, 1]);
        let input = |x: &Tensor| (x - rgb(SHIFT)) / rgb(SCALE);
        let (mut x, mut y) = (input(a), input(b));
        let mut sum = Tensor::zeros([a.size()[0]], (Kind::Float, self.device));
        let mut weights = self.weights.iter();
        let [side, stride] = self.trunk.pooling();
        for (stage, conv) in &self.stages {
            let step = |x: &Tensor| {
                let x = if stage.pool { x.max_pool2d([side, side], [stride, stride], [0, 0], [1, 1], false) } else { x.shallow_clone() };
                conv.forward(&x).relu()
            };
            (x, y) = (step(&x), step(&y));
            if let Some(weight) = stage.compared.then(|| weights.next()).flatten() {
                let gap = (unit(&x) - unit(&y)).square() * weight;
                // [B, C, H, W] -> [B]
                sum += gap.sum_dim_intlist([1i64].as_slice(), false, Kind::Float).mean_dim([1i64, 2].as_slice(), false, Kind::Float);
            }
        }
        sum
    }
}

/// Channels of unit length at each place.
fn unit(x: &Tensor) -> Tensor {
    x / (x.square().sum_dim_intlist([1i64].as_slice(), true, Kind::Float).sqrt() + 1e-10)
}

// The classifier's last layers are not needed.
fn features(key: &str) -> Option<String> {
    key.starts_with("features.").then(|| key.into())
}
impl PairScorer for Lpips {
    fn score(&self, images: &[RgbImage], teacher: &[RgbImage]) -> Result<Vec<f64>> {
        self.distances(images, teacher)
    }
}
