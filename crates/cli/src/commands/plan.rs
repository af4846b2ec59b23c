//! `laptop-diff plan`: scores and a budget -> which layers go, exactly. `scores.json` -> **`plan.json`**.

use std::path::PathBuf;

use clap::ValueEnum;
use prune_core::{Budget, Constraints, Cost, LayerId, LayerTable, Plan, Scores};

use crate::common::{BadInput, prepare_file};
use crate::model::{Model, TableSizes};

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("budget").required(true).args(["ratio", "params", "macs_ratio"]))]
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
    /// The model that the scores must have been made for; needed by `--method bk-sdm`.
    #[arg(long)]
    model: Option<PathBuf>,
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
}

/// Chooses, writes and prints a plan.
pub fn run(args: &Args) -> anyhow::Result<()> {
    prepare_file(&args.out)?;
    let scores = match &args.model {
        Some(dir) => {
            let table = Model::open(dir)?.table(TableSizes::own(unet::Granularity::Branch))?;
            Scores::read_for(&args.scores, &table)?
        }
        None => Scores::read(&args.scores)?,
    };
    let budget = match (args.ratio, args.params, args.macs_ratio) {
        (Some(ratio), _, _) => Budget::params_ratio(ratio),
        (_, Some(params), _) => Budget::params(params),
        (_, _, Some(ratio)) => Budget::macs_ratio(ratio),
        (None, None, None) => return Err(BadInput("give one of --ratio, --params and --macs-ratio".into()).into()),
    };
    let ids = |texts: &[String]| texts.iter().map(|t| LayerId::from(t.as_str())).collect();
    let constraints = Constraints { keep: ids(&args.keep), remove: ids(&args.remove), ..Constraints::none() };
    let plan = match args.method {
        Method::Exact => prune_core::solve(&scores, &budget, &constraints)?,
        Method::Greedy => prune_core::greedy(&scores, &budget, &constraints)?,
        Method::Random => prune_core::random(&scores, &budget, &constraints, args.seed)?,
        Method::BkSdm => bk_sdm(args, &scores, &budget, &constraints)?,
    };
    plan.write(&args.out)?;
    if args.json {
        println!("{}", plan.to_json()?.trim_end());
    } else {
        print(&plan, &scores);
        println!("written     {}", args.out.display());
    }
    Ok(())
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
    let removed = unet::bk_sdm_style(&Model::open(dir)?.config, needed).map_err(|e| match e {
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

/// A number with blanks between thousands.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

fn print(plan: &Plan, scores: &Scores) {
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
    let optimal = if plan.optimal { ", proven optimal" } else { "" };
    println!("method      {}{optimal}", plan.method);
    println!("layers      {} of {} go", plan.removed.len(), table.len());
    for (name, cost) in [("parameters", Cost::Params), ("MACs", Cost::Macs)] {
        println!("{name:11} {} -> {} ({:.2} % go)", thousands(table.total(cost)), thousands(after(cost)), 100.0 * plan.ratio(cost));
    }
    if let Some(predicted) = plan.predicted {
        println!("predicted   {predicted:.6} ({}, the sum of the layers' scores)", scores.criterion());
    }
}
