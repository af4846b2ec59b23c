//! One layer's score from weights to a pruned network, through the libraries.

use prune_core::audit::{draw_removal_sets, measure_sets};
use prune_core::score::ScoreOptions;
use prune_core::table::Cost;
use prune_core::{Ablate, Budget, Constraints, RemovalSet, Scorer, audit, solve};
use tch::{Device, Kind, Tensor};
use unet::scoring::{Calibration, OUTPUT_LOSS, TASK_LOSS_DELTA, UNetPasses};
use unet::weights::seeded;
use unet::{AddedConditioning, Conditioning, ForwardOptions, Granularity, TableOptions, TapSet, UNet, fingerprint, layer_table_with};

use crate::embedded_model::model;

fn table(unet: &UNet) -> prune_core::LayerTable {
    let options = TableOptions {
        latent_h: 16,
        latent_w: 16,
        tokens: 32,
        granularity: Granularity::Branch,
        removed: RemovalSet::empty(),
        model: "tiny-sdxl".into(),
        fingerprint: fingerprint(model().join("unet")).unwrap(),
    };
    layer_table_with(unet.config(), &options).unwrap()
}

fn inputs(n: i64) -> (Tensor, Tensor, Conditioning) {
    let f = (Kind::Float, Device::Cpu);
    let [x, text, pooled] = seeded(5, || [Tensor::randn([n, 4, 16, 16], f), Tensor::randn([n, 32, 224], f), Tensor::randn([n, 128], f)]);
    let sizes = Tensor::from_slice(&[64f32, 64.0, 0.0, 0.0, 64.0, 64.0]).repeat([n, 1]);
    let cond = Conditioning {
        encoder_hidden_states: text,
        added: Some(AddedConditioning { text_embeds: pooled, time_ids: sizes }),
        guidance: None,
    };
    (x, Tensor::arange_start_step(50, 50 + 100 * n, 100, (Kind::Int64, Device::Cpu)), cond)
}

