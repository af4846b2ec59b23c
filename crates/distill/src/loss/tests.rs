//! Each feature loss on numbers that can be followed by hand.

use tch::Tensor;
use unet::weights::Tensors;

use super::{FeatureLoss, FeatureLossEntry, FeatureLosses, LossConfig, NormScope, feature_terms};
use crate::error::{Error, Result};

fn config(feature_loss: &str, norm_power: u8, norm_scope: NormScope) -> LossConfig {
    LossConfig {
        task_weight: 1.0,
        output_weight: 1.0,
        feature_weight: 1.0,
        feature_loss: feature_loss.into(),
        norm_power,
        norm_scope,
        mask_threshold: 1.3,
        min_snr_gamma: 0.0,
    }
}

fn make(config: &LossConfig) -> Box<dyn FeatureLoss> {
    FeatureLosses::builtin().make(config).unwrap().unwrap()
}

fn value(c: LossConfig, t: &[f32], s: &[f32]) -> f64 {
    let shape = [2, t.len() as i64 / 2];
    let teacher = Tensors::from([("mid_block".to_string(), Tensor::from_slice(t).view(shape))]);
    let student = Tensors::from([("mid_block".to_string(), Tensor::from_slice(s).view(shape))]);
    feature_terms(make(&c).as_mut(), &teacher, &student).unwrap()[0].1.double_value(&[])
}

// By hand: squared errors (1, 0 | 4, 4), teacher squares (1, 9 | 4, 16).
const T: [f32; 4] = [1.0, 3.0, 2.0, 4.0];
const S: [f32; 4] = [2.0, 3.0, 4.0, 2.0];

#[test]
fn terms_follow_their_formulas() {
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    near(value(config("plain", 2, NormScope::Batch), &T, &S), 9.0 / 4.0);
    near(value(config("normalized", 2, NormScope::Batch), &T, &S), (9.0 / 4.0) / (30.0 / 4.0));
    near(value(config("normalized", 1, NormScope::Batch), &T, &S), (9.0 / 4.0) / (30.0f64 / 4.0).sqrt());
    near(value(config("normalized", 2, NormScope::Sample), &T, &S), (0.5 / 5.0 + 4.0 / 10.0) / 2.0);
}

#[test]
fn normalized_terms_do_not_depend_on_the_scale_of_a_feature() {
    let big = |x: &[f32]| x.iter().map(|v| v * 50.0).collect::<Vec<_>>();
    for scope in [NormScope::Sample, NormScope::Batch, NormScope::Running] {
        let a = value(config("normalized", 2, scope), &T, &S);
        let b = value(config("normalized", 2, scope), &big(&T), &big(&S));
        assert!((a - b).abs() < 1e-6 * a.abs(), "{scope:?}: {a} against {b}");
    }
}

#[test]
fn masked_terms_leave_out_what_is_large_in_the_teacher() {
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    // Root mean squares: sqrt(5) and sqrt(10) of the samples, sqrt(7.5) of the batch; 3 and 4 exceed 1.3 times the first (2.907)
    // and the last (3.560), 4 not 1.3 times the second (4.111).
    near(value(config("masked", 2, NormScope::Sample), &T, &S), (1.0 / 1.0 + 4.0 / 10.0) / 2.0);
    near(value(config("masked", 2, NormScope::Batch), &T, &S), (5.0 / 3.0) / (14.0 / 3.0));
    near(value(config("masked", 1, NormScope::Batch), &T, &S), (5.0 / 3.0) / (14.0f64 / 3.0).sqrt());
    near(value(config("masked", 2, NormScope::Running), &T, &S), (5.0 / 3.0) / (14.0 / 3.0));
    // With a threshold that nothing exceeds it is the normalized loss.
    for scope in [NormScope::Sample, NormScope::Batch] {
        let all = LossConfig { mask_threshold: 10.0, ..config("masked", 2, scope) };
        near(value(all, &T, &S), value(config("normalized", 2, scope), &T, &S));
    }
}

