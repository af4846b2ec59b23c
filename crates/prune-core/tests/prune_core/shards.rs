//! Scoring in parts and weighting by bin: the parts make the whole to the byte, and weights do what they say.

use crate::support;
use std::collections::{BTreeMap, BTreeSet};

use crate::support::network::{Network, Plain};
use crate::support::{ClosedForm, id};
use prune_core::score::{BinWeights, LayerScore, PrefixCached, ScoreOptions, ScoresParts, Shard, merge_scores, weigh_bins};
use prune_core::{Ablate, Error, LayerId, Scorer, Scores};

const SAMPLES: usize = 22;

fn options(samples: std::ops::Range<usize>) -> ScoreOptions {
    ScoreOptions::new(samples).batch(4).seed(9).setting("steps", 3)
}

fn whole() -> Scores {
    Scorer::new(&mut Plain(Network::new(6, SAMPLES, 2))).options(options(0..SAMPLES)).run().unwrap().remove(0)
}

/// The file of one process.
fn part(samples: std::ops::Range<usize>, layers: &[LayerId]) -> Scores {
    let mut model = PrefixCached::new(Network::new(6, SAMPLES, 2), 100, 8).unwrap();
    let scores = Scorer::new(&mut model).layers(layers.iter().cloned()).options(options(samples)).run().unwrap().remove(0);
    Scores::from_json(scores.to_json().unwrap().as_bytes()).unwrap()
}

#[test]
fn shards_of_samples_and_of_layers_merge_to_the_file_of_one_process() {
    let expected = whole();
    let all: Vec<LayerId> = expected.table().layers().iter().map(|layer| layer.id.clone()).collect();
    for count in [1, 2, 3, 6] {
        let shards = || (0..count).map(|index| Shard::new(index, count).unwrap());
        let of_samples: Vec<Scores> = shards().map(|shard| part(shard.samples(0..SAMPLES, 4).unwrap(), &all)).collect();
        let of_layers: Vec<Scores> = shards().map(|shard| part(0..SAMPLES, &shard.layers(expected.table()))).collect();
        for mut shards in [of_samples, of_layers] {
            assert_eq!(merge_scores(&shards).unwrap().to_json().unwrap(), expected.to_json().unwrap());
            shards.reverse();
            assert_eq!(merge_scores(&shards).unwrap(), expected);
        }
    }
    // Both ways at once.
    let (even, odd) = (Shard::new(0, 2).unwrap(), Shard::new(1, 2).unwrap());
    let mut shards = Vec::new();
    for samples in [even, odd] {
        for layers in [even, odd] {
            shards.push(part(samples.samples(0..SAMPLES, 4).unwrap(), &layers.layers(expected.table())));
        }
    }
    assert_eq!(merge_scores(&shards).unwrap(), expected);
}

#[test]
fn shards_cover_everything_once_and_read_as_text() {
    for (all, batch, count) in [(0..22, 4, 3), (5..6, 4, 3), (7..107, 1, 8), (0..usize::MAX, 3, 5), (3..3, 2, 2)] {
        let mut next = all.start;
        for index in 0..count {
            let part = Shard::new(index, count).unwrap().samples(all.clone(), batch).unwrap();
            assert_eq!(part.start, next);
            assert!(part.end == all.end || (part.end - all.start).is_multiple_of(batch));
            next = part.end;
        }
        assert_eq!(next, all.end);
    }
    let shard: Shard = "2/4".parse().unwrap();
    assert_eq!((shard, shard.to_string().as_str()), (Shard::new(1, 4).unwrap(), "2/4"));
    for text in ["0/4", "5/4", "1", "1/0", "a/b", "-1/2", ""] {
        let error = text.parse::<Shard>().unwrap_err();
        assert_eq!(error.to_string(), format!("`shard` is {text}; expected `1/4`, `2/4` and so on"));
    }
    assert!(matches!(Shard::new(4, 4), Err(Error::OutOfRange { key: "shard", .. })));
    assert!(matches!(shard.samples(0..4, 0), Err(Error::OutOfRange { key: "batch", .. })));
}

