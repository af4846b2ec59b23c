//! Removals in the manner of BK-SDM.

use prune_core::table::Cost;
use prune_core::{LayerId, RemovalSet};
use unet::{Error, Published, UNetConfig, bk_sdm_base, bk_sdm_small, bk_sdm_style, bk_sdm_tiny, layer_table};

use crate::support::Fixture;

fn set(ids: &[LayerId]) -> RemovalSet {
    ids.iter().cloned().collect()
}

/// The modules that go, without their insides.
fn modules(ids: &[LayerId]) -> Vec<String> {
    let mut names: Vec<String> = ids.iter().map(|id| id.as_str().split(".transformer_blocks").next().unwrap().to_string()).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn base_small_and_tiny_on_sd15_are_those_of_the_paper() {
    let config = UNetConfig::sd15();
    let base = modules(&bk_sdm_base(&config));
    let mut expected = vec!["down_blocks.3.resnets.1".to_string(), "up_blocks.0.resnets.1".to_string()];
    for i in 0..3 {
        expected.extend(["resnets", "attentions"].map(|m| format!("down_blocks.{i}.{m}.1")));
        expected.extend(["resnets", "attentions"].map(|m| format!("up_blocks.{}.{m}.1", i + 1)));
    }
    expected.sort();
    assert_eq!(base, expected);
    let mut mid = modules(&bk_sdm_small(&config));
    mid.retain(|m| !base.contains(m));
    assert_eq!(mid, ["mid_block.attentions.0", "mid_block.resnets.0", "mid_block.resnets.1"]);
    let mut innermost = modules(&bk_sdm_tiny(&config));
    innermost.retain(|m| !base.contains(m) && !mid.contains(m));
    assert_eq!(innermost, ["down_blocks.3.resnets.0", "up_blocks.0.resnets.0", "up_blocks.0.resnets.2"]);

    // BK-SDM-Base also drops skips, and with them `conv_shortcut`s, which stay here.
    let table = layer_table(&config, 64, 64).unwrap();
    let left = table.total_params() - table.removed_cost(&set(&bk_sdm_base(&config)), Cost::Params).unwrap();
    assert!(left > 579_384_964 && left < 600_000_000, "{left}");
}

#[test]
fn a_plan_exists_at_every_budget_and_grows_with_it() {
    let configs = [UNetConfig::sd15(), UNetConfig::sdxl()].into_iter().chain(Fixture::all().map(|f| f.unet.config().clone()));
    for config in configs {
        let table = layer_table(&config, 8, 8).unwrap();
        let all: RemovalSet = table.layers().iter().map(|l| l.id.clone()).collect();
        let most = table.removed_cost(&all, Cost::Params).unwrap();
        let mut before = 0;
        for tenth in 0..=10 {
            let target = most * tenth / 10;
            let chosen = bk_sdm_style(&config, target).unwrap();
            let cost = table.removed_cost(&set(&chosen), Cost::Params).unwrap();
            assert!(cost >= target && cost >= before);
            assert_eq!(set(&chosen).len(), chosen.len());
            // Without the last choice the budget is missed: nothing goes for free.
            if let Some((_, rest)) = chosen.split_last() {
                assert!(table.removed_cost(&set(rest), Cost::Params).unwrap() < target);
            }
            before = cost;
        }
        assert!(matches!(bk_sdm_style(&config, most + 1), Err(Error::Input { .. })));
    }
}

#[test]
fn the_order_at_bases_budget_is_base() {
    let config = UNetConfig::sd15();
    let base = set(&bk_sdm_base(&config));
    let target = layer_table(&config, 8, 8).unwrap().removed_cost(&base, Cost::Params).unwrap();
    assert_eq!(set(&bk_sdm_style(&config, target).unwrap()), base);
}

/// Parameters left of SDXL.
fn left_of_sdxl(published: Published) -> u64 {
    let config = UNetConfig::sdxl();
    let table = layer_table(&config, 8, 8).unwrap();
    table.total_params() - table.removed_cost(&set(&published.removed(&config).unwrap()), Cost::Params).unwrap()
}

#[test]
fn shortened_sdxl_has_the_published_number_of_parameters() {
    // The model cards' config.json, counted by PyTorch.
    assert_eq!(left_of_sdxl(Published::Ssd1b), 1_331_334_404);
    assert_eq!(left_of_sdxl(Published::SegmindVega), 745_225_604);
    // KOALA rebuilds with fewer skips; here every `conv_shortcut` stays.
    for (koala, published) in [(Published::Koala1b, 1_161_184_324), (Published::Koala700m, 782_822_724)] {
        let left = left_of_sdxl(koala);
        assert!(left > published && (left as f64) < 1.04 * published as f64, "{}: {left}", koala.name());
    }
}

#[test]
fn published_reductions_name_each_layer_once_and_refuse_other_topologies() {
    for published in Published::ALL {
        let config = if published.name().starts_with("bk") { UNetConfig::sd15() } else { UNetConfig::sdxl() };
        let removed = published.removed(&config).unwrap();
        assert_eq!(set(&removed).len(), removed.len(), "{}", published.name());
        layer_table(&config, 8, 8).unwrap().removed_cost(&set(&removed), Cost::Params).unwrap();
    }
    for published in [Published::Ssd1b, Published::SegmindVega, Published::Koala1b, Published::Koala700m] {
        let error = published.removed(&UNetConfig::sd15()).unwrap_err().to_string();
        assert!(error.contains(published.name()), "{error}");
    }
}
