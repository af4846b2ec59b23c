//! The InceptionV3 of FID (arXiv 1706.08500): the network of TensorFlow's 2015 release in pytorch-fid's form, which differs from
//! torchvision's in how three blocks pool. Its pooled features go to [`FrechetSample`](crate::FrechetSample).
//!
//! Shapes: `B` batch, `C` channels, `H` `W` height and width.

use std::path::Path;

use diffusion::{Filter, resize_plane};
use image::RgbImage;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor, no_grad};
use unet::weights::{Cursor, Init, Tensors, Weights};

use super::{bytes, finite_values, named, weights};
use crate::error::{Error, Result};
use crate::metric::SetDistance;

/// How images become the network's 299 x 299 inputs. Scores of the two do not compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InceptionResize {
    /// pytorch-fid: torch's bilinear interpolation without antialiasing; values from -1 to 1.
    Torch,
    /// clean-fid (arXiv 2104.11222): Pillow's bicubic filter on floating numbers; values `(x - 128) / 128`.
    Pillow,
}

const SIDE: i64 = 299;
/// Width of the pooled features.
const WIDTH: i64 = 2048;

/// A convolution without bias, batch normalization of fixed statistics, and a rectifier.
struct Conv {
    kernel: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    stride: i64,
    padding: [i64; 2],
}

impl Conv {
    fn new(at: &Cursor, io: [i64; 2], size: [i64; 2], stride: i64, padding: [i64; 2]) -> Self {
        let ([c_in, c_out], bn) = (io, at.pp("bn"));
        Self {
            kernel: at.pp("conv").tensor("weight", &[c_out, c_in, size[0], size[1]], Init::Normal(0.1)),
            weight: bn.tensor("weight", &[c_out], Init::Ones),
            bias: bn.tensor("bias", &[c_out], Init::Zeros),
            mean: bn.tensor("running_mean", &[c_out], Init::Zeros),
            var: bn.tensor("running_var", &[c_out], Init::Ones),
            stride,
            padding,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let s = self.stride;
        let x = x.conv2d(&self.kernel, None::<&Tensor>, [s, s], self.padding, [1, 1], 1);
        x.batch_norm(Some(&self.weight), Some(&self.bias), Some(&self.mean), Some(&self.var), false, 0.0, 1e-3, false).relu()
    }
}

/// How a block's last branch pools.
#[derive(Clone, Copy)]
enum Pool {
    /// Average of the neighbours that exist, then a convolution.
    Average,
    /// Their maximum, then a convolution: in `Mixed_7c` alone.
    Max,
    /// Maximum with stride 2, without a convolution.
    Reduce,
}

/// Branches of convolutions in a row, whose outputs are joined; the last convolutions of a branch may fork.
struct Mixed {
    branches: Vec<(Vec<Conv>, Vec<Conv>)>,
    pool: Pool,
    pooled: Option<Conv>,
}

impl Mixed {
    fn forward(&self, x: &Tensor) -> Tensor {
        let mut out = Vec::new();
        for (row, fork) in &self.branches {
            let y = row.iter().fold(x.shallow_clone(), |x, conv| conv.forward(&x));
            if fork.is_empty() {
                out.push(y);
            } else {
                out.extend(fork.iter().map(|conv| conv.forward(&y)));
            }
        }
        let pooled = match self.pool {
            Pool::Average => x.avg_pool2d([3, 3], [1, 1], [1, 1], false, false, None::<i64>),
            Pool::Max => x.max_pool2d([3, 3], [1, 1], [1, 1], [1, 1], false),
            Pool::Reduce => reduce(x),
        };
        out.push(self.pooled.as_ref().map_or_else(|| pooled.shallow_clone(), |conv| conv.forward(&pooled)));
        Tensor::cat(&out, 1)
    }
}

fn reduce(x: &Tensor) -> Tensor {
    x.max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false)
}

/// The network up to its average pooling.
pub struct Inception {
    stem: [Conv; 3],
    middle: [Conv; 2],
    mixed: Vec<Mixed>,
    resize: InceptionResize,
    device: Device,
    batch: usize,
}

impl Inception {
    /// Opens pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`, or a safetensors file of the same keys.
    ///
    /// # Errors
    /// [`Error::Unet`] when the file cannot be read or is of another network, [`Error::Input`] for a batch of zero.
    pub fn open(path: &Path, resize: InceptionResize, device: Device, batch: usize) -> Result<Self> {
        Self::build(weights(path, device, used)?, resize, device, batch)
    }