#[test]
fn shards_that_do_not_fit_are_refused() {
    let expected = whole();
    let all: Vec<LayerId> = expected.table().layers().iter().map(|layer| layer.id.clone()).collect();
    let (first, second) = (part(0..12, &all), part(12..SAMPLES, &all));
    let error =
        |shards: &[&Scores]| merge_scores(&shards.iter().map(|shard| (*shard).clone()).collect::<Vec<_>>()).unwrap_err().to_string();
    assert_eq!(error(&[]), "`shards` is 0; expected at least 1");
    let one = &all[0];
    assert_eq!(error(&[&first, &first, &second]), format!("two shards hold sample 0 of `{one}`; give each shard once"));
    assert_eq!(error(&[&part(0..8, &all), &second]), format!("no shard holds the samples 8..12 of `{one}`; finish and give all shards"));
    assert_eq!(
        error(&[&first, &part(12..SAMPLES, &all[1..])]),
        format!("no shard holds the samples 12..22 of `{one}`; finish and give all shards")
    );
    assert_eq!(error(&[&part(0..SAMPLES, &all[1..])]), format!("no shard holds the samples 0..22 of `{one}`; finish and give all shards"));
    let seed = second.clone().with_settings(Some(8), second.settings().clone());
    assert_eq!(error(&[&first, &seed]), "the shards are not of one run: `seed` is Some(9) in the first, Some(8) in another");
    let settings = second.clone().with_settings(Some(9), BTreeMap::new());
    assert!(error(&[&first, &settings]).starts_with("the shards are not of one run: `settings` is {\"steps\""));
    let mut model = ClosedForm::new(&[1.0], SAMPLES);
    let other = Scorer::new(&mut model).options(options(12..SAMPLES)).run().unwrap().remove(0);
    assert!(error(&[&first, &other]).starts_with("made for model `toy`"));
    let rebinned = Scores::new(ScoresParts {
        table: first.table().clone(),
        criterion: first.criterion().to_owned(),
        seed: first.seed(),
        settings: first.settings().clone(),
        first_sample: 11,
        bins: vec![7],
        layers: BTreeMap::new(),
    })
    .unwrap();
    assert_eq!(error(&[&first, &rebinned]), "the shards are not of one run: `the bin of sample 11` is 3 in the first, 7 in another");
    // Scores that are one number per layer are split by layers only.
    let table = support::table(&[1, 2], &[]);
    let value = |layer: usize| Scores::from_values(&table, "magnitude", [(id(layer), layer as f64)]).unwrap();
    assert_eq!(
        merge_scores(&[value(1), value(0)]).unwrap(),
        Scores::from_values(&table, "magnitude", [(id(0), 0.0), (id(1), 1.0)]).unwrap()
    );
    assert!(matches!(merge_scores(&[value(1), value(1)]), Err(Error::ShardMissing { .. })));
    assert!(matches!(merge_scores(&[value(0), value(0), value(1)]), Err(Error::ShardsOverlap { .. })));
}

/// Two layers; samples in three bins of unequal size.
fn binned() -> Scores {
    let layers = [[1.0, 3.0, 10.0, 20.0, 30.0, 100.0], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]];
    Scores::new(ScoresParts {
        table: support::table(&[1, 2], &[]),
        criterion: "output_loss".to_owned(),
        seed: Some(1),
        settings: BTreeMap::new(),
        first_sample: 4,
        bins: vec![0, 0, 5, 5, 5, 9],
        layers: layers.iter().enumerate().map(|(at, row)| (id(at), LayerScore::from_samples(row.to_vec()).unwrap())).collect(),
    })
    .unwrap()
}

