//! `laptop-diff plan`: scores and a budget -> which layers go, exactly. `scores.json` -> **`plan.json`**.

use std::path::PathBuf;

use clap::builder::TypedValueParser;
use prune_core::audit::AuditFile;
use prune_core::measured_front::MeasuredFront;
use prune_core::refine::interactions;
use prune_core::score::{BinWeights, weigh_bins};
use prune_core::search::{greedy, random};
use prune_core::table::Cost;
use prune_core::{Budget, Constraints, LayerId, LayerTable, Limit, Plan, Problem, Scores, solve};
use unet::{Granularity, ModelSource, PlanMethod, Program, Published, ResourceFile, TableSizes, Totals, best_portable, bk_sdm_plan};

use crate::common::{BadInput, prepare_file};
use crate::model::ModelArg;
use crate::one_of::one_of;
use crate::table::{Table, thousands};

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("budget").args(["ratio", "params", "macs_ratio", "like"]))]
pub struct Args {
    /// Scores of the criterion to minimise (written by `score`); the published reductions can do without.
    #[arg(long)]
    scores: Option<PathBuf>,
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
    #[arg(long, value_parser = method(), default_value = "exact")]
    method: PlanMethod,
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
    #[arg(long, value_name = "WEIGHTS")]
    bins: Option<BinWeights>,
    /// A further cost of the layers (written by `profile-layers`), which limits may name; may be repeated.
    #[arg(long = "resource", value_name = "FILE")]
    resources: Vec<PathBuf>,
    /// Measured pairs of layers (written by `interactions`): what they lose together counts beside the single scores.
    #[arg(long, alias = "pairs", value_name = "FILE")]
    interactions: Option<PathBuf>,
    /// Instead of a search: the best plan of a measured front (written by `front`) that removes at least as much.
    #[arg(long, value_name = "FRONT", conflicts_with_all = ["method", "keep", "remove", "interactions", "at_least", "at_most", "portable"])]
    measured: Option<PathBuf>,
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
    #[arg(long, value_parser = portable())]
    portable: Option<Program>,
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

fn method() -> impl TypedValueParser<Value = PlanMethod> {
    one_of(PlanMethod::all().map(|method| (method, method.name(), method.meaning())), &[])
}

fn portable() -> impl TypedValueParser<Value = Program> {
    let diffusers = (Program::Diffusers, "diffusers", "diffusers, from nested depths (`prune --format diffusers`)");
    let comfyui = (Program::ComfyUi, "comfyui", "ComfyUI, from a single file (`prune --format single-file`)");
    one_of([diffusers, comfyui], &[])
}

/// Chooses, writes and prints a plan.
pub fn run(args: &Args) -> anyhow::Result<()> {
    prepare_file(&args.out)?;
    let model = args.model.as_ref().map(ModelArg::open).transpose()?;
    let scores = args.scores(model.as_ref())?;
    if let PlanMethod::Published(published) = args.method {
        let (table, plan) = args.published_plan(published, model.as_ref(), scores.as_ref())?;
        return args.finish(&plan, &table, scores.as_ref());
    }
    let scores = scores.ok_or_else(|| BadInput(format!("--method {} needs --scores", args.method.name())))?;
    let plan = args.choose(model.as_ref(), &scores)?;
    args.finish(&plan, scores.table(), Some(&scores))
}

impl Args {
    /// The scores, checked against the model where there is one, weighed by bins where that is asked for.
    fn scores(&self, model: Option<&ModelSource>) -> anyhow::Result<Option<Scores>> {
        let Some(path) = &self.scores else { return Ok(None) };
        let scores = match model {
            Some(model) => model.scores(path)?,
            None => Scores::read(path)?,
        };
        Ok(Some(match &self.bins {
            None => scores,
            Some(weights) => weigh_bins(&scores, weights)?,
        }))
    }

