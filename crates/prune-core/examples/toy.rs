//! Prunes a toy residual network end to end with this crate alone: score, solve, measure, audit, refine.
//!
//! Run it with `cargo run -p prune-core --example toy`. The network is plain vectors of `f64`; what makes it a model to
//! this crate is the `impl Ablate` below. Files go to a folder given as the only argument, or nowhere.

use std::convert::Infallible;
use std::error::Error;
use std::ops::Range;
use std::path::Path;

use prune_core::audit::{AuditFile, DrawnSet, MeasureOptions, SetSize, draw_removal_sets, measure_sets};
use prune_core::refine::{RefineMethod, RefineOptions, Refined};
use prune_core::score::LossDeltas;
use prune_core::search::{greedy, random};
use prune_core::table::{Layer, SharedCost, TableParts};
use prune_core::{Ablate, Budget, Constraints, LayerId, LayerTable, Limit, Plan, Problem, RemovalSet, Scorer, Scores, audit, solve};

/// Width of the residual stream; number of calibration samples, of which the second half is held out.
const WIDTH: usize = 24;
const SAMPLES: usize = 64;
const BLOCKS: usize = 8;

/// One residual branch, `x + up(tanh(down(x)))`; matrices are row-major.
struct Branch {
    id: LayerId,
    hidden: usize,
    /// `[hidden, WIDTH]`
    down: Vec<f64>,
    /// `[WIDTH, hidden]`
    up: Vec<f64>,
}

/// Two branches inside a projection that is the identity once both are gone: `x + out * (inner(x) - x)`.
struct Block {
    branches: [Branch; 2],
    /// `[WIDTH]`
    out: Vec<f64>,
}

struct ToyNetwork {
    table: LayerTable,
    blocks: Vec<Block>,
    /// `[SAMPLES, WIDTH]`
    inputs: Vec<Vec<f64>>,
    /// What the whole network answers, `[SAMPLES, WIDTH]`.
    targets: Vec<Vec<f64>>,
}

/// Uniform numbers in -1..1 from a linear congruential sequence.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn vector(&mut self, length: usize, scale: f64) -> Vec<f64> {
        (0..length).map(|_| scale * self.next()).collect()
    }
}