#[test]
fn weights_count_bins_as_asked() {
    // Means of the bins are 2, 20 and 100.
    let custom = |weights: &[(u32, f64)]| BinWeights::Custom(weights.iter().copied().collect());
    for (weights, expected) in [
        (BinWeights::Uniform, 122.0 / 3.0),
        (BinWeights::Early, (0.5 * 2.0 + 20.0 + 1.5 * 100.0) / 3.0),
        (BinWeights::Late, (1.5 * 2.0 + 20.0 + 0.5 * 100.0) / 3.0),
        (BinWeights::Middle, (0.5 * 2.0 + 1.5 * 20.0 + 0.5 * 100.0) / 2.5),
        (custom(&[(0, 0.0), (5, 30.0), (9, 10.0)]), 40.0),
    ] {
        let weighted = weigh_bins(&binned(), &weights).unwrap();
        let value = weighted.value("layers.00").unwrap();
        assert!((value - expected).abs() < 1e-12, "{weights:?}: {value} is not {expected}");
        // A layer that loses the same everywhere scores the same under any weights.
        assert!((weighted.value("layers.01").unwrap() - 2.0).abs() < 1e-12);
        assert_eq!((weighted.samples(), weighted.bins()), (binned().samples(), binned().bins()));
        // The file says which weights were used, and reads back.
        let total: f64 = weighted.settings()["bin_weights"].as_object().unwrap().values().map(|weight| weight.as_f64().unwrap()).sum();
        assert!((total - 1.0).abs() < 1e-12);
        assert_eq!(Scores::from_json(weighted.to_json().unwrap().as_bytes()).unwrap(), weighted);
        let text = serde_json::to_string(&weights).unwrap();
        assert_eq!(serde_json::from_str::<BinWeights>(&text).unwrap(), weights);
    }
    let single = BTreeSet::from([3]);
    for weights in [BinWeights::Uniform, BinWeights::Early, BinWeights::Middle, BinWeights::Late] {
        assert_eq!(weights.resolve(&single).unwrap(), BTreeMap::from([(3, 1.0)]));
    }
}

#[test]
fn bad_weights_are_named() {
    let error =
        |weights: &[(u32, f64)]| weigh_bins(&binned(), &BinWeights::Custom(weights.iter().copied().collect())).unwrap_err().to_string();
    assert_eq!(error(&[(0, 1.0), (5, 1.0)]), "`bin weights` is [0, 5]; expected a weight for each of the bins {0, 5, 9}");
    for bad in [f64::NAN, -1.0, f64::INFINITY] {
        assert!(error(&[(0, 1.0), (5, bad), (9, 1.0)]).ends_with("expected finite weights, none negative and not all 0"));
    }
    assert!(error(&[(0, 0.0), (5, 0.0), (9, 0.0)]).ends_with("not all 0"));
    let table = support::table(&[1], &[]);
    let no_samples = weigh_bins(&support::scores(&table, &[1.0]), &BinWeights::Uniform).unwrap_err().to_string();
    assert_eq!(no_samples, "`bin weights` is none; expected samples in bins");
    let mut few = binned();
    few.insert(id(1), LayerScore::from_samples(vec![1.0, 2.0, 3.0]).unwrap()).unwrap();
    let error = weigh_bins(&few, &BinWeights::Late).unwrap_err().to_string();
    assert_eq!(error, "`layers.01` has no samples in bin 9, so the bin cannot be weighted; measure more samples");
}

#[test]
fn the_models_bins_are_weighted() {
    let scores = whole();
    assert_eq!(scores.bins()[..5], [0, 1, 2, 3, 0]);
    let early = weigh_bins(&scores, &BinWeights::Early).unwrap();
    let layer = &Plain(Network::new(6, SAMPLES, 2)).table().layers()[1].id.clone();
    let means = scores.bin_means(layer.as_str());
    let expected: f64 = means.iter().map(|(bin, mean)| (0.5 + f64::from(*bin) / 3.0) / 4.0 * mean).sum();
    assert!((early.value(layer.as_str()).unwrap() - expected).abs() < 1e-12);
}