#[test]
fn scores_choose_a_plan_and_the_plan_prunes_the_network() {
    let unet = UNet::open(model(), Device::Cpu, Kind::Float).unwrap();
    let table = table(&unet);
    let (x, t, cond) = inputs(6);
    let target = Tensor::randn(x.size(), (Kind::Float, Device::Cpu));
    let data = Calibration::new(x.shallow_clone(), t.shallow_clone(), cond.shallow_clone(), Some(target), vec![0, 0, 0, 1, 1, 1]).unwrap();
    let mut model = UNetPasses::new(&unet, table.clone(), data, &[OUTPUT_LOSS, TASK_LOSS_DELTA]).unwrap().ablate(1 << 30).unwrap();
    let column = model.criteria().iter().position(|c| c == "output_loss").unwrap();
    let options = ScoreOptions::new(0..4).batch(4);
    let scores = Scorer::new(&mut model).options(options.clone()).run().unwrap().swap_remove(column);

    // A score is the mean squared difference that a person would compute with two forward passes.
    let id = scores.table().layers()[3].id.clone();
    let (x4, t4, cond4) = (x.narrow(0, 0, 4), t.narrow(0, 0, 4), cond.narrow(0, 4));
    let whole = unet.forward(&x4, &t4, &cond4).unwrap();
    let single = RemovalSet::single(id.clone());
    let without = unet.forward_with(&x4, &t4, &cond4, &ForwardOptions { ablated: &single, taps: &TapSet::none() }).unwrap().sample;
    // Both passes have the scores' batch, so that only the order of this sum differs, which is in double.
    let by_hand = (without.to_kind(Kind::Double) - whole.to_kind(Kind::Double)).square().mean(Kind::Double).double_value(&[]);
    let scored = scores.value(id.as_str()).unwrap();
    assert!((by_hand - scored).abs() <= 1e-5 * by_hand, "{by_hand} by hand, {scored} scored");

    // The plan meets its budget and costs what it says; no layer less, and no single swap that meets it too, loses less.
    let budget = Budget::params_ratio(0.5);
    let required = budget.required(&table).unwrap();
    let plan = solve(&scores, &budget, &Constraints::none()).unwrap();
    let set = plan.removal_set();
    assert!(table.removed_cost(&set, Cost::Params).unwrap() >= required);
    let kept: Vec<_> = table.layers().iter().map(|layer| &layer.id).filter(|id| !set.contains(id.as_str())).collect();
    let mut swaps = 0;
    for out in set.iter() {
        let rest: RemovalSet = set.iter().filter(|id| *id != out).cloned().collect();
        for other in std::iter::once(None).chain(kept.iter().map(Some)) {
            let swapped: RemovalSet = rest.iter().chain(other.copied()).cloned().collect();
            if table.removed_cost(&swapped, Cost::Params).unwrap() >= required {
                let predicted = scores.predicted(&swapped).unwrap();
                assert!(predicted >= plan.predicted.unwrap() * (1.0 - 1e-12), "{predicted} with {other:?} for {out}");
                swaps += 1;
            }
        }
    }
    assert!(swaps > 50, "{swaps} swaps meet the budget");

    // What is measured together on other samples is what the pruned network gives.
    let joint = model.evaluate(&set, 4..6).unwrap();
    let pruned = unet.prune(&set).unwrap();
    assert_eq!(pruned.num_parameters(), table.total_params() - plan.removed_cost(Cost::Params));
    let (x2, t2, cond2) = (x.narrow(0, 4, 2), t.narrow(0, 4, 2), cond.narrow(4, 2));
    let predict = |unet: &UNet| unet.forward(&x2, &t2, &cond2).unwrap().to_kind(Kind::Double);
    let difference = predict(&pruned) - predict(&unet);
    for i in 0..2 {
        let by_hand = difference.get(i).square().mean(Kind::Double).double_value(&[]);
        let measured = joint.row(i as usize)[column];
        assert!((by_hand - measured).abs() <= 1e-5 * by_hand, "{by_hand} by hand, {measured} measured");
    }

    // Saved and opened again it has the same bits.
    let dir = tempfile::tempdir().unwrap();
    pruned.save(dir.path(), None, &Default::default()).unwrap();
    let again = UNet::open(dir.path(), Device::Cpu, Kind::Float).unwrap();
    assert_eq!(again.removed(), pruned.removed());
    assert!(again.forward(&x2, &t2, &cond2).unwrap().equal(&pruned.forward(&x2, &t2, &cond2).unwrap()));
}

#[test]
fn additivity_is_measured_against_the_network_itself() {
    let unet = UNet::open(model(), Device::Cpu, Kind::Float).unwrap();
    let table = table(&unet);
    let (x, t, cond) = inputs(4);
    let data = Calibration::new(x.shallow_clone(), t, cond, Some(x), vec![0; 4]).unwrap();
    let mut model = UNetPasses::new(&unet, table.clone(), data, &[OUTPUT_LOSS, TASK_LOSS_DELTA]).unwrap().ablate(1 << 30).unwrap();
    let options = ScoreOptions::new(0..2).batch(2);
    let all = Scorer::new(&mut model).options(options.clone()).run().unwrap();
    let scores = all.iter().find(|s| s.criterion() == "output_loss").unwrap();
    let sets = draw_removal_sets(&table, &[prune_core::audit::SetSize::Layers(3)], 8, 1).unwrap();
    let measure = prune_core::audit::MeasureOptions::new(2..4).batch(2);
    let measured = measure_sets(&mut model, &sets, &measure).unwrap();
    let audit = audit(scores, "output_loss", &measured).unwrap();
    let pearson = audit.overall.pearson.unwrap();
    // The model and all that is drawn are fixed.
    assert!(pearson > 0.95, "single scores of other samples foretell the loss of sets of three: {pearson}");
}