#[test]
fn direction_terms_compare_the_channels_of_each_position() {
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    // Cosines of (1, 3), (2, 3) and of (2, 4), (4, 2).
    let expected = 1.0 - (11.0 / 130f64.sqrt() + 16.0 / 20.0) / 2.0;
    near(value(config("direction", 2, NormScope::Sample), &T, &S), expected);
    // Two positions of two channels, as an image and as tokens.
    let direction = |t: &Tensor, s: &Tensor| make(&config("direction", 2, NormScope::Sample)).term("", t, s).unwrap();
    let (t, s) = (Tensor::from_slice(&T).view([2, 2]), Tensor::from_slice(&S).view([2, 2]));
    near(direction(&t.view([1, 2, 2]), &s.view([1, 2, 2])).double_value(&[]), expected);
    let image = |t: &Tensor| t.transpose(0, 1).reshape([1, 2, 2, 1]);
    near(direction(&image(&t), &image(&s)).double_value(&[]), expected);
    near(direction(&(&t * 9.0).view([1, 2, 2]), &s.view([1, 2, 2])).double_value(&[]), expected);
}

#[test]
fn running_norms_move_once_per_step_by_the_mean_of_all() {
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    let mut loss = make(&config("normalized", 2, NormScope::Running));
    let loss = loss.as_mut();
    let tap = |x: &[f32]| Tensors::from([("mid_block".to_string(), Tensor::from_slice(x).view([2, 2]))]);
    let term = |loss: &mut dyn FeatureLoss, t: &[f32]| feature_terms(loss, &tap(t), &tap(&S)).unwrap()[0].1.double_value(&[]);
    let twice: Vec<f32> = T.iter().map(|x| x * 2.0).collect();
    // Errors of 2 T against S: (0, 9, 0, 36). Mean squares 7.5 and 30; nothing is known before the first step ends.
    near(term(loss, &T), (9.0 / 4.0) / 7.5);
    near(term(loss, &twice), (45.0 / 4.0) / 30.0);
    let mut other_rank = |norms: &mut [f64]| {
        near(norms[0], (7.5 + 30.0) / 2.0);
        norms[0] += 1.25;
        Ok(())
    };
    loss.end_step(&mut other_rank).unwrap();
    near(term(loss, &T), (9.0 / 4.0) / 20.0);
    near(loss.state()["mid_block"].double_value(&[]), 20.0);
    loss.end_step(&mut |_| Ok(())).unwrap();
    near(loss.state()["mid_block"].double_value(&[]), 20.0 * 0.99 + 7.5 * 0.01);
    // What is not finite leaves no trace; without a norm there is nothing to average.
    term(loss, &[f32::NAN; 4]);
    loss.end_step(&mut |_| Ok(())).unwrap();
    near(loss.state()["mid_block"].double_value(&[]), 20.0 * 0.99 + 7.5 * 0.01);
    loss.end_step(&mut |_| panic!("nothing to average")).unwrap();
}

#[test]
fn a_missing_tap_is_named() {
    let teacher = Tensors::from([("mid_block".to_string(), Tensor::from_slice(&T))]);
    let err = feature_terms(make(&config("plain", 2, NormScope::Batch)).as_mut(), &teacher, &Tensors::new()).unwrap_err();
    assert!(matches!(err, Error::Tap { tap, .. } if tap == "mid_block"));
}

/// `E|f_T - f_S|`.
struct Absolute;

impl FeatureLoss for Absolute {
    fn term(&mut self, _: &str, teacher: &Tensor, student: &Tensor) -> Result<Tensor> {
        Ok((teacher - student).abs().mean(tch::Kind::Float))
    }
}

#[test]
fn a_loss_from_outside_is_found_by_its_name_and_unknown_names_are_told() {
    let mut c = config("absolute", 2, NormScope::Batch);
    let err = FeatureLosses::builtin().make(&c).map(|_| ()).unwrap_err().to_string();
    assert!(err.contains("losses.feature_loss") && err.contains("normalized") && err.contains("`absolute`"), "{err}");
    let own = FeatureLossEntry::new("absolute", "absolute differences", "Absolute differences", |_| Some(Box::new(Absolute)));
    let losses = FeatureLosses::builtin().with(own);
    let mut loss = losses.make(&c).unwrap().unwrap();
    let (t, s) = (Tensor::from_slice(&T), Tensor::from_slice(&S));
    assert_eq!(loss.term("mid_block", &t, &s).unwrap().double_value(&[]), 5.0 / 4.0);
    c.feature_loss = "none".into();
    assert!(losses.make(&c).unwrap().is_none());
}
