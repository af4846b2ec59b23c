//! From a U-Net with weights to scores, a plan and the pruned U-Net: do the figures of one crate hold in the next?
//!
//! The weights are those of the fixture that diffusers computed; they are random, the arithmetic is not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prune_core::audit::{DrawnSet, MeasureOptions, measure_sets};
use prune_core::score::ScoreOptions;
use prune_core::search::{greedy, random};
use prune_core::{Ablate, Budget, Constraints, LayerTable, Plan, RemovalSet, Scorer, Scores, solve};
use tch::{Device, Kind, Tensor};
use unet::scoring::{Calibration, OUTPUT_LOSS, TASK_LOSS_DELTA, UNetAblate, UNetPasses};
use unet::weights::TensorFile;
use unet::{AddedConditioning, Conditioning, Granularity, TableOptions, UNet, UNetConfig, bk_sdm_style, layer_table_with};

/// The fixture of SDXL's shape.
pub fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/unet/sdxl")
}

struct Setting {
    unet: UNet,
    table: LayerTable,
    inputs: BTreeMap<String, Tensor>,
}

impl Setting {
    fn new() -> Self {
        let dir = fixture();
        let unet = UNet::open(&dir, Device::Cpu, Kind::Float).unwrap();
        let cases = TensorFile::open(dir.join("cases.safetensors")).unwrap().tensors().unwrap();
        let inputs = cases.into_iter().filter_map(|(k, t)| Some((k.strip_prefix("input.")?.to_string(), t))).collect();
        let options = TableOptions {
            latent_h: 12,
            latent_w: 8,
            tokens: 6,
            granularity: Granularity::Branch,
            removed: RemovalSet::empty(),
            model: "fixture".into(),
            fingerprint: unet::fingerprint(&dir).unwrap(),
        };
        let table = layer_table_with(unet.config(), &options).unwrap();
        Self { unet, table, inputs }
    }

    fn cond(&self) -> Conditioning {
        let get = |name: &str| self.inputs[name].shallow_clone();
        Conditioning {
            encoder_hidden_states: get("encoder_hidden_states"),
            added: Some(AddedConditioning { text_embeds: get("text_embeds"), time_ids: get("time_ids") }),
            guidance: None,
        }
    }

    fn predict(&self, unet: &UNet) -> Tensor {
        tch::no_grad(|| unet.forward(&self.inputs["sample"], &self.inputs["timestep"], &self.cond())).unwrap()
    }

    fn ablate(&self) -> UNetAblate<'_> {
        let get = |name: &str| self.inputs[name].shallow_clone();
        let data = Calibration::new(get("sample"), get("timestep"), self.cond(), Some(get("sample")), vec![0, 1]).unwrap();
        UNetPasses::new(&self.unet, self.table.clone(), data, &[OUTPUT_LOSS, TASK_LOSS_DELTA]).unwrap().ablate(1 << 30).unwrap()
    }

    fn output_loss(&self) -> Scores {
        let options = ScoreOptions::new(0..2).batch(2);
        let scores = Scorer::new(&mut self.ablate()).options(options.clone()).run().unwrap();
        scores.into_iter().find(|s| s.criterion() == "output_loss").unwrap()
    }
}

/// What an exact search removes from the fixture.
pub fn searched(ratio: f64) -> RemovalSet {
    plan(&Setting::new().output_loss(), ratio).removal_set()
}

fn plan(scores: &Scores, ratio: f64) -> Plan {
    solve(scores, &Budget::params_ratio(ratio), &Constraints::none()).unwrap()
}

#[test]
fn a_plan_counts_the_parameters_that_surgery_leaves() {
    let setting = Setting::new();
    let scores = setting.output_loss();
    for ratio in [0.05, 0.3, 0.5, 0.7, 0.9] {
        let plan = plan(&scores, ratio);
        let pruned = setting.unet.prune(&plan.removal_set()).unwrap();
        assert_eq!(pruned.num_parameters(), plan.params_left, "ratio {ratio}");
        assert!(plan.params_ratio >= ratio);
    }
    for seed in 0..20 {
        let plan = random(&scores, &Budget::params_ratio(0.5), &Constraints::none(), seed).unwrap();
        assert_eq!(setting.unet.prune(&plan.removal_set()).unwrap().num_parameters(), plan.params_left, "seed {seed}");
    }
}

#[test]
fn the_joint_loss_is_that_of_the_pruned_network() {
    let setting = Setting::new();
    let scores = setting.output_loss();
    let plan = plan(&scores, 0.4);
    let set = DrawnSet { stratum: "plan".into(), removed: plan.removal_set() };
    let options = MeasureOptions::new(0..2).batch(2);
    let measured = measure_sets(&mut setting.ablate(), &[set], &options).unwrap();
    let gap = measured[0].losses["output_loss"].mean;
    let pruned = setting.unet.prune(&plan.removal_set()).unwrap();
    let predict = |unet: &UNet| setting.predict(unet).to_kind(Kind::Double);
    let by_hand = (predict(&setting.unet) - predict(&pruned)).square().mean(Kind::Double).double_value(&[]);
    // The same passes of the same batch: only the order of the sum differs.
    assert!((gap - by_hand).abs() <= 1e-6 * by_hand, "{gap} against {by_hand}");
}

#[test]
fn a_saved_pruned_network_is_the_same_bit_for_bit() {
    let setting = Setting::new();
    let plan = plan(&setting.output_loss(), 0.6);
    let pruned = setting.unet.prune(&plan.removal_set()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    pruned.save(dir.path(), None, &BTreeMap::from([("laptop_diff.plan".to_string(), plan.to_json().unwrap())])).unwrap();
    let again = UNet::open(dir.path(), Device::Cpu, Kind::Float).unwrap();
    assert_eq!(setting.predict(&again), setting.predict(&pruned));
    // The file carries the plan, and the plan still fits the original.
    let carried = Plan::from_json(again.metadata()["laptop_diff.plan"].as_bytes(), &setting.table).unwrap();
    assert_eq!(carried.removal_set(), plan.removal_set());
}

#[test]
fn the_exact_plan_has_the_least_sum_of_scores() {
    let setting = Setting::new();
    let scores = setting.output_loss();
    for ratio in [0.3, 0.5, 0.6] {
        let budget = Budget::params_ratio(ratio);
        let exact = plan(&scores, ratio).predicted.unwrap();
        let none = Constraints::none();
        let mut rivals = vec![greedy(&scores, &budget, &none).unwrap().predicted.unwrap()];
        rivals.extend((0..10).map(|seed| random(&scores, &budget, &none, seed).unwrap().predicted.unwrap()));
        let hand = bk_sdm_style(setting.unet.config(), budget.required(&setting.table).unwrap()).unwrap();
        rivals.push(scores.predicted(&hand.into_iter().collect()).unwrap());
        assert!(rivals.iter().all(|r| *r >= exact), "ratio {ratio}: {exact} against {rivals:?}");
    }
}

#[test]
fn the_published_models_have_as_many_items_as_the_method_says() {
    for (config, items) in [(UNetConfig::sd15(), 70), (UNetConfig::sdxl(), 227)] {
        let table = unet::layer_table(&config, 64, 64).unwrap();
        assert_eq!(table.len(), items);
    }
}

#[test]
fn an_ablation_of_nothing_costs_nothing() {
    let setting = Setting::new();
    let gaps = setting.ablate().evaluate(&RemovalSet::empty(), 0..2).unwrap();
    assert!((0..2).all(|row| gaps.row(row).iter().all(|g| *g == 0.0)));
}
