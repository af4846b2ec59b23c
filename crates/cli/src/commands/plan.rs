//! `laptop-diff plan`: scores and a budget -> which layers go, exactly. `scores.json` -> **`plan.json`**.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use prune_core::{AuditFile, BinWeights, Budget, Constraints, Cost, LayerId, LayerTable, Limit, Plan, Problem, Scores};
use unet::{Published, Target};

use crate::common::{BadInput, prepare_file};
use crate::hub::ModelArg;
use crate::table::thousands;

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("budget").args(["ratio", "params", "macs_ratio", "like"]))]
pub struct Args {
    /// Scores of the criterion to minimise (written by `score`).
    #[arg(long)]
    scores: PathBuf,
    /// Share of the U-Net's parameters to remove, at least.
    #[arg(long)]
    ratio: Option<f64>,
    /// Number of parameters to remove, at least.
    #[arg(long)]
    params: Option<u64>,
    /// Share of the U-Net's multiply-accumulates to remove, at least.
    #[arg(long)]
    macs_ratio: Option<f64>,
    /// Instead: at least as many parameters as this plan removes.
    #[arg(long, value_name = "PLAN")]
    like: Option<PathBuf>,
    /// How to choose.
    #[arg(long, value_enum, default_value_t = Method::Exact)]
    method: Method,
    /// Seed of a random plan.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A layer that stays; may be repeated.
    #[arg(long = "keep", value_name = "ID")]
    keep: Vec<String>,
    /// A layer that goes whatever it costs; may be repeated.
    #[arg(long = "remove", value_name = "ID")]
    remove: Vec<String>,
    /// How much each timestep bin of the scores counts: uniform, early, middle, late, or BIN=WEIGHT,BIN=WEIGHT,... Sampling begins in
    /// the last bin, the noisiest. [default: every point counts the same]
    #[arg(long, value_name = "WEIGHTS", value_parser = parse_bins)]
    bins: Option<BinWeights>,
    /// A further cost of the layers (written by `measure`), which limits may name; may be repeated.
    #[arg(long = "resource", value_name = "FILE")]
    resources: Vec<PathBuf>,
    /// Measured pairs of layers (written by `pairs`): what they lose together counts beside the single scores.
    #[arg(long, value_name = "FILE")]
    pairs: Option<PathBuf>,
    /// A further limit: at least this much must go, such as macs=2000000000 or latency_ns=30%; may be repeated.
    #[arg(long, value_name = "RESOURCE=N")]
    at_least: Vec<String>,
    /// A further limit: at most this much may go; may be repeated.
    #[arg(long, value_name = "RESOURCE=N")]
    at_most: Vec<String>,
    /// Work that a search with further limits may do before it answers with the best plan so far and its gap.
    #[arg(long, default_value_t = 1_000_000)]
    max_nodes: u64,
    /// Choose only what this program can load without padding: whole transformer blocks, at depths that it knows. Best with scores of
    /// `--granularity block`; scores of branches are added up.
    #[arg(long, value_enum)]
    portable: Option<Portable>,
    /// The model that the scores must have been made for; needed by hand-made plans and `--portable`.
    #[arg(long)]
    pub(super) model: Option<ModelArg>,
    /// The plan to write.
    #[arg(long)]
    out: PathBuf,
    /// Print the plan as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Ways to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// The least sum of scores among all sets that meet the budget.
    Exact,
    /// By score per parameter.
    Greedy,
    /// A random minimal set.
    Random,
    /// The order in which BK-SDM (arXiv 2305.15798) takes blocks away, as far as the budget asks.
    BkSdm,
    /// What BK-SDM-Base removes; this and the following have a budget of their own.
    BkSdmBase,
    /// What BK-SDM-Small removes.
    BkSdmSmall,
    /// What BK-SDM-Tiny removes.
    BkSdmTiny,
    /// What SSD-1B (arXiv 2401.02677) removes from SDXL.
    #[value(name = "ssd-1b")]
    Ssd1b,
    /// What Segmind-Vega removes from SDXL.
    SegmindVega,
    /// What KOALA-1B (arXiv 2312.04005) removes from SDXL.
    #[value(name = "koala-1b")]
    Koala1b,
    /// What KOALA-700M removes from SDXL.
    #[value(name = "koala-700m")]
    Koala700m,
}

