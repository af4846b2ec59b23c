//! Golden counts of the published architectures, from the configuration alone, and costs against real networks.

use std::path::Path;

use prune_core::table::Cost;
use prune_core::{LayerId, LayerTable, RemovalSet};
use tch::{Device, Kind};
use unet::{
    Error, Granularity, Layout, Part, TableOptions, UNet, UNetConfig, activation_costs, layer_table, layer_table_with, scoring_passes,
};

use crate::support::Fixture;

fn options(config: &UNetConfig, granularity: Granularity, removed: RemovalSet) -> TableOptions {
    let (model, fingerprint) = ("test".to_string(), config.hash());
    TableOptions { latent_h: 12, latent_w: 10, tokens: 7, granularity, removed, model, fingerprint }
}

fn resnets(config: &UNetConfig) -> (usize, usize) {
    let all: Vec<bool> = config
        .stages
        .iter()
        .flat_map(|s| &s.parts)
        .filter_map(|p| match p {
            Part::Resnet(r) => Some(r.c_in == r.c_out),
            Part::Transformer(_) => None,
        })
        .collect();
    (all.iter().filter(|same| **same).count(), all.iter().filter(|same| !**same).count())
}

fn depths(config: &UNetConfig) -> Vec<usize> {
    let parts = config.stages.iter().flat_map(|s| &s.parts);
    parts.filter_map(|p| if let Part::Transformer(t) = p { Some(t.depth) } else { None }).collect()
}

fn everything(table: &LayerTable) -> RemovalSet {
    table.layers().iter().map(|l| l.id.clone()).collect()
}

fn transformer_share(table: &LayerTable) -> f64 {
    let inside: u64 = table.layers().iter().filter(|l| l.kind != "resnet").map(|l| l.params).sum();
    inside as f64 / table.total_params() as f64
}

/// Largest share of the parameters that can go: without and with shared costs, to three digits.
fn reachable(table: &LayerTable) -> (f64, f64) {
    let share = |n: u64| (n as f64 / table.total_params() as f64 * 1e3).round() / 1e3;
    let branches = table.layers().iter().map(|l| l.params).sum();
    (share(branches), share(table.removed_cost(&everything(table), Cost::Params).unwrap()))
}

fn tflop(table: &LayerTable) -> f64 {
    2.0 * table.total_macs() as f64 / 1e12
}

#[test]
fn golden_numbers_of_sd15() {
    let config = UNetConfig::sd15();
    let table = layer_table(&config, 64, 64).unwrap();
    assert_eq!(table.total_params(), 859_520_964);
    assert_eq!(resnets(&config), (8, 14));
    assert_eq!((depths(&config).len(), depths(&config).iter().sum()), (16, 16));
    assert_eq!(table.len(), 70);
    assert!((transformer_share(&table) - 0.282).abs() < 5e-4, "{}", transformer_share(&table));
    assert!((tflop(&table) / 0.803 - 1.0).abs() < 0.01, "{}", tflop(&table));
    // Of the branches alone, and with the norms and projections that go with the last of them.
    assert_eq!(reachable(&table), (0.881, 0.909));
}

#[test]
fn golden_numbers_of_sdxl() {
    let config = UNetConfig::sdxl();
    let table = layer_table(&config, 128, 128).unwrap();
    assert_eq!(table.total_params(), 2_567_463_684);
    assert_eq!(resnets(&config), (6, 11));
    assert_eq!((depths(&config).len(), depths(&config).iter().sum()), (11, 70));
    assert_eq!(table.len(), 227);
    assert!((transformer_share(&table) - 0.851).abs() < 5e-4, "{}", transformer_share(&table));
    assert!((tflop(&table) / 6.761 - 1.0).abs() < 0.01, "{}", tflop(&table));
    assert_eq!(reachable(&table), (0.974, 0.983));
}

/// The totals and each removal's saving are what the network really holds.
#[test]
fn costs_in_parameters_are_those_of_the_network() {
    for f in Fixture::all() {
        let config = f.unet.config();
        let table = layer_table(config, 12, 10).unwrap();
        assert_eq!(table.total_params(), f.unet.num_parameters(), "{}", f.name);
        for set in f.removal_sets() {
            let left = f.unet.prune(&set).unwrap().num_parameters();
            assert_eq!(table.total_params() - table.removed_cost(&set, Cost::Params).unwrap(), left, "{}: {set:?}", f.name);
            // The table of what is left starts from there.
            let Ok(rest) = layer_table_with(config, &options(config, Granularity::Branch, set.clone())) else {
                assert_eq!(set, everything(&table), "{}", f.name);
                continue;
            };
            assert_eq!(rest.total_params(), left);
            assert_eq!(rest.len(), table.len() - set.len());
        }
    }
}

