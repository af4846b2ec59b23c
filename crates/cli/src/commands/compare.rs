//! `laptop-diff compare`: the U-Nets of several runs in one table, and which one to ship at a latency. Reports -> **table**.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use eval::Verdict;
use report::{CompareOptions, ComparedUNet, RunComparison, TimeOf, compare_runs};

use crate::common::BadInput;
use crate::table::Table;

/// Arguments of `compare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run directories with the results.json and timings.json that `report` wrote.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// The metric that decides [default: the first that all runs have].
    #[arg(long)]
    metric: Option<String>,
    /// The longest latency that is acceptable, in milliseconds; the answer is the best U-Net within it.
    #[arg(long, visible_alias = "max-latency", value_name = "MS")]
    latency: Option<f64>,
    /// What that latency is of: one call of the U-Net, or one whole image.
    #[arg(long, value_parser = time_of(), default_value = "call")]
    latency_of: TimeOf,
    /// The most memory that is acceptable for drawing an image, in MB of a million bytes; the GPU's where it was measured on one.
    #[arg(long, value_name = "MB")]
    max_memory: Option<f64>,
    /// Print the table as JSON.
    #[arg(long)]
    json: bool,
}

fn time_of() -> impl TypedValueParser<Value = TimeOf> {
    let image = PossibleValue::new("image").alias("picture").help("one image, from prompt to pixels");
    let values = [PossibleValue::new("call").help("one call of the U-Net"), image];
    PossibleValuesParser::new(values).map(|of| if of == "call" { TimeOf::Call } else { TimeOf::Image })
}

/// Reads and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    for (flag, unit, value) in [("--latency", "milliseconds", args.latency), ("--max-memory", "megabytes", args.max_memory)] {
        if let Some(value) = value.filter(|v| v.is_nan() || *v <= 0.0) {
            return Err(BadInput(format!("{flag} {value}: expected a number of {unit} above 0")).into());
        }
    }
    let options = CompareOptions {
        metric: args.metric.clone(),
        max_latency_s: args.latency.map(|ms| ms / 1e3),
        time_of: args.latency_of,
        max_memory_bytes: args.max_memory.map(|mb| 1e6 * mb),
    };
    let found = compare_runs(&args.runs, &options)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(());
    }
    print(&found);
    let of = if args.latency_of == TimeOf::Call { "a call" } else { "an image" };
    println!("* not beaten in both latency of {of} and {} by another one", found.metric.label);
    let limits = [args.latency.map(|ms| format!("{ms} ms for {of}")), args.max_memory.map(|mb| format!("{mb} MB"))];
    let within = limits.into_iter().flatten().collect::<Vec<_>>().join(" and ");
    let chosen = found.choice.map_or("none of them".into(), |at| format!("{} of {}", found.rows[at].unet, found.rows[at].run));
    if !within.is_empty() {
        println!("within {within}: {chosen}");
    }
    Ok(())
}

fn print(found: &RunComparison) {
    let (value, decline) = (format!(">{}", found.metric.label), ">relative decline");
    let heads = [">params", ">MACs", ">file", ">memory", ">call", ">speed-up", ">image", ">speed-up"];
    let mut table = Table::new(["run", "U-Net"].into_iter().chain(heads).chain([value.as_str(), decline, "against its teacher"]));
    for (i, row) in found.rows.iter().enumerate() {
        let marks = [(row.pareto, " *"), (found.choice == Some(i), " <- ship this")].map(|(on, mark)| if on { mark } else { "" }).concat();
        table.row(cells(row, if found.metric.percent { 100.0 } else { 1.0 }, &marks));
    }
    print!("{table}");
}

fn cells(row: &ComparedUNet, scale: f64, marks: &str) -> [String; 13] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let mb = |n: Option<u64>| or_dash(n.map(|n| format!("{:.1}MB", n as f64 / 1e6)));
    let ms = |s: Option<f64>| or_dash(s.map(|s| format!("{:.2} ms", 1e3 * s)));
    let times = |x: Option<f64>| or_dash(x.map(|x| format!("{x:.2}x")));
    let q = &row.quality;
    let verdict = q.verdict.map_or("-", Verdict::words);
    [
        row.run.clone(),
        row.unet.clone(),
        format!("{:.2}M", row.params as f64 / 1e6),
        format!("{:.2}G", row.macs as f64 / 1e9),
        mb(row.file_bytes),
        mb(row.memory_bytes),
        ms(row.latency_s),
        times(row.speedup),
        ms(row.image_s),
        times(row.image_speedup),
        format!("{:.2} [{:.2}, {:.2}]", q.value.value * scale, q.value.low * scale, q.value.high * scale),
        or_dash(q.decline.map(|d| format!("{:.1} % [{:.1}, {:.1}]", 100.0 * d.value, 100.0 * d.low, 100.0 * d.high))),
        format!("{verdict}{marks}"),
    ]
}