impl Method {
    /// The published reduction that it names.
    fn published(self) -> Option<Published> {
        Published::named(self.to_possible_value()?.get_name())
    }
}

fn parse_bins(text: &str) -> Result<BinWeights, String> {
    let custom = || -> Option<BTreeMap<u32, f64>> {
        text.split(',').map(|pair| pair.split_once('=').and_then(|(bin, weight)| Some((bin.parse().ok()?, weight.parse().ok()?)))).collect()
    };
    match text {
        "uniform" => Ok(BinWeights::Uniform),
        "early" => Ok(BinWeights::Early),
        "middle" => Ok(BinWeights::Middle),
        "late" => Ok(BinWeights::Late),
        _ => custom().map(BinWeights::Custom).ok_or_else(|| "expected uniform, early, middle, late, or such as 0=1,1=2".to_string()),
    }
}

/// Programs for which a plan can be made to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Portable {
    /// diffusers, from nested depths (`prune --format diffusers`).
    Diffusers,
    /// ComfyUI, from a single file (`prune --format original`).
    Comfyui,
}

/// Chooses, writes and prints a plan.
pub fn run(args: &Args) -> anyhow::Result<()> {
    prepare_file(&args.out)?;
    let scores = match &args.model {
        Some(model) => model.open()?.scores(&args.scores)?,
        None => Scores::read(&args.scores)?,
    };
    let scores = match &args.bins {
        None => scores,
        Some(weights) => prune_core::weigh_bins(&scores, weights)?,
    };
    if let Some(published) = args.method.published() {
        return finish(args, published_plan(args, published, &scores)?, &scores);
    }
    let budget = match (args.ratio, args.params, args.macs_ratio, &args.like) {
        (Some(ratio), ..) => Budget::params_ratio(ratio),
        (_, Some(params), ..) => Budget::params(params),
        (_, _, Some(ratio), _) => Budget::macs_ratio(ratio),
        (.., Some(path)) => Budget::params(Plan::read(path, scores.table())?.removed_cost(Cost::Params)),
        (None, None, None, None) => return Err(BadInput("give one of --ratio, --params, --macs-ratio and --like".into()).into()),
    };
    let ids = |texts: &[String]| texts.iter().map(|t| LayerId::from(t.as_str())).collect();
    let constraints = Constraints { keep: ids(&args.keep), remove: ids(&args.remove), ..Constraints::none() };
    let limited = !(args.at_least.is_empty() && args.at_most.is_empty());
    if limited && args.method != Method::Exact {
        return Err(BadInput("--at-least and --at-most need --method exact".into()).into());
    }
    let pairs = match &args.pairs {
        None => Vec::new(),
        Some(_) if args.method != Method::Exact => return Err(BadInput("--pairs needs --method exact".into()).into()),
        Some(path) => prune_core::interactions(&scores, &AuditFile::read(path, scores.table())?.sets).map_err(|e| e.in_file(path))?,
    };
    let choose = |constraints: &Constraints| -> anyhow::Result<Plan> {
        let problem = || Problem::new(&scores, constraints)?.with_interactions(&pairs);
        if limited {
            return with_limits(args, problem()?, &scores, &budget);
        }
        Ok(match args.method {
            // Many linked pairs are too much for dominance lists, but not for branch and bound.
            Method::Exact if !pairs.is_empty() => with_limits(args, problem()?, &scores, &budget)?,
            Method::Exact => prune_core::solve(&scores, &budget, constraints)?,
            Method::Greedy => prune_core::greedy(&scores, &budget, constraints)?,
            Method::Random => prune_core::random(&scores, &budget, constraints, args.seed)?,
            _ => bk_sdm(args, &scores, &budget, constraints)?,
        })
    };
    let plan = match args.portable {
        None => choose(&constraints)?,
        Some(portable) => best_portable(args, portable, &scores, constraints, &choose)?,
    };
    finish(args, plan, &scores)
}

/// Writes and prints.
fn finish(args: &Args, plan: Plan, scores: &Scores) -> anyhow::Result<()> {
    plan.write(&args.out)?;
    if args.json {
        println!("{}", plan.to_json()?.trim_end());
    } else {
        print(&plan, scores, args.pairs.is_some());
        println!("written     {}", args.out.display());
    }
    Ok(())
}