#[test]
fn granularities_remove_the_same_when_they_remove_everything() {
    for f in Fixture::all() {
        let config = f.unet.config();
        let of = |g| layer_table_with(config, &options(config, g, RemovalSet::empty())).unwrap();
        let tables = [of(Granularity::Branch), of(Granularity::Block), of(Granularity::Transformer2d)];
        let gone = |t: &LayerTable, cost| t.removed_cost(&everything(t), cost).unwrap();
        for table in &tables[1..] {
            for cost in [Cost::Params, Cost::Macs] {
                assert_eq!(table.total(cost), tables[0].total(cost));
                assert_eq!(gone(table, cost), gone(&tables[0], cost));
            }
            let expanded = Layout::new(config).expand(&everything(table)).unwrap();
            assert_eq!(expanded, everything(&tables[0]));
        }
        assert!(tables[0].len() > tables[1].len());
        // Pruning by a coarse id removes the very parameters that the coarse table counts.
        for layer in tables[2].layers() {
            let left = f.unet.prune(&RemovalSet::single(layer.id.clone())).unwrap().num_parameters();
            assert_eq!(f.unet.num_parameters() - left, layer.params, "{}", layer.id);
        }
    }
}

/// PyTorch's own count of one forward pass.
#[test]
fn macs_are_half_of_the_operations_that_pytorch_counts() {
    for f in Fixture::all() {
        let mut options = options(f.unet.config(), Granularity::Branch, RemovalSet::empty());
        let size = f.input("sample").size();
        (options.latent_h, options.latent_w, options.tokens) = (size[2], size[3], f.metadata["tokens"].parse().unwrap());
        let table = layer_table_with(f.unet.config(), &options).unwrap();
        assert_eq!(2 * table.total_macs(), f.metadata["flops"].parse::<u64>().unwrap(), "{}", f.name);
    }
}

