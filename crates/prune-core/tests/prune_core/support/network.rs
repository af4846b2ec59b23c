//! A residual network with skip connections and shared costs, in `f64`: small enough to run thousands of passes, and with layers
//! that act on each other.

use std::convert::Infallible;
use std::ops::Range;

use prune_core::score::{LossDeltas, Segment, Segmented};
use prune_core::table::{Layer, SharedCost, TableParts};
use prune_core::{Ablate, LayerId, LayerTable, RemovalSet};

const WIDTH: usize = 12;

/// One residual branch, `x + up(tanh(down(x)))`; matrices are row-major.
struct Branch {
    id: LayerId,
    /// `[hidden, WIDTH]`
    down: Vec<f64>,
    /// `[WIDTH, hidden]`
    up: Vec<f64>,
}

/// Branches inside a projection that goes with the last of them: `x + out * (inner(x) - x)`.
struct Block {
    branches: Vec<Branch>,
    out: f64,
}

pub struct Network {
    table: LayerTable,
    criteria: Vec<String>,
    segments: Vec<Segment>,
    blocks: Vec<Block>,
    inputs: Vec<Vec<f64>>,
    /// Segments run so far, times samples.
    pub steps: usize,
}

/// A pass over some samples.
#[derive(Clone, Debug)]
pub struct State {
    x: Vec<Vec<f64>>,
    skips: Vec<Vec<Vec<f64>>>,
}

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

impl Network {
    /// `blocks`, an even number, of which the second half takes the skips of the first.
    pub fn new(blocks: usize, samples: usize, seed: u64) -> Self {
        let mut noise = Noise(seed);
        let mut layers: Vec<Layer> = Vec::new();
        let (mut shared_costs, mut segments, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for block in 0..blocks {
            let first = layers.len();
            let mut branches = Vec::new();
            for (name, hidden) in [("attn", 3), ("mix", 5), ("mlp", 8)].into_iter().take(1 + (block * 7 + 2) % 3) {
                let id = LayerId::new(format!("blocks.{block:02}.{name}"));
                let strength = 0.04 * 14f64.powf(noise.next().abs());
                let branch = Branch { id: id.clone(), down: noise.vector(hidden * WIDTH, 0.6), up: noise.vector(WIDTH * hidden, strength) };
                let params = (branch.down.len() + branch.up.len()) as u64;
                layers.push(Layer { id, kind: name.to_owned(), stage: format!("blocks.{block:02}"), params, macs: params });
                branches.push(branch);
            }
            let members = branches.iter().map(|branch| branch.id.clone()).collect();
            shared_costs.push(SharedCost { id: LayerId::new(format!("blocks.{block:02}")), members, params: 7, macs: 7 });
            segments.push(Segment::new(first..layers.len(), 10 + (layers.len() - first) as u64));
            parts.push(Block { branches, out: 1.0 + 0.2 * noise.next() });
        }
        let total: u64 = layers.iter().map(|layer| layer.params).sum::<u64>() + 7 * blocks as u64;
        let table = LayerTable::new(TableParts {
            model: "residual".to_owned(),
            fingerprint: format!("residual-{blocks}-{seed}"),
            total_params: total + 50,
            total_macs: total + 50,
            layers,
            shared_costs,
        })
        .unwrap();
        let inputs = (0..samples).map(|_| noise.vector(WIDTH, 1.0)).collect();
        Self { table, criteria: vec!["output_loss".to_owned()], segments, blocks: parts, inputs, steps: 0 }
    }

    fn block(&self, index: usize, state: &mut State, removed: &RemovalSet) {
        let block = &self.blocks[index];
        if index * 2 >= self.blocks.len() {
            let skip = state.skips.pop().expect("as many blocks up as down");
            for (x, skip) in state.x.iter_mut().zip(skip) {
                x.iter_mut().zip(skip).for_each(|(x, skip)| *x = 0.8 * *x + 0.3 * skip);
            }
        }
        for x in &mut state.x {
            let mut inner = x.clone();
            for branch in block.branches.iter().filter(|branch| !removed.contains(branch.id.as_str())) {
                let hidden: Vec<f64> = matmul(&branch.down, &inner).into_iter().map(f64::tanh).collect();
                inner.iter_mut().zip(matmul(&branch.up, &hidden)).for_each(|(a, b)| *a += b);
            }
            x.iter_mut().zip(inner).for_each(|(x, inner)| *x += block.out * (inner - *x));
        }
        if index * 2 < self.blocks.len() {
            state.skips.push(state.x.clone());
        }
    }

    fn open(&self, samples: Range<usize>) -> State {
        State { x: self.inputs[samples].to_vec(), skips: Vec::new() }
    }

    fn compare(&self, original: &State, ablated: &State) -> LossDeltas {
        let loss = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / WIDTH as f64;
        LossDeltas::new(1, original.x.iter().zip(&ablated.x).map(loss).collect()).unwrap()
    }
}

impl Segmented for Network {
    type Error = Infallible;
    type State = State;

    fn table(&self) -> &LayerTable {
        &self.table
    }

    fn criteria(&self) -> Vec<String> {
        self.criteria.clone()
    }

    fn num_samples(&self) -> usize {
        self.inputs.len()
    }

    fn sample_bin(&self, index: usize) -> u32 {
        (index % 4) as u32
    }

    fn segments(&self) -> &[Segment] {
        &self.segments
    }

    fn start(&mut self, samples: Range<usize>) -> Result<State, Infallible> {
        Ok(self.open(samples))
    }

    fn step(&mut self, state: &State, segment: usize, removed: &RemovalSet) -> Result<State, Infallible> {
        let inside = &self.segments[segment].layers;
        assert!(removed.iter().all(|id| inside.contains(&self.table.position(id.as_str()).unwrap())));
        self.steps += state.x.len();
        let mut next = state.clone();
        self.block(segment, &mut next, removed);
        Ok(next)
    }

    fn loss_deltas(&mut self, original: &State, ablated: &State, _: Range<usize>) -> Result<LossDeltas, Infallible> {
        Ok(self.compare(original, ablated))
    }

    fn state_bytes(&self, _: &State) -> u64 {
        1
    }
}

/// The same network, every pass from its start to its end.
pub struct Plain(pub Network);

impl Ablate for Plain {
    type Error = Infallible;

    fn table(&self) -> &LayerTable {
        &self.0.table
    }

    fn criteria(&self) -> Vec<String> {
        self.0.criteria.clone()
    }

    fn num_samples(&self) -> usize {
        self.0.inputs.len()
    }

    fn sample_bin(&self, index: usize) -> u32 {
        (index % 4) as u32
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<LossDeltas, Infallible> {
        let (mut original, mut ablated) = (self.0.open(samples.clone()), self.0.open(samples));
        for block in 0..self.0.blocks.len() {
            self.0.steps += ablated.x.len();
            self.0.block(block, &mut original, &RemovalSet::empty());
            self.0.block(block, &mut ablated, removed);
        }
        Ok(self.0.compare(&original, &ablated))
    }
}