/// The best plan under the budget and the further limits.
fn with_limits<'a>(args: &Args, mut problem: Problem<'a>, scores: &'a Scores, budget: &Budget) -> anyhow::Result<Plan> {
    let table = scores.table();
    let mut totals: BTreeMap<String, u64> = [Cost::Params, Cost::Macs].map(|cost| (cost.name().to_string(), table.total(cost))).into();
    for path in &args.resources {
        let file = unet::ResourceFile::read_for(path, table)?;
        problem = problem.with_resource(&file.resource())?;
        totals.insert(file.name, file.total);
    }
    let mut limits = vec![Limit::from_budget(budget, table)?];
    for text in &args.at_least {
        let (name, amount) = amount("--at-least", text, &totals)?;
        limits.push(Limit::at_least(name, amount));
    }
    for text in &args.at_most {
        let (name, amount) = amount("--at-most", text, &totals)?;
        limits.push(Limit::at_most(name, amount));
    }
    let solution = problem.solve(&limits, args.max_nodes)?;
    let mut plan = solution.plan;
    plan.set_budget(budget, table)?;
    Ok(plan)
}

/// `NAME=N` or `NAME=P%` of the model's total.
fn amount(flag: &str, text: &str, totals: &BTreeMap<String, u64>) -> anyhow::Result<(String, u64)> {
    let known = || totals.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let bad = || BadInput(format!("{flag} {text}: expected RESOURCE=NUMBER or RESOURCE=PERCENT%, with a resource among {}", known()));
    let (name, value) = text.split_once('=').ok_or_else(bad)?;
    let total = totals.get(name).ok_or_else(bad)?;
    let amount = match value.strip_suffix('%') {
        None => value.parse().map_err(|_| bad())?,
        Some(percent) => {
            let percent: f64 = percent.parse().ok().filter(|p| (0.0..=100.0).contains(p)).ok_or_else(bad)?;
            (percent / 100.0 * *total as f64).ceil() as u64
        }
    };
    Ok((name.to_string(), amount))
}

/// The best plan under any of the alternatives that the other program allows.
fn best_portable(
    args: &Args,
    portable: Portable,
    scores: &Scores,
    own: Constraints,
    choose: &dyn Fn(&Constraints) -> anyhow::Result<Plan>,
) -> anyhow::Result<Plan> {
    let Some(path) = &args.model else {
        return Err(BadInput("--portable needs --model: what fits comes from the architecture".into()).into());
    };
    let target = match portable {
        Portable::Diffusers => Target::Diffusers,
        Portable::Comfyui => Target::ComfyUi,
    };
    let mut best: Option<Plan> = None;
    let mut failure = None;
    for mut constraints in unet::portable_constraints(&path.open()?.config, scores, target)? {
        constraints.keep.extend(own.keep.iter().cloned());
        constraints.remove.extend(own.remove.iter().cloned());
        match choose(&constraints) {
            Ok(plan) => {
                if best.as_ref().is_none_or(|best| plan.predicted < best.predicted) {
                    best = Some(plan);
                }
            }
            // Another alternative may do; what is wrong with the input is wrong with all.
            Err(error) => failure = Some(error),
        }
    }
    match (best, failure) {
        (Some(plan), _) => Ok(plan),
        (None, Some(error)) => Err(error.context(format!("no plan that {} loads without padding", target.name()))),
        (None, None) => Err(BadInput(format!("{} loads nothing of this architecture", target.name())).into()),
    }
}

/// A published reduction, at the budget that it has.
fn published_plan(args: &Args, published: Published, scores: &Scores) -> anyhow::Result<Plan> {
    let name = published.name();
    let Some(dir) = &args.model else {
        return Err(BadInput(format!("--method {name} needs --model: what it removes comes from the architecture")).into());
    };
    let given = [
        ("--ratio", args.ratio.is_some()),
        ("--params", args.params.is_some()),
        ("--macs-ratio", args.macs_ratio.is_some()),
        ("--like", args.like.is_some()),
        ("--keep", !args.keep.is_empty()),
        ("--remove", !args.remove.is_empty()),
        ("--at-least", !args.at_least.is_empty()),
        ("--at-most", !args.at_most.is_empty()),
        ("--pairs", args.pairs.is_some()),
        ("--portable", args.portable.is_some()),
    ];
    if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
        return Err(BadInput(format!("--method {name} always removes the same layers; leave {flag} out")).into());
    }
    let table = scores.table();
    let mut plan = Plan::from_removed(table, name, published.removed(&dir.open()?.config)?)?;
    plan.set_budget(&Budget::params(plan.removed_cost(Cost::Params)), table)?;
    plan.set_scores(scores)?;
    Ok(plan)
}

