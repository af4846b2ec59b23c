//! How much time each layer takes on a device. U-Net -> **costs of layers** -> budgets in time.
//!
//! A layer's cost is what the forward pass gains without it, not what the layer takes alone: launches, copies and caches are in.

use std::collections::BTreeMap;

use unet::{Compute, ForwardOptions, LayerId, LayerTable, RemovalSet, ResourceFile, TapSet, UNet};

use super::inputs::UNetInputs;
use super::latency::{Subject, measure_latency, wait_for};
use crate::error::Error;
use crate::hardware::device_name;
use crate::timings::LatencyRow;

/// Name of the resource in limits.
const NAME: &str = "latency_ns";

/// How layers are timed.
#[derive(Debug, Clone, Copy)]
pub struct ProfileOptions {
    /// Samples per call.
    pub batch: i64,
    /// Height and width of the latents.
    pub latent: (i64, i64),
    /// Text tokens.
    pub tokens: i64,
    /// Timed calls without each layer; the calls of all layers are interleaved.
    pub rounds: usize,
    /// Untimed calls before.
    pub warmup: usize,
}

/// The cost in nanoseconds of every layer of `table`, which is `unet`'s, and the latency of the whole U-Net.
///
/// `on_call` is called after each call, with the number of calls done and of all.
///
/// # Errors
/// That of `on_call`; those of running the U-Net.
pub fn profile_layers<E: From<Error>>(
    unet: &UNet,
    table: &LayerTable,
    options: &ProfileOptions,
    on_call: impl FnMut(usize, usize) -> std::result::Result<(), E>,
) -> std::result::Result<(ResourceFile, LatencyRow), E> {
    let ProfileOptions { batch, latent: (h, w), tokens, rounds, warmup } = *options;
    // First the whole network, then it without each layer, then without each group whose shared cost goes along.
    let mut sets = vec![RemovalSet::empty()];
    sets.extend(table.layers().iter().map(|layer| RemovalSet::single(layer.id.clone())));
    sets.extend(table.shared_costs().iter().map(|shared| shared.members.iter().cloned().collect::<RemovalSet>()));
    let (inputs, taps, device) = (UNetInputs::random(unet.config(), batch, (h, w), tokens, unet.device()), TapSet::none(), unet.device());
    let mut subjects: Vec<Subject<'_>> = Vec::new();
    for ablated in &sets {
        let (inputs, options) = (&inputs, ForwardOptions { ablated, taps: &taps });
        let call = move || {
            tch::no_grad(|| unet.forward_with(&inputs.x, &inputs.t, &inputs.cond, &options).map(drop))?;
            wait_for(device);
            Ok(())
        };
        let name = ablated.iter().next().map_or("whole".to_string(), ToString::to_string);
        subjects.push(Subject { name, call: Box::new(call) });
    }
    let mut rows = measure_latency(&mut subjects, batch as u64, warmup, rounds, on_call)?;
    drop(subjects);
    let (total, layers, shared_costs) = costs(table, &rows);
    let file = ResourceFile {
        name: NAME.into(),
        fingerprint: table.fingerprint().to_string(),
        method: format!(
            "median of {rounds} interleaved calls with and without each layer, batch {batch}, latents {h} x {w}, {}, {}",
            device_name(device),
            Compute::of(unet.kind()).name()
        ),
        total,
        layers,
        shared_costs,
    };
    Ok((file, rows.swap_remove(0)))
}

/// Nanoseconds of the whole U-Net, of each layer, and of what goes beside its layers with each group.
fn costs(table: &LayerTable, rows: &[LatencyRow]) -> (u64, BTreeMap<LayerId, u64>, BTreeMap<LayerId, u64>) {
    let n = table.layers().len();
    let saved = |row: &LatencyRow| nanoseconds(rows[0].median_s - row.median_s);
    let layers: BTreeMap<LayerId, u64> = table.layers().iter().map(|l| l.id.clone()).zip(rows[1..=n].iter().map(saved)).collect();
    let mut shared_costs = BTreeMap::new();
    for (shared, row) in table.shared_costs().iter().zip(&rows[n + 1..]) {
        let inside: u64 = shared.members.iter().map(|id| layers[id]).sum();
        shared_costs.insert(shared.id.clone(), saved(row).saturating_sub(inside));
    }
    (nanoseconds(rows[0].median_s), layers, shared_costs)
}

/// Noise can make a pass without a layer seem slower; such a layer saves nothing.
fn nanoseconds(seconds: f64) -> u64 {
    (1e9 * seconds).max(0.0).round() as u64
}
