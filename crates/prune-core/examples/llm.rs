//! Prunes a language model from the scores of a Python program: reads its JSON, chooses under a latency target, writes
//! `plan.json` for whoever cuts the model.
//!
//! Run it with `cargo run -p prune-core --example llm [scores.json [plan.json]]`. The Python side is some ten lines:
//!
//! ```python
//! rows = []
//! for name, layer in removable.items():          # "model.layers.0.self_attn", "model.layers.0.mlp", ...
//!     with skipped(layer):                        # the block's output becomes its input
//!         loss = mean_loss(model, calibration) - base
//!     rows.append({"id": name, "params": sum(p.numel() for p in layer.parameters()),
//!                  "loss": loss, "latency_us": round(latency(layer))})
//! json.dump({"model": model.name_or_path, "total_params": model.num_parameters(), "layers": rows}, open("scores.json", "w"))
//! ```

use std::error::Error;

use prune_core::search::Resource;
use prune_core::table::Layer;
use prune_core::{Constraints, LayerId, LayerTable, Limit, Problem, Scores};
use serde::Deserialize;

#[derive(Deserialize)]
struct Measured {
    model: String,
    total_params: u64,
    layers: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    id: LayerId,
    params: u64,
    loss: f64,
    latency_us: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut paths = std::env::args().skip(1);
    let measured: Measured = match paths.next() {
        Some(path) => serde_json::from_slice(&std::fs::read(path)?)?,
        None => made_up(),
    };
    let mut table = LayerTable::builder().model(measured.model).total_params(measured.total_params);
    let mut latency = Resource::new("latency_us");
    for row in &measured.layers {
        table = table.push(Layer::new(row.id.clone(), row.params).kind(kind(&row.id)));
        latency = latency.layer(row.id.clone(), row.latency_us);
    }
    let scores = Scores::from_values(&table.build()?, "loss", measured.layers.iter().map(|row| (row.id.clone(), row.loss)))?;

    // The first and last blocks stay; a quarter of the time and a fifth of the parameters go.
    let (first, last) = (&measured.layers[0].id, &measured.layers[measured.layers.len() - 1].id);
    let constraints = Constraints::none().keep([first.clone(), last.clone()]);
    let time: u64 = measured.layers.iter().map(|row| row.latency_us).sum();
    let limits = [Limit::at_least("latency_us", time / 4), Limit::at_least("params", measured.total_params / 5)];
    let solution = Problem::new(&scores, &constraints)?.with_resource(&latency)?.solve(&limits, 100_000)?;

    let plan = solution.plan;
    println!("{} of {} layers go: {:.1} % of the parameters", plan.removed.len(), scores.table().len(), 100.0 * plan.params_ratio);
    println!("predicted loss {:.4}, proven least: {}", plan.predicted.unwrap_or_default(), plan.optimal);
    plan.removed.iter().for_each(|id| println!("  {id}"));
    if let Some(path) = paths.next() {
        plan.write(path.as_ref())?;
    }
    Ok(())
}

fn kind(id: &LayerId) -> &str {
    id.as_str().rsplit('.').next().unwrap_or_default()
}

/// A model of 32 blocks, as if measured: the middle matters least, attention less than MLP.
fn made_up() -> Measured {
    let rows = (0..32).flat_map(|block| {
        let depth = (block as f64 - 19.0) / 19.0;
        [("self_attn", 67_108_864, 0.6, 310), ("mlp", 135_266_304, 1.0, 450)].map(|(name, params, weight, latency_us)| Row {
            id: format!("model.layers.{block}.{name}").into(),
            params,
            loss: weight * (0.01 + 0.3 * depth.powi(4)),
            latency_us,
        })
    });
    Measured { model: "made up".to_owned(), total_params: 6_738_415_616, layers: rows.collect() }
}
