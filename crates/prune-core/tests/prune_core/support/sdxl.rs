//! The layers of SDXL (stabilityai/stable-diffusion-xl-base-1.0, `unet/config.json`): 227 branches in 11 transformer shared costs and
//! 17 ResNets, 18 distinct sizes in parameters. Scores are random. Tests and benchmarks share this file.

use prune_core::table::{Layer, SharedCost, TableParts};
use prune_core::{LayerId, LayerTable, Scores};

/// Width of the text context and of the time embedding.
const CONTEXT: u64 = 2048;
const TIME: u64 = 1280;

fn resnet(i: u64, o: u64) -> u64 {
    let shortcut = if i == o { 0 } else { i * o + o };
    2 * i + 9 * i * o + o + TIME * o + o + 2 * o + 9 * o * o + o + shortcut
}

fn self_attention(c: u64) -> u64 {
    2 * c + 4 * c * c + c
}

fn cross_attention(c: u64) -> u64 {
    2 * c + 2 * c * c + 2 * CONTEXT * c + c
}

fn feed_forward(c: u64) -> u64 {
    2 * c + 12 * c * c + 9 * c
}

struct Builder {
    layers: Vec<Layer>,
    shared_costs: Vec<SharedCost>,
}

impl Builder {
    fn push(&mut self, id: String, kind: &str, stage: &str, params: u64) -> LayerId {
        // Every parameter works once per position of its level; the levels of a 1024 px image hold 128^2, 64^2 and
        // 32^2 positions. That is close enough to real counts for a benchmark.
        let side: u64 = match stage {
            "down_blocks.0" | "up_blocks.2" => 128,
            "down_blocks.1" | "up_blocks.1" => 64,
            _ => 32,
        };
        let id = LayerId::new(id);
        let macs = params * side * side;
        self.layers.push(Layer { id: id.clone(), kind: kind.to_owned(), stage: stage.to_owned(), params, macs });
        id
    }

    fn resnet(&mut self, stage: &str, index: usize, i: u64, o: u64) {
        self.push(format!("{stage}.resnets.{index}"), "resnet", stage, resnet(i, o));
    }

    fn transformer(&mut self, stage: &str, index: usize, channels: u64, depth: usize) {
        let shared = format!("{stage}.attentions.{index}");
        let mut members = Vec::new();
        for block in 0..depth {
            for (name, kind, params) in [
                ("attn1", "self_attention", self_attention(channels)),
                ("attn2", "cross_attention", cross_attention(channels)),
                ("ff", "feed_forward", feed_forward(channels)),
            ] {
                members.push(self.push(format!("{shared}.transformer_blocks.{block}.{name}"), kind, stage, params));
            }
        }
        let params = 2 * channels + 2 * (channels * channels + channels);
        self.shared_costs.push(SharedCost { id: LayerId::new(shared), members, params, macs: params * 1024 });
    }
}

pub fn sdxl() -> LayerTable {
    const CHANNELS: [u64; 3] = [320, 640, 1280];
    const DEPTHS: [usize; 3] = [0, 2, 10];
    let mut builder = Builder { layers: Vec::new(), shared_costs: Vec::new() };
    let mut skips = vec![320];
    let mut width = 320;
    for level in 0..3 {
        let stage = format!("down_blocks.{level}");
        for index in 0..2 {
            builder.resnet(&stage, index, width, CHANNELS[level]);
            width = CHANNELS[level];
            if DEPTHS[level] > 0 {
                builder.transformer(&stage, index, width, DEPTHS[level]);
            }
            skips.push(width);
        }
        if level < 2 {
            skips.push(width);
        }
    }
    builder.resnet("mid_block", 0, 1280, 1280);
    builder.transformer("mid_block", 0, 1280, 10);
    builder.resnet("mid_block", 1, 1280, 1280);
    for (block, level) in [2, 1, 0].into_iter().enumerate() {
        let stage = format!("up_blocks.{block}");
        for index in 0..3 {
            let skip = skips.pop().expect("as many skips as up ResNets");
            builder.resnet(&stage, index, width + skip, CHANNELS[level]);
            width = CHANNELS[level];
            if DEPTHS[level] > 0 {
                builder.transformer(&stage, index, width, DEPTHS[level]);
            }
        }
    }
    let removable: u64 =
        builder.layers.iter().map(|layer| layer.macs).sum::<u64>() + builder.shared_costs.iter().map(|shared| shared.macs).sum::<u64>();
    LayerTable::new(TableParts {
        model: "sdxl".to_owned(),
        fingerprint: "benchmark".to_owned(),
        total_params: 2_567_463_684,
        total_macs: removable,
        layers: builder.layers,
        shared_costs: builder.shared_costs,
    })
    .expect("a valid table")
}

/// Scores spread over five decades, as measured ones are, from a fixed linear congruential sequence.
pub fn random_scores(table: &LayerTable, seed: u64) -> Scores {
    let mut state = seed;
    let values = table.layers().iter().map(|layer| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let unit = (state >> 11) as f64 / (1u64 << 53) as f64;
        (layer.id.clone(), 10f64.powf(-5.0 * unit))
    });
    Scores::from_values(table, "output_loss", values).expect("finite scores")
}
