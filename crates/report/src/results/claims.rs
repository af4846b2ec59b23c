//! Which statements of the paper (arXiv 2404.11098) held in this run, each by a rule that is written beside the answer.
//! Last step of evaluation, before the report. A claim that failed is a finding; nothing here is tuned to make one hold.

use eval::Verdict;
use prune_core::audit::{AtRatio, Audit, JointLoss, SetSize, TELLS};
use serde::Serialize;
use unet::scoring::OUTPUT_LOSS;

use super::{AuditResult, CriterionScores, DistillRun, PlanRow, Results};
use crate::page::format::set_size;

/// Whether a claim held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It held by its rule.
    Held,
    /// It held in part of the cases.
    Partly,
    /// The data show the opposite.
    Failed,
    /// The data show neither.
    Open,
}

/// One statement and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Claim {
    /// Machine name.
    pub id: String,
    /// The statement, in plain words.
    pub statement: String,
    /// The rule by which it is judged.
    pub rule: String,
    /// The answer.
    pub outcome: Outcome,
    /// The numbers behind the answer.
    pub evidence: String,
}

/// The relative decline at half the parameters that the paper's abstract states, for PickScore on SDXL.
const PUBLISHED_DECLINE: f64 = 0.04;

/// Names of the two feature losses that the paper compares.
pub(crate) const NORMALIZED: &str = "normalized";
const PLAIN: &str = "plain";

/// Judges all claims for which `results` hold data.
pub fn assess(results: &Results) -> Vec<Claim> {
    let all = [additivity_in_rank(results), additivity_in_size(results), best_criterion(results), imbalance(results)];
    all.into_iter().flatten().chain(normalized_beats_plain(results)).chain(small_decline(results)).collect()
}

fn claim(id: &str, statement: &str, rule: &str, outcome: Outcome, evidence: String) -> Claim {
    Claim { id: id.into(), statement: statement.into(), rule: rule.into(), outcome, evidence }
}

/// The paper's criterion, where the run has scores by it.
fn paper_criterion(results: &Results) -> Option<&CriterionScores> {
    results.criteria.iter().find(|c| c.id() == OUTPUT_LOSS)
}

/// The audit of the paper's criterion.
fn paper_audit(results: &Results) -> Option<(&AuditResult, &Audit)> {
    let (paper, result) = (paper_criterion(results)?, results.audit.as_ref()?);
    Some((result, result.file.audits.iter().find(|a| a.criterion == paper.id())?))
}

/// What the audit says of the sum at the ratios between which the run's plans lie; at all of them in a run without plans.
fn where_plans_are(results: &Results, result: &AuditResult, audit: &Audit) -> Vec<AtRatio> {
    let ratios = || results.plans.iter().map(|plan| plan.ratio);
    let (least, most) = (ratios().fold(f64::INFINITY, f64::min), ratios().fold(f64::NEG_INFINITY, f64::max));
    // Plans of a ratio that was not measured itself are judged by its neighbours.
    let near = |at: &AtRatio| least > most || (least - 0.05..=most + 0.05).contains(&at.ratio);
    result.file.at_ratios(audit).into_iter().filter(near).collect()
}

const NOT_MEASURED: &str = "no near-optimal set was measured, so nothing is known about the sets that plans choose";

fn additivity_in_rank(results: &Results) -> Option<Claim> {
    let (result, audit) = paper_audit(results)?;
    let all = &audit.overall;
    let (pearson, spearman) = (all.pearson?, all.spearman?);
    let chosen = where_plans_are(results, result, audit);
    let beaten: Vec<String> = chosen.iter().filter(|at| at.beaten).map(|at| at.ratio.to_string()).collect();
    let outcome = match pearson.min(spearman) {
        _ if !chosen.is_empty() && beaten.len() == chosen.len() => Outcome::Failed,
        r if r >= 0.9 && beaten.is_empty() && !chosen.is_empty() => Outcome::Held,
        r if r >= 0.7 => Outcome::Partly,
        _ => Outcome::Failed,
    };
    let random = result.by_size(audit).into_iter().filter(|(size, _)| !matches!(size, SetSize::NearOptimal(_)));
    let by_group: Vec<String> = random.filter_map(|(size, s)| Some(format!("{:.2} at {}", s.pearson?, set_size(size)))).collect();
    let inside = if by_group.is_empty() { String::new() } else { format!("; within sets of one size Pearson is {}", by_group.join(", ")) };
    let told = match (chosen.len(), beaten.len()) {
        (0, _) => NOT_MEASURED.to_owned(),
        (all, 0) => format!("at {all} ratios where plans are chosen no other near-optimal set clearly loses less than the plan"),
        (all, _) => format!("at {} of {all} ratios where plans are chosen another one clearly loses less than the plan", beaten.join(", ")),
    };
    Some(claim(
        "additivity-rank",
        "The sum of single-layer output losses tells which sets of layers are costly to remove together.",
        "Held when Pearson's and Spearman's correlation of predicted and measured joint loss are both at least 0.9 over all random sets, and at no ratio where plans are chosen another near-optimal set that removes as much loses less than the plan by more than two standard errors; partly from 0.7; failed when the plans of all these ratios are beaten.",
        outcome,
        format!("Pearson {pearson:.3}, Spearman {spearman:.3} over {} random sets{inside}; {told}.", all.sets),
    ))
}

