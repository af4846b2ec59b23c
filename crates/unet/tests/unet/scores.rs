//! Criteria: output loss and task loss against their definitions, magnitude, and Taylor against a finite difference.

use prune_core::score::AblateError;
use prune_core::score::{LossDeltas, ScoreOptions};
use prune_core::{Ablate, LayerId, LayerTable, RemovalSet, Scorer};
use tch::{Device, Kind, Tensor};
use unet::scoring::{
    Calibration, CustomLoss, MAGNITUDE, OUTPUT_LOSS, RANDOM, ScoringEvent, ScoringOptions, TASK_LOSS_DELTA, UNetPasses, magnitude,
    magnitude_mean, score, score_model, taylor,
};
use unet::weights::{Tensors, Weights};
use unet::{Conditioning, Error, ForwardOptions, TapSet, UNet, layer_table};

use crate::support::Fixture;

const SAMPLES: usize = 5;

/// Five samples made of the fixture's two, and another network's prediction as target.
fn calibration(f: &Fixture) -> Calibration {
    let (x, t, cond, target) = tensors(f);
    Calibration::new(x, t, cond, Some(target), vec![0, 0, 1, 1, 2]).unwrap()
}

fn tensors(f: &Fixture) -> (Tensor, Tensor, Conditioning, Tensor) {
    let index = Tensor::from_slice(&[0i64, 1, 0, 1, 0]);
    let scale = Tensor::from_slice(&[1.0f32, 1.0, 0.5, 0.5, -1.0]).view([5, 1, 1, 1]);
    let x = f.input("sample").index_select(0, &index) * &scale;
    let target = f.cases["removed.0"].index_select(0, &index) * &scale;
    let t = Tensor::from_slice(&[1.0f32, 200.0, 400.0, 600.0, 999.0]);
    (x, t, f.cond().index_select(&index), target)
}

/// Output loss, and the task loss after and before the removal, of each sample, all in double.
fn by_definition(f: &Fixture, removed: &RemovalSet) -> Vec<(f64, f64, f64)> {
    let (x, t, cond, target) = tensors(f);
    let unet = f.unet.to(Device::Cpu, Kind::Double).unwrap();
    let run = |removed: &RemovalSet, i: i64| {
        let options = ForwardOptions { ablated: removed, taps: &TapSet::none() };
        tch::no_grad(|| unet.forward_with(&x.narrow(0, i, 1), &t.narrow(0, i, 1), &cond.narrow(i, 1), &options)).unwrap().sample
    };
    let loss = |a: &Tensor, b: &Tensor| (a - b).square().mean(Kind::Double).double_value(&[]);
    (0..SAMPLES as i64)
        .map(|i| {
            let (ablated, original, target) = (run(removed, i), run(&RemovalSet::empty(), i), target.narrow(0, i, 1));
            assert!(ablated.kind() == Kind::Double && original.kind() == Kind::Double);
            (loss(&ablated, &original), loss(&ablated, &target), loss(&original, &target))
        })
        .collect()
}

/// How far a mean of squared differences may be off when what is squared is off by this, root mean square: what a pass in f32 loses,
/// whose numbers are of order one and go through some hundred sums. With and without vector instructions it is 2e-7.
fn slack(loss: f64) -> f64 {
    const ROUNDING: f64 = 1e-6;
    2.0 * loss.sqrt() * ROUNDING + ROUNDING * ROUNDING
}

#[test]
fn gaps_are_those_of_the_definition_and_the_cache_changes_no_bit() {
    for f in Fixture::all() {
        let table = layer_table(f.unet.config(), 12, 8).unwrap();
        // No cache, a cache for some batches, a cache for all.
        let caches = [0, 1 << 16, 1 << 30];
        let mut models = caches.map(|cache| {
            UNetPasses::new(&f.unet, table.clone(), calibration(&f), &[OUTPUT_LOSS, TASK_LOSS_DELTA]).unwrap().ablate(cache).unwrap()
        });
        for removed in f.removal_sets() {
            let expected = by_definition(&f, &removed);
            let gaps = models.each_mut().map(|model| model.evaluate(&removed, 0..SAMPLES).unwrap());
            assert!(gaps.iter().all(|g| *g == gaps[0]), "{}: the cache changed bits", f.name);
            for (i, (output, after, before)) in expected.into_iter().enumerate() {
                let got = gaps[0].row(i);
                assert!((got[0] - output).abs() <= slack(output), "{}: {} for {output}", f.name, got[0]);
                // A change is the difference of two losses, so it is as exact as they are.
                let (task, allowed) = (after - before, slack(after) + slack(before));
                assert!((got[1] - task).abs() <= allowed, "{}: {} for {task} of {before}", f.name, got[1]);
            }
        }
        for mut model in models {
            let nothing = model.evaluate(&RemovalSet::empty(), 0..SAMPLES).unwrap();
            assert!((0..SAMPLES).all(|i| nothing.row(i) == [0.0, 0.0]));
        }
    }
}