    /// The network of tensors in memory.
    ///
    /// # Errors
    /// As [`Inception::open`].
    pub fn from_tensors(tensors: Tensors, resize: InceptionResize, batch: usize) -> Result<Self> {
        let device = tensors.values().next().map_or(Device::Cpu, Tensor::device);
        Self::build(named(tensors, used), resize, device, batch)
    }

    fn build(weights: Weights, resize: InceptionResize, device: Device, batch: usize) -> Result<Self> {
        if batch == 0 {
            return Err(Error::input("batch", "at least 1", "0"));
        }
        let root = weights.root();
        let net = network(&root);
        weights.finish()?;
        let (stem, middle, mixed) = net;
        Ok(Self { stem, middle, mixed, resize, device, batch })
    }

    /// The network's input: `[B, 3, 299, 299]` of images of one size.
    ///
    /// # Errors
    /// [`Error::Input`] for no image, an empty one, or several sizes.
    pub fn pixels(&self, images: &[&RgbImage]) -> Result<Tensor> {
        let x = bytes(images, self.device)?;
        match self.resize {
            InceptionResize::Torch => Ok((x / 255.0).f_upsample_bilinear2d([SIDE, SIDE], false, None::<f64>, None::<f64>)? * 2.0 - 1.0),
            InceptionResize::Pillow => {
                let (h, w) = (x.size()[2] as usize, x.size()[3] as usize);
                let planes = Vec::<f32>::try_from(x.f_to_device(Device::Cpu)?.f_flatten(0, -1)?)?;
                let side = SIDE as usize;
                let resized: Vec<f32> =
                    planes.par_chunks(h * w).flat_map_iter(|p| resize_plane(p, (w, h), (side, side), Filter::Bicubic)).collect();
                let x = Tensor::f_from_slice(&resized)?.f_view([-1, 3, SIDE, SIDE])?.f_clamp(0.0, 255.0)?;
                Ok((x.f_to_device(self.device)? - 128.0) / 128.0)
            }
        }
    }

    /// Pooled features `[N, 2048]` of images of any sizes, on the CPU in f32.
    ///
    /// # Errors
    /// [`Error::Input`] for no or an empty image, [`Error::NotFinite`] when the network gives NaN.
    pub fn features(&self, images: &[RgbImage]) -> Result<Tensor> {
        if images.is_empty() {
            return Err(Error::input("images", "at least one", "none"));
        }
        let mut rows = Vec::new();
        // A batch ends where the size changes.
        for same in images.chunk_by(|a, b| a.dimensions() == b.dimensions()) {
            for chunk in same.chunks(self.batch) {
                let pixels = self.pixels(&chunk.iter().collect::<Vec<_>>())?;
                rows.push(no_grad(|| self.forward(&pixels)).f_to_device(Device::Cpu)?);
            }
        }
        let all = Tensor::f_cat(&rows, 0)?;
        finite_values("an Inception feature", &all.f_sum(Kind::Double)?)?;
        Ok(all)
    }

    /// `[B, 3, 299, 299]` -> `[B, 2048]`.
    fn forward(&self, pixels: &Tensor) -> Tensor {
        let x = reduce(&self.stem.iter().fold(pixels.shallow_clone(), |x, conv| conv.forward(&x)));
        let x = reduce(&self.middle.iter().fold(x, |x, conv| conv.forward(&x)));
        let x = self.mixed.iter().fold(x, |x, block| block.forward(&x));
        x.mean_dim([2i64, 3].as_slice(), false, Kind::Float).view([-1, WIDTH])
    }
}

// The classifier and the counters of training are not needed.
fn used(key: &str) -> Option<String> {
    (!key.starts_with("fc.") && !key.ends_with("num_batches_tracked")).then(|| key.into())
}