/// What PyTorch's autograd keeps of diffusers' networks, in all and without each branch (tests/fixtures/gen_unet_activations.py).
#[test]
fn activations_are_those_that_pytorch_keeps() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/unet");
    let text = std::fs::read_to_string(folder.join("activations.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or_else(|| panic!("{value} is no count"));
    let models = expected["models"].as_object().unwrap();
    assert_eq!(models.len(), 11);
    for (name, model) in models {
        let config = UNetConfig::open(folder.join(name)).unwrap();
        let mut options = options(&config, Granularity::Branch, RemovalSet::empty());
        options.latent_h = number(&expected["latent"][0]) as i64;
        options.latent_w = number(&expected["latent"][1]) as i64;
        options.tokens = number(&expected["tokens"]) as i64;
        let found = activation_costs(&config, &options).unwrap();
        // In diffusers every ResNet takes the SiLU of the embedding anew; here they share it.
        let width = config.time.width as u64;
        let (same, other) = resnets(&config);
        assert_eq!(found.total + (same + other - 1) as u64 * width, number(&model["total"]), "{name}");
        let without = model["without"].as_object().unwrap();
        assert_eq!(found.layers.len(), without.len(), "{name}");
        for (id, saved) in without {
            let own = if id.contains(".resnets.") { width } else { 0 };
            // A Transformer2D with one branch goes whole.
            let shell = found.shared_costs.iter().filter(|(shell, _)| {
                let inside = |layer: &&LayerId| layer.as_str().starts_with(&format!("{shell}."));
                id.starts_with(&format!("{shell}.")) && found.layers.keys().filter(inside).count() == 1
            });
            let saved_here = found.layers[id.as_str()] + own + shell.map(|(_, kept)| kept).sum::<u64>();
            assert_eq!(saved_here, number(saved), "{name}: {id}");
        }
    }
}

#[test]
fn activations_of_groups_and_of_pruned_models_add_up() {
    let config = UNetConfig::sdxl();
    let costs = |granularity, removed: RemovalSet| activation_costs(&config, &options(&config, granularity, removed)).unwrap();
    let branches = costs(Granularity::Branch, RemovalSet::empty());
    let whole = costs(Granularity::Transformer2d, RemovalSet::empty());
    assert_eq!((branches.total, branches.shared_costs.len()), (whole.total, 11));
    let id = LayerId::from("down_blocks.1.attentions.0");
    let inside: u64 =
        branches.layers.iter().filter(|(layer, _)| layer.as_str().starts_with("down_blocks.1.attentions.0.")).map(|(_, n)| n).sum();
    assert_eq!(whole.layers[&id], inside + branches.shared_costs[&id]);
    let pruned = costs(Granularity::Branch, RemovalSet::single(id.clone()));
    assert_eq!(pruned.total, branches.total - whole.layers[&id]);
}

/// Whole forward passes that scoring every layer takes: the original, and each candidate from the block on in which its layer stands.
#[test]
fn resumed_scoring_takes_little_more_than_half_of_the_passes() {
    for (config, size, layers, least) in [(UNetConfig::sd15(), 64, 70, 39.4), (UNetConfig::sdxl(), 128, 227, 123.9)] {
        let table = layer_table(&config, size, size).unwrap();
        assert_eq!(table.len(), layers);
        let passes = scoring_passes(&table);
        assert!((passes - least).abs() < 0.02 * least, "{passes} passes, {least} if every branch could resume");
        assert!(passes / (layers + 1) as f64 <= 0.62, "{passes} of {}", layers + 1);
    }
}

#[test]
fn sizes_out_of_range_are_refused() {
    let config = UNetConfig::sdxl();
    for (h, w) in [(0, 64), (64, -1), (1 << 17, 64), (1 << 16, 1 << 16)] {
        assert!(matches!(layer_table(&config, h, w), Err(Error::Input { .. })), "{h} x {w}");
    }
}

/// Multiply-accumulates by hand for one small network of a resnet-only kind and one attention.
#[test]
fn macs_of_a_network_small_enough_to_count_by_hand() {
    let text = r#"{"block_out_channels": [4], "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["UpBlock2D"],
        "mid_block_type": null, "layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 2, "cross_attention_dim": 3}"#;
    let config = UNetConfig::parse(text, "by hand").unwrap();
    let mut options = options(&config, Granularity::Branch, RemovalSet::empty());
    (options.latent_h, options.latent_w) = (2, 3);
    let table = layer_table_with(&config, &options).unwrap();
    let (n, c, t, x, e) = (6, 4, 7, 3, 16);
    let macs = |id: &str| table.layer(id).unwrap().macs;
    assert_eq!(macs("down_blocks.0.resnets.0"), 9 * c * c * n + e * c + 9 * c * c * n);
    let block = "down_blocks.0.attentions.0.transformer_blocks.0";
    assert_eq!(macs(&format!("{block}.attn1")), 4 * c * c * n + 2 * n * n * c);
    assert_eq!(macs(&format!("{block}.attn2")), 2 * c * c * n + 2 * x * c * t + 2 * n * t * c);
    assert_eq!(macs(&format!("{block}.ff")), (8 + 4) * c * c * n);
    assert_eq!(table.shared_costs()[0].macs, 2 * c * c * n);
    let inside: u64 = table.layers().iter().map(|l| l.macs).sum::<u64>() + table.shared_costs()[0].macs;
    let shortcuts = 2 * 8 * c * n;
    let fixed = 9 * 4 * c * n * 2 + (c * e + e * e);
    assert_eq!(table.total_macs(), inside + shortcuts + fixed);
}

#[test]
fn a_layer_of_another_model_is_refused_with_the_nearest_name() {
    let unet = UNet::random(Fixture::open("nomid").unet.config(), 1, Device::Cpu, Kind::Float).unwrap();
    let err = unet.prune(&RemovalSet::single("down_blocks.0.resnet.0")).unwrap_err();
    assert!(
        matches!(&err, Error::Layer { id, reason } if id == "down_blocks.0.resnet.0" && reason.contains("`down_blocks.0.resnets.0`")),
        "{err}"
    );
    assert!(matches!(unet.prune(&RemovalSet::single("conv_in")), Err(Error::Layer { .. })));
}