#[test]
fn scoring_covers_every_layer() {
    let f = Fixture::open("sdxl");
    let table = layer_table(f.unet.config(), 12, 8).unwrap();
    let options = ScoreOptions::new(0..SAMPLES).batch(2).seed(1);
    let run = |cache| {
        let mut model =
            UNetPasses::new(&f.unet, table.clone(), calibration(&f), &[OUTPUT_LOSS, TASK_LOSS_DELTA]).unwrap().ablate(cache).unwrap();
        Scorer::new(&mut model).options(options.clone()).run().unwrap()
    };
    let scores = run(1 << 30);
    assert_eq!(scores, run(0));
    assert_eq!(scores.iter().map(|s| s.criterion()).collect::<Vec<_>>(), ["output_loss", "task_loss_delta"]);
    assert!(scores.iter().all(|s| s.is_complete() && s.bins() == [0, 0, 1, 1, 2]));
    assert!(scores[0].values().unwrap().iter().all(|v| *v > 0.0));
}

/// Every removal in a forward pass of its own, from the noisy sample on.
struct Naive<'a> {
    f: &'a Fixture,
    table: LayerTable,
    criteria: [String; 1],
    passes: f64,
}

impl Ablate for Naive<'_> {
    type Error = Error;

    fn table(&self) -> &LayerTable {
        &self.table
    }

    fn criteria(&self) -> Vec<String> {
        self.criteria.to_vec()
    }

    fn num_samples(&self) -> usize {
        SAMPLES
    }

    fn sample_bin(&self, _: usize) -> u32 {
        0
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: std::ops::Range<usize>) -> Result<LossDeltas, Error> {
        let (x, t, cond, _) = tensors(self.f);
        let (start, n) = (samples.start as i64, samples.len() as i64);
        let run = |removed: &RemovalSet| {
            let options = ForwardOptions { ablated: removed, taps: &TapSet::none() };
            let (x, t, cond) = (x.narrow(0, start, n), t.narrow(0, start, n), cond.narrow(start, n));
            tch::no_grad(|| self.f.unet.forward_with(&x, &t, &cond, &options)).map(|out| out.sample.to_kind(Kind::Double))
        };
        self.passes += n as f64;
        let gap = (run(removed)? - run(&RemovalSet::empty())?).square().flatten(1, -1).mean_dim(1, false, Kind::Double);
        Ok(LossDeltas::new(1, Vec::<f64>::try_from(gap)?)?)
    }
}

/// The walk over shared prefixes gives the bits of the naive loop, for single layers and for sets, with less work.
#[test]
fn sharing_changes_no_bit_and_saves_passes() {
    for f in Fixture::all() {
        let table = layer_table(f.unet.config(), 12, 8).unwrap();
        let options = ScoreOptions::new(0..SAMPLES).batch(2);
        let mut naive = Naive { f: &f, table: table.clone(), criteria: ["output_loss".into()], passes: 0.0 };
        let expected = Scorer::new(&mut naive).options(options.clone()).run().unwrap();
        let mut shared =
            UNetPasses::new(&f.unet, table.clone(), calibration(&f), &[OUTPUT_LOSS, TASK_LOSS_DELTA]).unwrap().ablate(1 << 30).unwrap();
        let scores = Scorer::new(&mut shared).options(options.clone()).run().unwrap();
        for id in table.layers().iter().map(|layer| layer.id.as_str()) {
            assert_eq!(scores[0].layer(id).unwrap().samples(), expected[0].layer(id).unwrap().samples(), "{}: {id}", f.name);
        }
        assert!(shared.forwards() <= 0.7 * naive.passes, "{}: {} of {} passes", f.name, shared.forwards(), naive.passes);
        for set in f.removal_sets() {
            assert_eq!(shared.evaluate(&set, 0..2).unwrap().row(1)[0], naive.evaluate(&set, 0..2).unwrap().row(1)[0], "{}", f.name);
        }
    }
}