fn network(root: &Cursor) -> ([Conv; 3], [Conv; 2], Vec<Mixed>) {
    let top = |name: &str, io, size, stride, padding| Conv::new(&root.pp(name), io, [size; 2], stride, [padding; 2]);
    let stem = [top("Conv2d_1a_3x3", [3, 32], 3, 2, 0), top("Conv2d_2a_3x3", [32, 32], 3, 1, 0), top("Conv2d_2b_3x3", [32, 64], 3, 1, 1)];
    let middle = [top("Conv2d_3b_1x1", [64, 80], 1, 1, 0), top("Conv2d_4a_3x3", [80, 192], 3, 1, 0)];
    let mut mixed: Vec<Mixed> =
        [("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)].map(|(n, c, p)| block_a(&root.pp(n), c, p)).into();
    mixed.push(block_b(&root.pp("Mixed_6a"), 288));
    mixed.extend([("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)].map(|(n, c)| block_c(&root.pp(n), c)));
    mixed.push(block_d(&root.pp("Mixed_7a")));
    mixed.push(block_e(&root.pp("Mixed_7b"), 1280, Pool::Average));
    mixed.push(block_e(&root.pp("Mixed_7c"), 2048, Pool::Max));
    (stem, middle, mixed)
}

/// `name`, channels in and out, kernel height and width; same size.
type Step = (&'static str, i64, i64, [i64; 2]);

fn row(at: &Cursor, steps: &[Step]) -> Vec<Conv> {
    steps.iter().map(|(name, i, o, size)| Conv::new(&at.pp(name), [*i, *o], *size, 1, size.map(|s| s / 2))).collect()
}

fn halved(at: &Cursor, name: &str, io: [i64; 2]) -> Conv {
    Conv::new(&at.pp(name), io, [3, 3], 2, [0, 0])
}

fn block_a(at: &Cursor, c: i64, pooled: i64) -> Mixed {
    let branches = vec![
        (row(at, &[("branch1x1", c, 64, [1, 1])]), vec![]),
        (row(at, &[("branch5x5_1", c, 48, [1, 1]), ("branch5x5_2", 48, 64, [5, 5])]), vec![]),
        (row(at, &[("branch3x3dbl_1", c, 64, [1, 1]), ("branch3x3dbl_2", 64, 96, [3, 3]), ("branch3x3dbl_3", 96, 96, [3, 3])]), vec![]),
    ];
    Mixed { branches, pool: Pool::Average, pooled: row(at, &[("branch_pool", c, pooled, [1, 1])]).pop() }
}

fn block_b(at: &Cursor, c: i64) -> Mixed {
    let mut double = row(at, &[("branch3x3dbl_1", c, 64, [1, 1]), ("branch3x3dbl_2", 64, 96, [3, 3])]);
    double.push(halved(at, "branch3x3dbl_3", [96, 96]));
    Mixed { branches: vec![(vec![halved(at, "branch3x3", [c, 384])], vec![]), (double, vec![])], pool: Pool::Reduce, pooled: None }
}

fn block_c(at: &Cursor, c7: i64) -> Mixed {
    const C: i64 = 768;
    let branches = vec![
        (row(at, &[("branch1x1", C, 192, [1, 1])]), vec![]),
        (row(at, &[("branch7x7_1", C, c7, [1, 1]), ("branch7x7_2", c7, c7, [1, 7]), ("branch7x7_3", c7, 192, [7, 1])]), vec![]),
        (
            row(
                at,
                &[
                    ("branch7x7dbl_1", C, c7, [1, 1]),
                    ("branch7x7dbl_2", c7, c7, [7, 1]),
                    ("branch7x7dbl_3", c7, c7, [1, 7]),
                    ("branch7x7dbl_4", c7, c7, [7, 1]),
                    ("branch7x7dbl_5", c7, 192, [1, 7]),
                ],
            ),
            vec![],
        ),
    ];
    Mixed { branches, pool: Pool::Average, pooled: row(at, &[("branch_pool", C, 192, [1, 1])]).pop() }
}

fn block_d(at: &Cursor) -> Mixed {
    const C: i64 = 768;
    let mut three = row(at, &[("branch3x3_1", C, 192, [1, 1])]);
    three.push(halved(at, "branch3x3_2", [192, 320]));
    let mut seven = row(at, &[("branch7x7x3_1", C, 192, [1, 1]), ("branch7x7x3_2", 192, 192, [1, 7]), ("branch7x7x3_3", 192, 192, [7, 1])]);
    seven.push(halved(at, "branch7x7x3_4", [192, 192]));
    Mixed { branches: vec![(three, vec![]), (seven, vec![])], pool: Pool::Reduce, pooled: None }
}

fn block_e(at: &Cursor, c: i64, pool: Pool) -> Mixed {
    let branches = vec![
        (row(at, &[("branch1x1", c, 320, [1, 1])]), vec![]),
        (row(at, &[("branch3x3_1", c, 384, [1, 1])]), row(at, &[("branch3x3_2a", 384, 384, [1, 3]), ("branch3x3_2b", 384, 384, [3, 1])])),
        (
            row(at, &[("branch3x3dbl_1", c, 448, [1, 1]), ("branch3x3dbl_2", 448, 384, [3, 3])]),
            row(at, &[("branch3x3dbl_3a", 384, 384, [1, 3]), ("branch3x3dbl_3b", 384, 384, [3, 1])]),
        ),
    ];
    Mixed { branches, pool, pooled: row(at, &[("branch_pool", c, 192, [1, 1])]).pop() }
}
impl SetDistance for Inception {
    fn features(&self, images: &[RgbImage]) -> Result<Tensor> {
        Inception::features(self, images)
    }
}
