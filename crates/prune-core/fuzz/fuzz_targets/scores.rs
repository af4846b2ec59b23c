//! Any bytes as `scores.json`: an error, or scores that every later stage takes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prune_core::{Budget, Constraints, Scores, solve};
use prune_core::score::{BinWeights, Population, certify, merge_scores, weigh_bins};

fuzz_target!(|data: &[u8]| {
    let Ok(scores) = Scores::from_json(data) else { return };
    let text = scores.to_json().expect("accepted scores can be written");
    assert_eq!(Scores::from_json(text.as_bytes()).expect("and read again"), scores);
    let budget = Budget::params_ratio(0.5);
    if let Ok(plan) = solve(&scores, &budget, &Constraints::none()) {
        plan.check(scores.table()).expect("a plan of accepted scores is valid");
        let _ = certify(&scores, &budget, &Constraints::none(), 0.05, Population::Expectation);
    }
    let _ = weigh_bins(&scores, &BinWeights::Early);
    if let Ok(merged) = merge_scores(std::slice::from_ref(&scores)) {
        assert_eq!(merged, scores);
    }
});