#[test]
fn a_removed_layer_has_no_further_effect() {
    let f = Fixture::open("sd15");
    let id = LayerId::from("mid_block.resnets.1");
    let pruned = f.unet.prune(&RemovalSet::single(id.clone())).unwrap();
    let table = layer_table(f.unet.config(), 12, 8).unwrap();
    let mut model = UNetPasses::new(&pruned, table, calibration(&f), &[OUTPUT_LOSS, TASK_LOSS_DELTA]).unwrap().ablate(1 << 30).unwrap();
    let gaps = model.evaluate(&RemovalSet::single(id), 0..SAMPLES).unwrap();
    assert!((0..SAMPLES).all(|i| gaps.row(i) == [0.0, 0.0]));
}

#[test]
fn magnitude_is_the_sum_of_squares_of_what_goes() {
    let f = Fixture::open("rare");
    let table = layer_table(f.unet.config(), 12, 8).unwrap();
    let (sum, mean) = (magnitude(&f.unet, &table).unwrap(), magnitude_mean(&f.unet, &table).unwrap());
    assert_eq!((sum.criterion(), mean.criterion()), ("magnitude", "magnitude_mean"));
    let square = |t: &Tensor| t.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
    let squares = |u: &UNet| -> f64 { u.parameters().values().map(square).sum() };
    for layer in table.layers() {
        let pruned = f.unet.prune(&RemovalSet::single(layer.id.clone())).unwrap();
        // A pruned Transformer2D with a single branch loses its shell too, which is no part of the branch.
        if f.unet.num_parameters() - pruned.num_parameters() != layer.params {
            continue;
        }
        let expected = squares(&f.unet) - squares(&pruned);
        let (sum, mean) = (sum.value(layer.id.as_str()).unwrap(), mean.value(layer.id.as_str()).unwrap());
        assert!((sum - expected).abs() <= 1e-9 * expected.max(1.0), "{}: {sum} for {expected}", layer.id);
        assert!((mean - sum / layer.params as f64).abs() <= 1e-12 * sum);
    }
}

/// The directional derivative of the loss along a layer's own weights, by central difference.
#[test]
fn taylor_is_the_derivative_along_the_layers_weights() {
    let f = Fixture::open("sdxl");
    let table = layer_table(f.unet.config(), 12, 8).unwrap();
    let mut seen = Vec::new();
    let scores = taylor(&f.unet, &table, &calibration(&f), &mut |done, all| {
        seen.push((done, all));
        Ok::<_, Error>(())
    })
    .unwrap();
    assert_eq!(seen.last(), Some(&(SAMPLES, SAMPLES)));
    assert!(f.unet.parameters().values().all(|t| !t.requires_grad()), "the caller's tensors are left alone");
    assert!(scores.is_complete());

    let (x, t, cond, target) = tensors(&f);
    for id in ["down_blocks.1.resnets.0", "mid_block.attentions.0.transformer_blocks.1.ff", "up_blocks.2.resnets.2"] {
        let prefixes = f.unet.layout().owned_prefixes(&id.into()).unwrap();
        let loss = |scale: f64, i: i64| {
            let own = |key: &str| prefixes.iter().any(|p| key.starts_with(p.as_str()));
            // Scaled in double: rounded to f32, weights that differ by h of themselves would carry an error of 2^-24 / h.
            let scaled = |(k, w): (&String, &Tensor)| (k.clone(), w.to_kind(Kind::Double) * if own(k) { scale } else { 1.0 });
            let tensors: Tensors = f.unet.parameters().iter().map(scaled).collect();
            let net = UNet::from_weights(f.unet.config(), Weights::from_tensors(tensors), &RemovalSet::empty()).unwrap();
            let out = net.forward(&x.narrow(0, i, 1), &t.narrow(0, i, 1), &cond.narrow(i, 1)).unwrap();
            (out - target.narrow(0, i, 1)).square().mean(Kind::Double).double_value(&[])
        };
        for (i, got) in scores.layer(id).unwrap().samples().iter().enumerate() {
            let h = 1e-4;
            let expected = ((loss(1.0 + h, i as i64) - loss(1.0 - h, i as i64)) / (2.0 * h)).abs();
            // The gradient is in f32: 4e-6 off at most, with and without vector instructions. The quotient's own error is h^2, 1e-8.
            assert!((got - expected).abs() <= 3e-5 * expected.max(1e-2), "{id}: {got} for {expected}");
        }
    }
}

