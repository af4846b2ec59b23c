//! The claims of the paper, judged on made-up results.

use eval::Verdict;
use prune_core::audit::Audit;
use report::{Outcome, PlanRow, Results, assess};

use crate::run;

#[test]
fn a_refinement_that_found_nothing_is_not_counted_twice() {
    let (_dir, mut results) = run();
    let evidence = |r: &Results| assess(r).into_iter().find(|c| c.id == "best-criterion").unwrap().evidence;
    let before = evidence(&results);
    let own = results.plans.iter().find(|p| p.method() == "exact" && p.criterion() == Some(results.criteria[0].id())).unwrap();
    let again = PlanRow { name: "refined".into(), ..own.clone() };
    results.plans.push(again);
    assert_eq!(evidence(&results), before);
}

/// The audit of the paper's criterion.
fn audit(results: &mut Results) -> &mut Audit {
    &mut results.audit.as_mut().unwrap().file.audits[0]
}

fn outcome(results: &Results, id: &str) -> Outcome {
    assess(results).into_iter().find(|c| c.id == id).unwrap().outcome
}

#[test]
fn claims_follow_their_rules_in_both_directions() {
    let (_dir, mut r) = run();
    assert_eq!(outcome(&r, "additivity-rank"), Outcome::Held);
    audit(&mut r).overall.spearman = Some(0.75);
    assert_eq!(outcome(&r, "additivity-rank"), Outcome::Partly);
    audit(&mut r).overall.pearson = Some(0.2);
    assert_eq!(outcome(&r, "additivity-rank"), Outcome::Failed);

    assert_eq!(outcome(&r, "additivity-size"), Outcome::Held);
    audit(&mut r).strata.get_mut("params_ratio=0.5").unwrap().slope = Some(2.0);
    assert_eq!(outcome(&r, "additivity-size"), Outcome::Partly);

    // The sum is judged where plans are chosen: there another set may lose clearly less than the plan, or more than predicted.
    for (id, broken) in [("additivity-rank", true), ("additivity-size", false)] {
        let (_dir, mut r) = run();
        let near = |r: &Results| {
            let sets = &r.audit.as_ref().unwrap().file.sets;
            (0..sets.len()).filter(|set| sets[*set].stratum == "near_optimal=0.5").collect::<Vec<_>>()
        };
        let sets = near(&r);
        if broken {
            audit(&mut r).measured[sets[0]] += 1.0;
        } else {
            audit(&mut r).strata.get_mut("near_optimal=0.5").unwrap().slope = Some(7.5);
        }
        assert_eq!(outcome(&r, id), Outcome::Partly);
        assert!(assess(&r).into_iter().any(|c| c.id == id && c.evidence.contains("0.5")));
        // Beyond the ratios of the run's plans it does not count.
        r.plans.retain(|plan| plan.ratio < 0.4);
        assert_eq!(outcome(&r, id), Outcome::Held);
        // Where no near-optimal set was measured, nothing is held.
        let file = &mut r.audit.as_mut().unwrap().file;
        file.sets.iter_mut().for_each(|set| set.stratum = set.stratum.replace("near_optimal", "params_ratio"));
        file.audits[0].strata.retain(|name, _| name.starts_with("params"));
        assert_eq!(outcome(&r, id), Outcome::Partly);
    }

    let own = |p: &&mut PlanRow| p.criterion() == Some("output_loss");
    r.plans.iter_mut().filter(own).for_each(|p| p.joint.as_mut().unwrap().mean = 1e-3);
    assert_eq!(outcome(&r, "best-criterion"), Outcome::Held);
    r.plans.iter_mut().filter(own).for_each(|p| p.joint.as_mut().unwrap().mean = 9.0);
    assert_eq!(outcome(&r, "best-criterion"), Outcome::Failed);
    r.plans.iter_mut().filter(own).take(1).for_each(|p| p.joint.as_mut().unwrap().mean = 1e-3);
    assert_eq!(outcome(&r, "best-criterion"), Outcome::Partly);

    assert_eq!(outcome(&r, "imbalance"), Outcome::Held);
    let plain = r.distillations.iter().position(|d| d.losses.feature_loss == "plain").unwrap();
    r.distillations[plain].curve.iter_mut().for_each(|p| p.terms.fill(1.0));
    assert_eq!(outcome(&r, "imbalance"), Outcome::Failed);

    r.comparisons.iter_mut().for_each(|c| c.verdict = Verdict::NotShown);
    assert_eq!(outcome(&r, "normalized-beats-plain"), Outcome::Open);
    r.comparisons[0].verdict = Verdict::Worse;
    assert_eq!(outcome(&r, "normalized-beats-plain"), Outcome::Failed);
    r.comparisons[1].verdict = Verdict::Better;
    assert_eq!(outcome(&r, "normalized-beats-plain"), Outcome::Partly);

    let student = r.unets.iter_mut().find(|u| u.name == "normalized").unwrap();
    student.metrics[0].decline.as_mut().unwrap().high = 0.039;
    assert_eq!(outcome(&r, "small-decline"), Outcome::Held);
}