fn additivity_in_size(results: &Results) -> Option<Claim> {
    let (result, audit) = paper_audit(results)?;
    let chosen = where_plans_are(results, result, audit);
    let is_chosen = |size: &SetSize| match size {
        SetSize::NearOptimal(ratio) => chosen.iter().any(|at| at.ratio == *ratio),
        _ => true,
    };
    let sizes = result.by_size(audit).into_iter().filter(|(size, _)| is_chosen(size));
    let slopes: Vec<(SetSize, f64)> = sizes.filter_map(|(size, s)| Some((size, s.slope?))).collect();
    if slopes.is_empty() {
        return None;
    }
    let outcome = match slopes.iter().filter(|(_, slope)| TELLS.contains(slope)).count() {
        n if n == slopes.len() && !chosen.is_empty() => Outcome::Held,
        0 => Outcome::Failed,
        _ => Outcome::Partly,
    };
    let mut told: Vec<String> = slopes.iter().map(|(size, s)| format!("{s:.2} at {}", set_size(*size))).collect();
    told.extend(chosen.is_empty().then(|| NOT_MEASURED.to_owned()));
    Some(claim(
        "additivity-size",
        "The sum of single-layer output losses is also about as large as the joint loss.",
        "Held when the slope of measured on predicted loss lies in 0.8 to 1.25 for every size of random sets, and for the best plans and their rivals at every ratio where plans are chosen; partly when for some.",
        outcome,
        format!("Slope {}.", told.join(", ")),
    ))
}

fn best_criterion(results: &Results) -> Option<Claim> {
    let paper = paper_criterion(results)?;
    let is_own = |p: &PlanRow| p.criterion() == Some(paper.id()) && p.method() == "exact";
    let error = |joint: JointLoss| joint.standard_error.unwrap_or(0.0);
    let (mut told, mut best, mut lost, mut seen) = (Vec::new(), 0, 0, 0);
    for (at, own) in results.plans.iter().enumerate().filter(|(_, p)| is_own(p)) {
        let Some(ours) = own.joint else { continue };
        // A refinement that found nothing better is the same plan once more.
        if results.plans[..at].iter().any(|p| is_own(p) && p.ratio == own.ratio && p.plan.removed == own.plan.removed) {
            continue;
        }
        let rival = results
            .plans
            .iter()
            .filter(|p| p.ratio == own.ratio && !is_own(p) && p.method() != "refined")
            .filter(|p| p.criterion() != Some(paper.id()))
            .filter_map(|p| Some((p, p.joint?)))
            .min_by(|a, b| a.1.mean.total_cmp(&b.1.mean));
        let Some((rival, theirs)) = rival else { continue };
        seen += 1;
        best += usize::from(ours.mean <= theirs.mean);
        lost += usize::from(theirs.mean + 2.0 * error(ours).hypot(error(theirs)) < ours.mean);
        told.push(format!("ratio {}: {:.1e} against {:.1e} of the best rival ({})", own.ratio, ours.mean, theirs.mean, rival.label));
    }
    let outcome = match (seen, best, lost) {
        (0, _, _) => return None,
        (n, b, _) if b == n => Outcome::Held,
        (n, _, l) if l == n => Outcome::Failed,
        (_, 0, 0) => Outcome::Open,
        _ => Outcome::Partly,
    };
    Some(claim(
        "best-criterion",
        "Choosing layers by output loss leaves a smaller joint output loss than magnitude, Taylor, random and hand-crafted choices.",
        "Held when the exact plan by output loss has the lowest measured joint loss of all criteria at every ratio; failed when a rival is lower by more than two standard errors at every ratio.",
        outcome,
        format!("Joint output loss, {}.", told.join("; ")),
    ))
}

/// The largest mean share of one feature term over the second half of the curve, with the term's name.
pub(crate) fn largest_share(run: &DistillRun) -> Option<(&str, f64)> {
    let late = &run.curve[run.curve.len() / 2..];
    let shares: Vec<Vec<f64>> = late.iter().map(super::LossPoint::shares).collect();
    let mean = |i: usize| shares.iter().map(|s| s[i]).sum::<f64>() / shares.len() as f64;
    if late.is_empty() {
        return None;
    }
    (0..run.terms.len()).map(|i| (run.terms[i].as_str(), mean(i))).max_by(|a, b| a.1.total_cmp(&b.1))
}

