//! The first-order estimate of the change of the task loss when a layer's parameters become zero, `|sum g.w|` (arXiv 1906.10771,
//! equation 8, with one gate per layer), for each calibration sample: a rival of the output loss. U-Net -> **per-layer scores**.

use std::collections::BTreeMap;

use prune_core::score::{LayerScore, ScoresParts};
use prune_core::{LayerTable, Scores};
use tch::{Kind, Tensor};

use super::calibration::Calibration;
use super::magnitude::keys;
use super::registry::TAYLOR;
use crate::Conditioning;
use crate::error::{Error, Result};
use crate::unet::UNet;
use crate::weights::{Tensors, Weights};

/// `|sum g.w|` of each layer for each calibration sample, with `g` the gradient of that sample's task loss
/// `mean (eps - target)^2`. `progress` is told samples done and in all, and may stop the run.
///
/// # Errors
/// [`Error::Layer`] for a table of another architecture, [`Error::Input`] for samples that the network does not take,
/// [`Error::Criterion`] for samples without targets, [`Error::NotFinite`] when a gradient is not finite; what `progress` returns.
pub fn taylor<E: From<Error>>(
    unet: &UNet,
    table: &LayerTable,
    data: &Calibration,
    progress: &mut dyn FnMut(usize, usize) -> std::result::Result<(), E>,
) -> std::result::Result<Scores, E> {
    if data.target().is_none() {
        let reason = "it needs targets, and this calibration set was made from prompts alone".into();
        return Err(Error::Criterion { id: TAYLOR.into(), reason }.into());
    }
    let keys = keys(unet, table)?;
    // Leaves of their own, on the same storage: the caller's tensors keep their gradients and flags.
    let leaves: Tensors = unet.parameters().iter().map(|(k, t)| (k.clone(), t.detach())).collect();
    for key in keys.iter().flatten() {
        let _ = leaves[*key].f_set_requires_grad(true).map_err(Error::from)?;
    }
    let copies = leaves.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect();
    let net = UNet::from_weights(unet.config(), Weights::from_tensors(copies), unet.removed())?;
    let wanted: Vec<&Tensor> = keys.iter().flatten().map(|key| &leaves[*key]).collect();

    // `sum g.w` of every wanted tensor. f16 loses what is below 6e-8, and gradients of a mean are small: the loss
    // is made larger by a power of two, and the sums smaller again once they are wider.
    let products = |(x_t, timesteps, cond, target): &(Tensor, Tensor, Conditioning, Tensor), larger: f64| -> Result<Vec<f64>> {
        let prediction = net.forward(x_t, timesteps, cond)?;
        if prediction.size() != target.size() {
            return Err(Error::Input {
                name: "target".into(),
                expected: format!("{:?}", prediction.size()),
                got: format!("{:?}", target.size()),
            });
        }
        let loss = (prediction.to_kind(Kind::Float) - target.to_kind(Kind::Float)).square().mean(Kind::Float) * larger;
        let gradients = Tensor::f_run_backward(&[&loss], &wanted, false, false)?;
        let product = |(g, w): (&Tensor, &&Tensor)| (g.to_kind(Kind::Float) * w.detach().to_kind(Kind::Float)).sum(Kind::Double);
        let products: Vec<Tensor> = gradients.iter().zip(&wanted).map(product).collect();
        Ok(Vec::<f64>::try_from((Tensor::f_stack(&products, 0)? / larger).to_device(tch::Device::Cpu))?)
    };
    // What overflowed once is not tried again.
    let mut largest = f64::INFINITY;

    let n = data.num_samples();
    let mut samples = vec![Vec::with_capacity(n); table.len()];
    for i in 0..n {
        let (x_t, timesteps, cond) = data.inputs(&net, i..i + 1);
        let point = (x_t, timesteps, cond, data.targets(&net, i..i + 1)?);
        let elements = if net.kind() == Kind::Half { point.3.numel().next_power_of_two() as f64 } else { 1.0 };
        let mut larger = elements.min(largest);
        let mut products_of_point = products(&point, larger)?;
        while larger > 1.0 && products_of_point.iter().any(|p| !p.is_finite()) {
            larger = (larger / 16.0).max(1.0);
            largest = larger;
            products_of_point = products(&point, larger)?;
        }
        let mut rest = products_of_point.as_slice();
        for (layer, keys) in samples.iter_mut().zip(&keys) {
            let (own, others) = rest.split_at(keys.len());
            layer.push(own.iter().sum::<f64>().abs());
            rest = others;
        }
        progress(i + 1, n)?;
    }
    let mut layers = BTreeMap::new();
    for (layer, samples) in table.layers().iter().zip(samples) {
        let score = LayerScore::from_samples(samples).ok_or_else(|| Error::NotFinite {
            what: format!("the gradient of `{}`", layer.id),
            hint: "check the calibration samples, and use f32 or bf16 where f16 overflows".into(),
        })?;
        layers.insert(layer.id.clone(), score);
    }
    let bins = data.bins().to_vec();
    let (table, settings) = (table.clone(), BTreeMap::new());
    Ok(Scores::new(ScoresParts { table, criterion: TAYLOR.into(), seed: None, settings, first_sample: 0, bins, layers })
        .map_err(Error::from)?)
}