fn bk_sdm(args: &Args, scores: &Scores, budget: &Budget, constraints: &Constraints) -> anyhow::Result<Plan> {
    let Some(dir) = &args.model else {
        return Err(BadInput("--method bk-sdm needs --model: its order of blocks comes from the architecture".into()).into());
    };
    if !(constraints.keep.is_empty() && constraints.remove.is_empty()) {
        return Err(BadInput("--method bk-sdm is a fixed order of blocks; leave --keep and --remove out".into()).into());
    }
    if budget.cost() != Cost::Params {
        return Err(BadInput("--method bk-sdm counts parameters; give --ratio or --params".into()).into());
    }
    let table = scores.table();
    let needed = budget.required(table)?;
    let removed = unet::bk_sdm_style(&dir.open()?.config, needed).map_err(|e| match e {
        // The same failure as that of the other methods, with the same exit code.
        unet::Error::Input { .. } => infeasible(table, needed),
        other => other.into(),
    })?;
    let mut plan = Plan::from_removed(table, "bk-sdm", removed)?;
    plan.set_budget(budget, table)?;
    plan.set_scores(scores)?;
    Ok(plan)
}

/// The budget is out of reach even with every layer gone.
fn infeasible(table: &LayerTable, needed: u64) -> anyhow::Error {
    let all = table.layers().iter().map(|l| l.id.clone()).collect();
    let available = table.removed_cost(&all, Cost::Params).unwrap_or(0);
    let largest_ratio = available as f64 / table.total_params().max(1) as f64;
    prune_core::Error::Infeasible { cost: Cost::Params, needed, available, largest_ratio }.into()
}

fn print(plan: &Plan, scores: &Scores, paired: bool) {
    let table: &LayerTable = scores.table();
    let wide = plan.removed.iter().map(|id| id.as_str().len()).max().unwrap_or(2).max(2);
    println!("{:wide$}  {:16} {:>13} {:>12} {:>10}", "removed", "kind", "parameters", "score", "± s.e.");
    for id in &plan.removed {
        let layer = table.layer(id.as_str());
        let score = scores.layer(id.as_str());
        let se = score.and_then(|s| s.standard_error()).map_or(String::new(), |se| format!("{se:.2e}"));
        println!(
            "{:wide$}  {:16} {:>13} {:>12} {se:>10}",
            id,
            layer.map_or("", |l| l.kind.as_str()),
            layer.map_or(0, |l| l.params),
            score.map_or(String::new(), |s| format!("{:.4e}", s.value())),
        );
    }
    for id in &plan.removed_shells {
        let params = table.shells().iter().find(|s| s.id == *id).map_or(0, |s| s.params);
        println!("{id:wide$}  {:16} {params:>13}", "shell");
    }
    let after = |cost: Cost| match cost {
        Cost::Params => plan.params_left,
        Cost::Macs => plan.macs_left,
    };
    println!();
    let optimal = match (plan.optimal, plan.predicted, plan.lower_bound) {
        (true, _, _) => ", proven optimal".to_string(),
        (false, Some(predicted), Some(bound)) => format!(", at most {:.3e} above the optimum", predicted - bound),
        _ => String::new(),
    };
    println!("method      {}{optimal}", plan.method);
    println!("layers      {} of {} go", plan.removed.len(), table.len());
    for (name, cost) in [("parameters", Cost::Params), ("MACs", Cost::Macs)] {
        println!("{name:11} {} -> {} ({:.2} % go)", thousands(table.total(cost)), thousands(after(cost)), 100.0 * plan.ratio(cost));
    }
    for limit in &plan.limits {
        println!("limit       {}: {} go", limit.limit, limit.removed);
    }
    if let Some(predicted) = plan.predicted {
        let with_pairs = if paired { " and of the measured pairs" } else { "" };
        println!("predicted   {predicted:.6} ({}, the sum of the layers' scores{with_pairs})", scores.criterion());
    }
}
