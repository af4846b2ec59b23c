//! A criterion of the caller's own: any number per sample that a U-Net gives. U-Net -> **per-layer scores**.

use std::collections::BTreeMap;
use std::ops::Range;

use prune_core::score::LossDeltas;
use prune_core::{Ablate, LayerTable, RemovalSet};

use crate::error::{Error, Result};
use crate::unet::UNet;

/// A loss per sample, from any function of a U-Net: a layer scores by how much its removal raises it.
///
/// The function gets the network with some layers removed and the range of samples that is asked for, and answers one number for each of
/// them, smaller for better. It runs over the whole network once per range.
#[derive(Debug)]
pub struct CustomLoss<'a, F> {
    unet: &'a UNet,
    table: LayerTable,
    criterion: String,
    samples: usize,
    loss: F,
    /// Losses of the whole network, by start and end of the range.
    whole: BTreeMap<(usize, usize), Vec<f64>>,
}

impl<'a, E, F> CustomLoss<'a, F>
where
    E: From<Error>,
    F: FnMut(&UNet, Range<usize>) -> std::result::Result<Vec<f64>, E>,
{
    /// The criterion `criterion` over samples `0..samples`.
    pub fn new(unet: &'a UNet, table: &LayerTable, criterion: &str, samples: usize, loss: F) -> Self {
        Self { unet, table: table.clone(), criterion: criterion.to_string(), samples, loss, whole: BTreeMap::new() }
    }

    fn losses(&mut self, removed: &RemovalSet, samples: Range<usize>) -> std::result::Result<Vec<f64>, E> {
        let losses = if removed.is_empty() {
            (self.loss)(self.unet, samples.clone())?
        } else {
            (self.loss)(&self.unet.prune(removed)?, samples.clone())?
        };
        Ok(checked(&self.criterion, losses, samples.len())?)
    }
}

/// One finite number for each sample.
fn checked(criterion: &str, losses: Vec<f64>, samples: usize) -> Result<Vec<f64>> {
    if losses.len() != samples {
        let reason = format!("{samples} samples have {} losses", losses.len());
        return Err(Error::Criterion { id: criterion.into(), reason });
    }
    match losses.iter().all(|loss| loss.is_finite()) {
        true => Ok(losses),
        false => Err(Error::NotFinite { what: format!("the loss `{criterion}`"), hint: "look at the function that computes it".into() }),
    }
}

impl<E, F> Ablate for CustomLoss<'_, F>
where
    E: std::error::Error + Send + Sync + 'static + From<Error>,
    F: FnMut(&UNet, Range<usize>) -> std::result::Result<Vec<f64>, E>,
{
    type Error = E;

    fn table(&self) -> &LayerTable {
        &self.table
    }

    fn criteria(&self) -> Vec<String> {
        vec![self.criterion.clone()]
    }

    fn num_samples(&self) -> usize {
        self.samples
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> std::result::Result<LossDeltas, E> {
        let range = (samples.start, samples.end);
        if !self.whole.contains_key(&range) {
            let whole = self.losses(&RemovalSet::empty(), samples.clone())?;
            self.whole.insert(range, whole);
        }
        let after = self.losses(removed, samples)?;
        let rises = after.iter().zip(&self.whole[&range]).map(|(after, before)| after - before).collect();
        Ok(LossDeltas::new(1, rises).map_err(Error::from)?)
    }
}