/// Pairs of runs that differ in the feature loss only: (normalized, plain); those of the headline plan first.
fn rival_runs(results: &Results) -> Vec<(&DistillRun, &DistillRun)> {
    let of = |kind: &'static str| results.distillations.iter().filter(move |d: &&DistillRun| d.losses.feature_loss == kind);
    let mut pairs: Vec<_> = of(NORMALIZED)
        .filter_map(|n| {
            of(PLAIN).find(|p| p.plan == n.plan && p.trainer.seed == n.trainer.seed && p.trainer.steps == n.trainer.steps).map(|p| (n, p))
        })
        .collect();
    pairs.sort_by_key(|(n, _)| Some(&n.plan) != results.headline_plan.as_ref());
    pairs
}

fn imbalance(results: &Results) -> Option<Claim> {
    let (normalized, plain) = rival_runs(results).into_iter().next()?;
    let ((plain_term, plain_share), (norm_term, norm_share)) = (largest_share(plain)?, largest_share(normalized)?);
    let outcome = match (plain_share > 0.5, norm_share < plain_share) {
        (true, true) => Outcome::Held,
        (false, true) => Outcome::Partly,
        _ => Outcome::Failed,
    };
    Some(claim(
        "imbalance",
        "In the plain feature loss one or a few terms outweigh all others; normalisation evens them out.",
        "Held when the largest plain term is more than half of the sum (mean over the second half of training) and the largest normalized term has a smaller share; partly when only the second is true.",
        outcome,
        format!(
            "Largest plain term: {plain_term} with {:.0} %; largest normalized term: {norm_term} with {:.0} % (of {} terms).",
            100.0 * plain_share,
            100.0 * norm_share,
            plain.terms.len()
        ),
    ))
}

fn normalized_beats_plain(results: &Results) -> Option<Claim> {
    let trained_by = |run: &DistillRun| results.unets.iter().find(|u| u.distillation.as_deref() == Some(run.name.as_str()));
    let (mut better, mut worse, mut told) = (0, 0, Vec::new());
    for (normalized, plain) in rival_runs(results) {
        let (Some(n), Some(p)) = (trained_by(normalized), trained_by(plain)) else { continue };
        let mut gains = Vec::new();
        for c in results.comparisons.iter().filter(|c| c.a == n.name && c.b == p.name) {
            better += usize::from(c.verdict == Verdict::Better);
            worse += usize::from(c.verdict == Verdict::Worse);
            let label = results.metric(&c.metric).map_or(c.metric.as_str(), |m| m.label.as_str());
            gains.push(format!("{label} {:+.3} [{:+.3}, {:+.3}]", c.gain.value, c.gain.low, c.gain.high));
        }
        if !gains.is_empty() {
            told.push(format!("{}: {}", normalized.plan, gains.join(", ")));
        }
    }
    if told.is_empty() {
        return None;
    }
    let outcome = match (better, worse) {
        (0, 0) => Outcome::Open,
        (_, 0) => Outcome::Held,
        (0, _) => Outcome::Failed,
        _ => Outcome::Partly,
    };
    Some(claim(
        "normalized-beats-plain",
        "Retraining with normalized feature distillation gives better images than plain feature distillation.",
        "Held when at least one metric's paired interval favours the normalized student and none favours the plain one; failed when it is the other way round; open when all intervals contain zero. The intervals are not corrected for the number of metrics.",
        outcome,
        format!("Gain of normalized over plain: {}.", told.join("; ")),
    ))
}

fn small_decline(results: &Results) -> Option<Claim> {
    let run = results
        .distillations
        .iter()
        .filter(|d| d.losses.feature_loss == NORMALIZED && results.plan(&d.plan).is_some_and(|p| p.ratio == 0.5))
        .min_by_key(|d| Some(&d.plan) != results.headline_plan.as_ref())?;
    let student = results.unets.iter().find(|u| u.distillation.as_deref() == Some(run.name.as_str()))?;
    let decline = student.metric("clip_score")?.decline?;
    let outcome = match (decline.high <= PUBLISHED_DECLINE, decline.low > PUBLISHED_DECLINE) {
        (true, _) => Outcome::Held,
        (_, true) => Outcome::Failed,
        _ => Outcome::Open,
    };
    Some(claim(
        "small-decline",
        "With half of the parameters removed and retraining, the preference score declines by at most 4.0 %.",
        "The paper states this of PickScore on SDXL after long training. Here the CLIP score of this run's own scorer stands in for it, so the comparison is a rough one. Held when the whole interval of the relative decline is at most 4.0 %; failed when the whole interval is above.",
        outcome,
        format!(
            "Relative decline of the CLIP score {:.1} % [{:.1}, {:.1}] ({}).",
            100.0 * decline.value,
            100.0 * decline.low,
            100.0 * decline.high,
            student.label
        ),
    ))
}
