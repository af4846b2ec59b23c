//! Tables and models made of plain numbers, shared by the tests.
#![allow(dead_code)]

pub mod network;
pub mod sdxl;

use std::convert::Infallible;
use std::ops::Range;

use proptest::test_runner::Config as ProptestConfig;
use prune_core::score::LossDeltas;
use prune_core::table::{Cost, Layer, SharedCost, TableParts};
use prune_core::{Ablate, LayerId, LayerTable, RemovalSet, Scores};

/// This many random cases; a failing one is printed, not kept in a file.
pub fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

/// Id of the layer at a position; two digits, so that order of ids is order of positions.
pub fn id(position: usize) -> LayerId {
    LayerId::new(format!("layers.{position:02}"))
}

pub fn layer(position: usize, params: u64) -> Layer {
    Layer { id: id(position), kind: "block".to_owned(), stage: format!("stage.{}", position / 4), params, macs: params * 3 }
}

/// A table of layers with these costs; shared costs are given by members and cost.
pub fn parts(costs: &[u64], shared_costs: &[(Vec<usize>, u64)]) -> TableParts {
    let layers: Vec<Layer> = costs.iter().enumerate().map(|(i, cost)| layer(i, *cost)).collect();
    let shared = |(i, (members, params)): (usize, &(Vec<usize>, u64))| SharedCost {
        id: LayerId::new(format!("shared_costs.{i}")),
        members: members.iter().map(|m| id(*m)).collect(),
        params: *params,
        macs: params * 3,
    };
    let removable: u64 = costs.iter().sum::<u64>() + shared_costs.iter().map(|(_, cost)| cost).sum::<u64>();
    TableParts {
        model: "toy".to_owned(),
        fingerprint: "f00d".to_owned(),
        total_params: removable + 10,
        total_macs: removable * 3 + 10,
        layers,
        shared_costs: shared_costs.iter().enumerate().map(shared).collect(),
    }
}

pub fn table(costs: &[u64], shared_costs: &[(Vec<usize>, u64)]) -> LayerTable {
    LayerTable::new(parts(costs, shared_costs)).unwrap()
}

pub fn scores(table: &LayerTable, values: &[f64]) -> Scores {
    let values = values.iter().enumerate().map(|(i, value)| (id(i), *value));
    Scores::from_values(table, "output_loss", values).unwrap()
}

pub fn set(positions: impl IntoIterator<Item = usize>) -> RemovalSet {
    positions.into_iter().map(id).collect()
}

/// A model whose losses are known in closed form: sample s loses `(s + 1) * score` per removed layer under `additive`,
/// and the square of that sum under `squared`.
pub struct ClosedForm {
    pub table: LayerTable,
    pub scores: Vec<f64>,
    pub criteria: Vec<String>,
    pub samples: usize,
    pub calls: Vec<(RemovalSet, Range<usize>)>,
    /// Answer NaN for this sample.
    pub broken_sample: Option<usize>,
}

impl ClosedForm {
    pub fn new(scores: &[f64], samples: usize) -> Self {
        let costs: Vec<u64> = (0..scores.len()).map(|i| 10 + i as u64).collect();
        Self {
            table: table(&costs, &[]),
            scores: scores.to_vec(),
            criteria: vec!["additive".to_owned(), "squared".to_owned()],
            samples,
            calls: Vec::new(),
            broken_sample: None,
        }
    }

    pub fn loss(&self, removed: &RemovalSet, sample: usize) -> [f64; 2] {
        let sum: f64 = removed.iter().map(|id| self.scores[self.table.position(id.as_str()).unwrap()]).sum();
        let loss = sum * (sample + 1) as f64;
        [loss, loss * loss]
    }
}

impl Ablate for ClosedForm {
    type Error = Infallible;

    fn table(&self) -> &LayerTable {
        &self.table
    }

    fn criteria(&self) -> Vec<String> {
        self.criteria.clone()
    }

    fn num_samples(&self) -> usize {
        self.samples
    }

    fn sample_bin(&self, index: usize) -> u32 {
        (index % 2) as u32
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<LossDeltas, Infallible> {
        self.calls.push((removed.clone(), samples.clone()));
        let mut values = Vec::new();
        for sample in samples {
            let mut loss = self.loss(removed, sample);
            if self.broken_sample == Some(sample) {
                loss[1] = f64::NAN;
            }
            values.extend(loss);
        }
        Ok(LossDeltas::new(2, values).expect("two criteria"))
    }
}

/// Cost and score of a set given as bits, by the definition.
pub fn weigh(table: &LayerTable, values: &[f64], bits: u32, cost: Cost) -> (u64, f64) {
    let chosen = |i: &usize| bits >> i & 1 == 1;
    let mut weight: u64 = (0..table.len()).filter(chosen).map(|i| table.layers()[i].cost(cost)).sum();
    for shared in table.shared_costs() {
        if shared.members.iter().all(|member| chosen(&table.position(member.as_str()).unwrap())) {
            weight += shared.cost(cost);
        }
    }
    (weight, (0..table.len()).filter(chosen).map(|i| values[i]).sum())
}