#[test]
fn taylor_in_f16_keeps_gradients_that_f16_cannot_hold() {
    let f = Fixture::open("sdxl");
    let table = layer_table(f.unet.config(), 12, 8).unwrap();
    let (x, t, cond, _) = tensors(&f);
    let half = f.unet.to(Device::Cpu, Kind::Half).unwrap();
    // Many elements and a prediction that is nearly right: the gradients of its loss are smaller than most numbers of f16.
    let (x, t, cond) = (x.narrow(0, 0, 1).repeat([1, 1, 8, 8]), t.narrow(0, 1, 1), cond.narrow(0, 1));
    let out = tch::no_grad(|| half.forward(&x, &t, &cond)).unwrap().to_kind(Kind::Float);
    let sign = Tensor::from_slice(&[1.0f32, -1.0]).repeat([out.numel() as i64 / 2]).view_as(&out);
    let data = || Calibration::new(x.shallow_clone(), t.shallow_clone(), cond.shallow_clone(), Some(&out + 0.02 * &sign), vec![0]).unwrap();
    let exact = taylor(&half.to(Device::Cpu, Kind::Float).unwrap(), &table, &data(), &mut |_, _| Ok::<_, Error>(())).unwrap();
    let rounded = taylor(&half, &table, &data(), &mut |_, _| Ok::<_, Error>(())).unwrap();
    let largest = exact.values().unwrap().into_iter().fold(0.0, f64::max);
    for (id, (a, b)) in table.layers().iter().map(|l| &l.id).zip(exact.values().unwrap().iter().zip(rounded.values().unwrap())) {
        assert!((a - b).abs() <= 0.06 * largest, "{id}: {b} for {a}, of at most {largest}");
    }
}

#[test]
fn calibration_of_unequal_lengths_and_foreign_tables_are_refused() {
    let f = Fixture::open("sd15");
    let (x, t, cond, target) = tensors(&f);
    let err =
        Calibration::new(x.shallow_clone(), t.narrow(0, 0, 4), cond.shallow_clone(), Some(target.shallow_clone()), vec![0; 5]).unwrap_err();
    assert!(matches!(err, Error::Input { name, .. } if name == "timesteps"));
    let err = Calibration::new(x, t, cond, Some(target), vec![0; 4]).unwrap_err();
    assert!(matches!(err, Error::Input { name, .. } if name == "bins"));
    let foreign = layer_table(Fixture::open("sdxl").unet.config(), 8, 8).unwrap();
    assert!(matches!(UNetPasses::new(&f.unet, foreign, calibration(&f), &[OUTPUT_LOSS, TASK_LOSS_DELTA]), Err(Error::Layer { .. })));
    let table = layer_table(f.unet.config(), 8, 8).unwrap();
    let mut model = UNetPasses::new(&f.unet, table, calibration(&f), &[OUTPUT_LOSS, TASK_LOSS_DELTA]).unwrap().ablate(0).unwrap();
    assert!(matches!(model.evaluate(&RemovalSet::empty(), 3..6), Err(Error::Input { .. })));
}

#[test]
fn a_prediction_that_is_not_finite_is_an_error() {
    let f = Fixture::open("nomid");
    let (x, t, cond, target) = tensors(&f);
    let data = Calibration::new(x * f64::INFINITY, t, cond, Some(target), vec![0; 5]).unwrap();
    let table = layer_table(f.unet.config(), 8, 8).unwrap();
    let id = table.layers()[0].id.clone();
    let mut model = UNetPasses::new(&f.unet, table, data, &[OUTPUT_LOSS, TASK_LOSS_DELTA]).unwrap().ablate(0).unwrap();
    assert!(matches!(model.evaluate(&RemovalSet::single(id), 0..2), Err(Error::NotFinite { .. })));
}