    /// A published reduction, at the budget that it has.
    fn published_plan(
        &self,
        published: Published,
        model: Option<&ModelSource>,
        scores: Option<&Scores>,
    ) -> anyhow::Result<(LayerTable, Plan)> {
        let name = published.name();
        let model = model.ok_or_else(|| BadInput(format!("--method {name} needs --model: what it removes comes from the architecture")))?;
        let given = [
            ("--ratio", self.ratio.is_some()),
            ("--params", self.params.is_some()),
            ("--macs-ratio", self.macs_ratio.is_some()),
            ("--like", self.like.is_some()),
            ("--keep", !self.keep.is_empty()),
            ("--remove", !self.remove.is_empty()),
            ("--at-least", !self.at_least.is_empty()),
            ("--at-most", !self.at_most.is_empty()),
            ("--interactions", self.interactions.is_some()),
            ("--portable", self.portable.is_some()),
        ];
        if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
            return Err(BadInput(format!("--method {name} always removes the same layers; leave {flag} out")).into());
        }
        let table = match scores {
            Some(scores) => scores.table().clone(),
            None => model.table(TableSizes::own(Granularity::Branch))?,
        };
        let plan = published.plan(model.config(), &table, scores)?;
        Ok((table, plan))
    }

    fn budget(&self, table: &LayerTable) -> anyhow::Result<Budget> {
        match (self.ratio, self.params, self.macs_ratio, &self.like) {
            (Some(ratio), ..) => Ok(Budget::params_ratio(ratio)),
            (_, Some(params), ..) => Ok(Budget::params(params)),
            (_, _, Some(ratio), _) => Ok(Budget::macs_ratio(ratio)),
            (.., Some(path)) => Ok(Budget::params(Plan::read(path, table)?.removed_cost(Cost::Params))),
            (None, None, None, None) => Err(BadInput("give one of --ratio, --params, --macs-ratio and --like".into()).into()),
        }
    }

    /// A plan by scores and a budget.
    fn choose(&self, model: Option<&ModelSource>, scores: &Scores) -> anyhow::Result<Plan> {
        let budget = self.budget(scores.table())?;
        if let Some(path) = &self.measured {
            return Ok(MeasuredFront::read(path, scores.table())?.plan(scores.table(), &budget)?);
        }
        let ids = |texts: &[String]| texts.iter().map(|t| LayerId::from(t.as_str())).collect();
        let own = Constraints { keep: ids(&self.keep), remove: ids(&self.remove), ..Constraints::none() };
        let limited = !(self.at_least.is_empty() && self.at_most.is_empty());
        if limited && self.method != PlanMethod::Exact {
            return Err(BadInput("--at-least and --at-most need --method exact".into()).into());
        }
        let pairs = match &self.interactions {
            None => Vec::new(),
            Some(_) if self.method != PlanMethod::Exact => return Err(BadInput("--interactions needs --method exact".into()).into()),
            Some(path) => interactions(scores, &AuditFile::read(path, scores.table())?.sets).map_err(|e| e.in_file(path))?,
        };
        let one = |constraints: &Constraints| -> anyhow::Result<Plan> {
            let problem = || Problem::new(scores, constraints)?.with_interactions(&pairs);
            Ok(match self.method {
                // Many linked pairs are too much for dominance lists, but not for branch and bound.
                PlanMethod::Exact if limited || !pairs.is_empty() => with_limits(self, problem()?, scores, &budget)?,
                PlanMethod::Exact => solve(scores, &budget, constraints)?,
                PlanMethod::Greedy => greedy(scores, &budget, constraints)?,
                PlanMethod::Random => random(scores, &budget, constraints, self.seed)?,
                _ => self.bk_sdm(model, scores, &budget, constraints)?,
            })
        };
        let Some(program) = self.portable else { return one(&own) };
        let model = model.ok_or_else(|| BadInput("--portable needs --model: what fits comes from the architecture".into()))?;
        let best = best_portable(model.config(), scores, program, &own, one);
        let best = best.map_err(|error| error.context(format!("no plan that {} loads without padding", program.name())))?;
        Ok(best.ok_or_else(|| BadInput(format!("{} loads nothing of this architecture", program.name())))?)
    }

    fn bk_sdm(&self, model: Option<&ModelSource>, scores: &Scores, budget: &Budget, constraints: &Constraints) -> anyhow::Result<Plan> {
        let model =
            model.ok_or_else(|| BadInput("--method bk-sdm needs --model: its order of blocks comes from the architecture".into()))?;
        if !(constraints.keep.is_empty() && constraints.remove.is_empty()) {
            return Err(BadInput("--method bk-sdm is a fixed order of blocks; leave --keep and --remove out".into()).into());
        }
        if budget.cost() != Cost::Params {
            return Err(BadInput("--method bk-sdm counts parameters; give --ratio or --params".into()).into());
        }
        Ok(bk_sdm_plan(model.config(), scores, budget)?)
    }

