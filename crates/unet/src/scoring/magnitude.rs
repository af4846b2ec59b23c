//! Scores that need no data, as rivals of the output loss: the size of a layer's weights, and chance. U-Net -> **per-layer scores**.
//!
//! A layer's parameters are those that go with it, its own normalization among them.

use std::collections::BTreeMap;

use prune_core::{LayerId, LayerTable, Scores};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::registry::{MAGNITUDE, RANDOM};
use crate::error::Result;
use crate::unet::UNet;

/// Keys of the parameters of each layer of the table, in its order.
pub(super) fn keys<'a>(unet: &'a UNet, table: &LayerTable) -> Result<Vec<Vec<&'a str>>> {
    let of = |layer: &prune_core::table::Layer| {
        let prefixes = unet.layout().owned_prefixes(&layer.id)?;
        // Keys are ordered, so those below a prefix are one run.
        let below = |p: &String| {
            unet.parameters()
                .range(p.clone()..)
                .take_while({
                    let p = p.clone();
                    move |(k, _)| k.starts_with(&p)
                })
                .map(|(k, _)| k.as_str())
                .collect::<Vec<_>>()
        };
        Ok(prefixes.iter().flat_map(below).collect())
    };
    table.layers().iter().map(of).collect()
}

/// Sum of squared parameters of each layer.
///
/// # Errors
/// [`crate::Error::Layer`] for a table of another architecture, [`crate::Error::Core`] when a parameter is not finite.
pub fn magnitude(unet: &UNet, table: &LayerTable) -> Result<Scores> {
    magnitude_as(unet, table, MAGNITUDE, |sum, _| sum)
}

/// Mean squared parameter of each layer.
///
/// # Errors
/// As [`magnitude`].
pub fn magnitude_mean(unet: &UNet, table: &LayerTable) -> Result<Scores> {
    magnitude_as(unet, table, "magnitude_mean", |sum, count| sum / count.max(1) as f64)
}

fn magnitude_as(unet: &UNet, table: &LayerTable, name: &str, score: impl Fn(f64, usize) -> f64) -> Result<Scores> {
    let value = |keys: &Vec<&str>| {
        let tensors = keys.iter().map(|k| &unet.parameters()[*k]);
        let squares = tensors.clone().map(|t| t.detach().to_kind(Kind::Float).square().sum(Kind::Double).double_value(&[]));
        score(squares.sum(), tensors.map(Tensor::numel).sum())
    };
    let values = keys(unet, table)?.iter().map(value).collect::<Vec<_>>();
    let ids = table.layers().iter().map(|l| l.id.clone());
    Ok(Scores::from_values(table, name, ids.zip(values))?)
}

/// One number in 0..1 for each layer, from the seed alone: what a criterion without information gives.
///
/// # Errors
/// None for a valid table.
pub fn random(table: &LayerTable, seed: u64) -> Result<Scores> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<(LayerId, f64)> = table.layers().iter().map(|l| (l.id.clone(), rng.random::<f64>())).collect();
    Ok(Scores::from_values(table, RANDOM, values)?.with_settings(Some(seed), BTreeMap::new()))
}