#[test]
fn a_criterion_of_a_callers_own_scores_like_one_of_ours() {
    let f = &Fixture::all().next().unwrap();
    let table = layer_table(f.unet.config(), 12, 8).unwrap();
    let (x, t, cond, target) = tensors(f);
    // The task loss again, by a function that knows nothing of this crate's own.
    let loss = |unet: &UNet, samples: std::ops::Range<usize>| -> unet::Result<Vec<f64>> {
        let part = |t: &Tensor| t.narrow(0, samples.start as i64, samples.len() as i64);
        let cond = cond.narrow(samples.start as i64, samples.len() as i64);
        let out = tch::no_grad(|| unet.forward(&part(&x), &part(&t), &cond))?;
        let squares = (out.to_kind(Kind::Double) - part(&target).to_kind(Kind::Double)).square();
        Ok(Vec::<f64>::try_from(squares.flatten(1, -1).mean_dim(1, false, Kind::Double))?)
    };
    let dir = tempfile::tempdir().unwrap();
    let mut options = ScoringOptions::default();
    (options.out, options.batch) = (Some(dir.path().into()), 2);
    let mut own = CustomLoss::new(&f.unet, &table, "my_loss", SAMPLES, loss);
    let own = score_model(&mut own, &options, &mut |_| Ok::<_, AblateError<Error>>(())).unwrap().remove(0);
    let ours = score(&f.unet, &table, Some(&calibration(f)), &[TASK_LOSS_DELTA], &options, &mut |_| Ok::<_, Error>(())).unwrap().remove(0);
    for layer in table.layers() {
        let value = |scores: &prune_core::Scores| scores.layer(layer.id.as_str()).unwrap().value();
        assert!((value(&own) - value(&ours)).abs() <= 1e-6 * value(&ours).abs().max(1e-3), "{}", layer.id);
    }
    assert_eq!(prune_core::Scores::read_for(&dir.path().join("my_loss.json"), &table).unwrap(), own);
    let mut short = CustomLoss::new(&f.unet, &table, "short", SAMPLES, |_: &UNet, _| -> unet::Result<Vec<f64>> { Ok(vec![0.0]) });
    assert!(matches!(short.evaluate(&RemovalSet::empty(), 0..2), Err(Error::Criterion { .. })));
}

#[test]
fn a_run_goes_on_from_its_files_and_needs_samples_only_where_a_criterion_does() {
    let f = &Fixture::all().next().unwrap();
    let table = layer_table(f.unet.config(), 12, 8).unwrap();
    let whole =
        score(&f.unet, &table, Some(&calibration(f)), &[OUTPUT_LOSS], &ScoringOptions::default(), &mut |_| Ok::<_, Error>(())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut options = ScoringOptions::default();
    options.out = Some(dir.path().into());
    // Stopped after some layers, by the callback.
    let stop = &mut |event: ScoringEvent<'_>| match event {
        ScoringEvent::Progress { done: 4.., .. } => Err(Error::Core(prune_core::Error::Stopped)),
        _ => Ok(()),
    };
    let stopped = score(&f.unet, &table, Some(&calibration(f)), &[OUTPUT_LOSS], &options, stop).unwrap_err();
    assert!(matches!(stopped, Error::Core(prune_core::Error::Stopped)), "{stopped}");
    let mut calls = 0;
    let again = score(&f.unet, &table, Some(&calibration(f)), &[OUTPUT_LOSS], &options, &mut |event| {
        calls += usize::from(matches!(event, ScoringEvent::Progress { .. }));
        Ok::<_, Error>(())
    });
    assert_eq!(again.unwrap(), whole);
    assert!(calls < table.len(), "{calls} of {}", table.len());

    let without = score(&f.unet, &table, None, &[RANDOM, MAGNITUDE], &ScoringOptions::default(), &mut |_| Ok::<_, Error>(())).unwrap();
    assert_eq!(without.iter().map(|s| s.criterion()).collect::<Vec<_>>(), [MAGNITUDE, RANDOM]);
    assert_eq!(without[0], magnitude(&f.unet, &table).unwrap());
    for (criteria, word) in
        [(&["taylor"][..], "needs a calibration set"), (&["output_los"], "did you mean `output_loss`"), (&["clip_score"], "images")]
    {
        let error =
            score(&f.unet, &table, None, criteria, &ScoringOptions::default(), &mut |_| Ok::<_, Error>(())).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn without_targets_only_losses_against_the_network_itself_are_measured() {
    let f = &Fixture::all().next().unwrap();
    let table = layer_table(f.unet.config(), 12, 8).unwrap();
    let (x, t, cond, _) = tensors(f);
    let data = Calibration::new(x, t, cond, None, vec![0; SAMPLES]).unwrap();
    for criterion in [TASK_LOSS_DELTA, "taylor"] {
        let error = score(&f.unet, &table, Some(&data), &[criterion], &ScoringOptions::default(), &mut |_| Ok::<_, Error>(())).unwrap_err();
        assert!(error.to_string().contains("prompts alone"), "{error}");
    }
    let own = score(&f.unet, &table, Some(&data), &[OUTPUT_LOSS], &ScoringOptions::default(), &mut |_| Ok::<_, Error>(())).unwrap();
    let with =
        score(&f.unet, &table, Some(&calibration(f)), &[OUTPUT_LOSS], &ScoringOptions::default(), &mut |_| Ok::<_, Error>(())).unwrap();
    let values = |scores: &[prune_core::Scores]| scores[0].values().unwrap();
    assert_eq!(values(&own), values(&with));
}