    /// Writes and prints.
    fn finish(&self, plan: &Plan, table: &LayerTable, scores: Option<&Scores>) -> anyhow::Result<()> {
        plan.write(&self.out)?;
        if self.json {
            println!("{}", plan.to_json()?.trim_end());
        } else {
            print(plan, table, scores, self.interactions.is_some());
            println!("written     {}", self.out.display());
        }
        Ok(())
    }
}

/// The best plan under the budget and the further limits.
fn with_limits<'a>(args: &Args, mut problem: Problem<'a>, scores: &'a Scores, budget: &Budget) -> anyhow::Result<Plan> {
    let table = scores.table();
    let mut resources = Vec::new();
    for path in &args.resources {
        let file = ResourceFile::read_for(path, table)?;
        problem = problem.with_resource(&file.resource())?;
        resources.push(file);
    }
    let totals = Totals::new(table, &resources);
    let amount = |flag: &str, text: &String| {
        let names = totals.names().collect::<Vec<_>>().join(", ");
        let expected = format!("expected RESOURCE=NUMBER or RESOURCE=PERCENT%, with a resource among {names}");
        totals.amount(text).ok_or_else(|| BadInput(format!("{flag} {text}: {expected}")))
    };
    let mut limits = vec![Limit::from_budget(budget, table)?];
    for text in &args.at_least {
        let (name, amount) = amount("--at-least", text)?;
        limits.push(Limit::at_least(name, amount));
    }
    for text in &args.at_most {
        let (name, amount) = amount("--at-most", text)?;
        limits.push(Limit::at_most(name, amount));
    }
    let mut plan = problem.solve(&limits, args.max_nodes)?.plan;
    plan.set_budget(budget, table)?;
    Ok(plan)
}

fn print(plan: &Plan, table: &LayerTable, scores: Option<&Scores>, paired: bool) {
    let mut rows = Table::new(["removed", "kind", ">parameters", ">score", ">± s.e."]);
    for id in &plan.removed {
        let layer = table.layer(id.as_str());
        let score = scores.and_then(|scores| scores.layer(id.as_str()));
        rows.row([
            id.to_string(),
            layer.map_or(String::new(), |l| l.kind.clone()),
            layer.map_or(0, |l| l.params).to_string(),
            score.map_or(String::new(), |s| format!("{:.4e}", s.value())),
            score.and_then(|s| s.standard_error()).map_or(String::new(), |se| format!("{se:.2e}")),
        ]);
    }
    for id in &plan.removed_shared_costs {
        let params = table.shared_costs().iter().find(|s| s.id == *id).map_or(0, |s| s.params);
        rows.row([id.to_string(), "shell".to_string(), params.to_string()]);
    }
    print!("{rows}");
    println!();
    let optimal = match (plan.optimal, plan.predicted, plan.lower_bound) {
        (true, _, _) => ", proven optimal".to_string(),
        (false, Some(predicted), Some(bound)) => format!(", at most {:.3e} above the optimum", predicted - bound),
        _ => String::new(),
    };
    println!("method      {}{optimal}", plan.method);
    println!("layers      {} of {} go", plan.removed.len(), table.len());
    for (name, cost) in [("parameters", Cost::Params), ("MACs", Cost::Macs)] {
        println!(
            "{name:11} {} -> {} ({:.2} % go)",
            thousands(table.total(cost)),
            thousands(table.total(cost) - plan.removed_cost(cost)),
            100.0 * plan.ratio(cost)
        );
    }
    for limit in &plan.limits {
        println!("limit       {}: {} go", limit.limit, limit.removed);
    }
    if let Some((predicted, scores)) = plan.predicted.zip(scores) {
        let with_pairs = if paired { " and of the measured pairs" } else { "" };
        println!("predicted   {predicted:.6} ({}, the sum of the layers' scores{with_pairs})", scores.criterion());
    }
}