fn matmul(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

impl ToyNetwork {
    fn new(seed: u64) -> Result<Self, prune_core::Error> {
        let mut noise = Noise(seed);
        let mut blocks = Vec::new();
        let mut layers = Vec::new();
        let mut shared_costs = Vec::new();
        for block in 0..BLOCKS {
            // Branches differ in size and strength, as those of a trained network do.
            let branches = [("mix", 8), ("mlp", 32)].map(|(name, hidden)| {
                let strength = 0.02 * 12f64.powf(noise.next().abs());
                Branch {
                    id: LayerId::new(format!("blocks.{block}.{name}")),
                    hidden,
                    down: noise.vector(hidden * WIDTH, 0.5),
                    up: noise.vector(WIDTH * hidden, strength),
                }
            });
            for branch in &branches {
                let params = (branch.down.len() + branch.up.len()) as u64;
                let (kind, stage) = (branch.id.as_str().rsplit('.').next().unwrap_or_default().to_owned(), format!("blocks.{block}"));
                layers.push(Layer { id: branch.id.clone(), kind, stage, params, macs: params });
            }
            let members = branches.iter().map(|branch| branch.id.clone()).collect();
            let width = WIDTH as u64;
            shared_costs.push(SharedCost { id: LayerId::new(format!("blocks.{block}")), members, params: width, macs: width });
            let out = noise.vector(WIDTH, 0.2).into_iter().map(|x| 1.0 + x).collect();
            blocks.push(Block { branches, out });
        }
        let total: u64 =
            layers.iter().map(|layer| layer.params).sum::<u64>() + shared_costs.iter().map(|shared| shared.params).sum::<u64>();
        let table = LayerTable::new(TableParts {
            model: "toy residual network".to_owned(),
            fingerprint: format!("toy-{seed}"),
            total_params: total,
            total_macs: total,
            layers,
            shared_costs,
        })?;
        let inputs: Vec<Vec<f64>> = (0..SAMPLES).map(|_| noise.vector(WIDTH, 1.0)).collect();
        let mut network = Self { table, blocks, inputs, targets: Vec::new() };
        network.targets = network.inputs.iter().map(|x| network.forward(x, &RemovalSet::empty())).collect();
        Ok(network)
    }

    fn forward(&self, input: &[f64], removed: &RemovalSet) -> Vec<f64> {
        let mut x = input.to_vec();
        for block in &self.blocks {
            let mut inner = x.clone();
            for branch in block.branches.iter().filter(|branch| !removed.contains(branch.id.as_str())) {
                let hidden: Vec<f64> = matmul(&branch.down, &inner).into_iter().map(f64::tanh).collect();
                assert_eq!(hidden.len(), branch.hidden);
                inner.iter_mut().zip(matmul(&branch.up, &hidden)).for_each(|(a, b)| *a += b);
            }
            for ((x, inner), out) in x.iter_mut().zip(inner).zip(&block.out) {
                *x += out * (inner - *x);
            }
        }
        x
    }
}

impl Ablate for ToyNetwork {
    type Error = Infallible;

    fn table(&self) -> &LayerTable {
        &self.table
    }

    fn criteria(&self) -> Vec<String> {
        vec!["output_loss".to_owned()]
    }

    fn num_samples(&self) -> usize {
        SAMPLES
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<LossDeltas, Infallible> {
        let loss = |sample: usize| {
            let answer = self.forward(&self.inputs[sample], removed);
            answer.iter().zip(&self.targets[sample]).map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / WIDTH as f64
        };
        Ok(LossDeltas::single(samples.map(loss).collect()))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1);
    let mut network = ToyNetwork::new(2404)?;
    let table = network.table.clone();

    println!("1. Score every branch alone\n\n  layer          params   output loss      +-");
    let all = Scorer::new(&mut network).samples(0..SAMPLES / 2).seed(2404).run()?;
    let scores = &all[0];
    for layer in table.layers() {
        if let Some(score) = scores.layer(layer.id.as_str()) {
            println!("  {:14} {:6}   {:11.6} {:9.6}", layer.id, layer.params, score.value(), score.standard_error().unwrap_or(0.0));
        }
    }
    let magnitude = magnitude(&network)?;

    println!("\n2. Choose what goes, and measure it\n\n  ratio  method      removed   predicted    measured");
    let held_out = MeasureOptions::new(SAMPLES / 2..SAMPLES);
    let none = Constraints::none();
    let mut last = None;
    for ratio in [0.3, 0.5, 0.7] {
        let budget = Budget::params_ratio(ratio);
        let exact = solve(scores, &budget, &none)?;
        let plans = [
            ("exact", &exact),
            ("greedy", &greedy(scores, &budget, &none)?),
            ("magnitude", &solve(&magnitude, &budget, &none)?),
            ("random", &random(scores, &budget, &none, 1)?),
        ];
        for (name, plan) in plans {
            let removed = plan.removal_set();
            let predicted = scores.predicted(&removed)?;
            let set = DrawnSet { stratum: name.to_owned(), removed };
            let measured = measure_sets(&mut network, &[set], &held_out)?;
            let joint = measured[0].losses["output_loss"].mean;
            println!("  {ratio:5}  {name:10} {:7.1} %   {predicted:9.6}   {joint:9.6}", 100.0 * plan.params_ratio);
        }
        last = Some(exact);
    }

    println!("\n3. Do scores add up?\n\n  stratum             sets  pearson  spearman  slope");
    let sizes = [SetSize::Layers(2), SetSize::Layers(4), SetSize::ParamsRatio(0.3), SetSize::ParamsRatio(0.5)];
    let sets = draw_removal_sets(&table, &sizes, 24, 7)?;
    let measured = measure_sets(&mut network, &sets, &held_out)?;
    let audit = audit(scores, "output_loss", &measured)?;
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
    for (name, stats) in audit.strata.iter().map(|(name, stats)| (name.as_str(), stats)).chain([("all", &audit.overall)]) {
        println!("  {name:18} {:5}  {:>7}  {:>8}  {:>5}", stats.sets, number(stats.pearson), number(stats.spearman), number(stats.slope));
    }

    println!("\n4. Refine on the joint loss\n\n  ratio  evaluations   before      after   (held out)");
    for ratio in [0.3, 0.5, 0.7] {
        let budget = Budget::params_ratio(ratio);
        let refined = refine_plan(&mut network, scores, &solve(scores, &budget, &none)?, &budget)?;
        if let Some(outcome) = &refined.record.outcome {
            let (before, after) = (outcome.start_held_out.mean, outcome.held_out.mean);
            println!("  {ratio:5}  {:11}  {before:9.6}  {after:9.6}", refined.record.forwards);
        }
    }

    if let (Some(folder), Some(plan)) = (folder, last) {
        write(Path::new(&folder), scores, &plan, &AuditFile::new(&table, 7, held_out.samples, vec![audit], measured))?;
    }
    Ok(())
}

/// Looks for a set that loses less together than the plan's, within the same budget.
fn refine_plan(network: &mut ToyNetwork, scores: &Scores, plan: &Plan, budget: &Budget) -> Result<Refined, Box<dyn Error>> {
    let problem = Problem::new(scores, &Constraints::none())?;
    let limit = Limit::from_budget(budget, scores.table())?;
    let options = RefineOptions::new("output_loss", 0..SAMPLES / 2, SAMPLES / 2..SAMPLES)
        .method(RefineMethod::Swaps { candidates: 24 })
        .first_samples(4)
        .max_forwards(2000);
    Ok(prune_core::refine(network, &problem, &[limit], plan, &options)?)
}

/// A rival criterion that needs no forward pass: mean square of the weights.
fn magnitude(network: &ToyNetwork) -> Result<Scores, prune_core::Error> {
    let branches = network.blocks.iter().flat_map(|block| &block.branches);
    let values = branches.map(|branch| {
        let weights = branch.down.iter().chain(&branch.up);
        (branch.id.clone(), weights.clone().map(|w| w * w).sum::<f64>() / weights.count() as f64)
    });
    Scores::from_values(&network.table, "magnitude", values)
}

fn write(folder: &Path, scores: &Scores, plan: &Plan, audit: &AuditFile) -> Result<(), prune_core::Error> {
    scores.write(&folder.join("scores.json"))?;
    plan.write(&folder.join("plan.json"))?;
    audit.write(&folder.join("audit.json"))
}
