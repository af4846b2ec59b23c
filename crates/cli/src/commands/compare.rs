//! `laptop-diff compare`: the U-Nets of several runs in one table, and which one to ship at a latency. Reports -> **table**.

use std::path::{Path, PathBuf};

use eval::{Candidate, MetricInfo, MetricValue, Results, Timings, Verdict, Versioned, best_within, pareto_front};
use serde::Serialize;

use crate::common::BadInput;

/// Arguments of `compare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run directories with the results.json and timings.json that `report` wrote.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// The metric that decides [default: the first that all runs have].
    #[arg(long)]
    metric: Option<String>,
    /// The longest latency of one U-Net call that is acceptable, in milliseconds.
    #[arg(long, value_name = "MS")]
    latency: Option<f64>,
    /// Print the table as JSON.
    #[arg(long)]
    json: bool,
}

/// One U-Net of one run.
#[derive(Debug, Serialize)]
struct Row {
    run: String,
    unet: String,
    params: u64,
    macs: u64,
    latency_s: Option<f64>,
    speedup: Option<f64>,
    #[serde(flatten)]
    quality: MetricValue,
    /// Not beaten in latency and the metric by another one.
    pareto: bool,
}

#[derive(Debug, Serialize)]
struct Table {
    metric: MetricInfo,
    rows: Vec<Row>,
    /// Place of the best row within the latency, where one was given and met.
    choice: Option<usize>,
}

/// Reads and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.latency.is_some_and(|l| l.is_nan() || l <= 0.0) {
        return Err(BadInput("--latency: expected a number of milliseconds above 0".into()).into());
    }
    let read = |dir: &PathBuf| -> anyhow::Result<(String, Results, Option<Timings>)> {
        let results = Results::read(&dir.join("results.json"))?;
        let timings = dir.join("timings.json");
        let timings = if timings.is_file() { Some(Timings::read(&timings)?) } else { None };
        Ok((name(dir), results, timings))
    };
    let runs = args.runs.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let metric = metric(&runs.iter().map(|(_, r, _)| r).collect::<Vec<_>>(), args.metric.as_deref())?;
    let mut rows = Vec::new();
    for (run, results, timings) in &runs {
        for unet in &results.unets {
            let Some(quality) = unet.metric(&metric.id) else { continue };
            let time = timings.as_ref().and_then(|t| t.latency.iter().find(|l| l.unet == unet.name));
            rows.push(Row {
                run: run.clone(),
                unet: unet.name.clone(),
                params: unet.params,
                macs: unet.macs,
                latency_s: time.map(|t| t.median_s),
                speedup: time.map(|t| t.speedup),
                quality: quality.clone(),
                pareto: false,
            });
        }
    }
    let candidates: Vec<Candidate> = rows.iter().map(|r| Candidate { latency_s: r.latency_s, value: r.quality.value.value }).collect();
    for (row, on) in rows.iter_mut().zip(pareto_front(&candidates, metric.higher_is_better)) {
        row.pareto = on;
    }
    let choice = args.latency.and_then(|ms| best_within(&candidates, ms / 1e3, metric.higher_is_better));
    let table = Table { metric, rows, choice };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&table)?);
    } else {
        print(&table, args.latency);
    }
    Ok(())
}

fn name(dir: &Path) -> String {
    let name = std::fs::canonicalize(dir).ok().and_then(|d| d.file_name().map(|n| n.to_string_lossy().into_owned()));
    name.unwrap_or_else(|| dir.display().to_string())
}

/// The metric that was asked for, or the first one that every run has.
fn metric(runs: &[&Results], asked: Option<&str>) -> anyhow::Result<MetricInfo> {
    let everywhere = |id: &str| runs.iter().all(|r| r.metric(id).is_some());
    let common: Vec<&MetricInfo> = runs[0].metrics.iter().filter(|m| everywhere(&m.id)).collect();
    let found = match asked {
        Some(id) => common.iter().find(|m| m.id == id),
        None => common.first(),
    };
    let known: Vec<&str> = common.iter().map(|m| m.id.as_str()).collect();
    let problem = || match asked {
        Some(id) => format!("--metric {id}: expected one that every run has ({}), got another", known.join(", ")),
        None => "the runs have no metric in common; evaluate them with the same --metric".into(),
    };
    Ok((*found.ok_or_else(|| BadInput(problem()))?).clone())
}

fn print(table: &Table, latency: Option<f64>) {
    let scale = if table.metric.percent { 100.0 } else { 1.0 };
    let wide = |f: &dyn Fn(&Row) -> &str| table.rows.iter().map(|r| f(r).chars().count()).max().unwrap_or(0).max(5);
    let (run, unet) = (wide(&|r| &r.run), wide(&|r| &r.unet));
    println!(
        "{:run$} {:unet$} {:>9} {:>9} {:>11} {:>8} {:>24} {:>27}  against its teacher",
        "run", "U-Net", "params", "MACs", "latency", "speed-up", table.metric.label, "relative decline"
    );
    for (i, row) in table.rows.iter().enumerate() {
        let q = &row.quality;
        let value = format!("{:.2} [{:.2}, {:.2}]", q.value.value * scale, q.value.low * scale, q.value.high * scale);
        let decline = q.decline.map_or("-".into(), |d| format!("{:.1} % [{:.1}, {:.1}]", 100.0 * d.value, 100.0 * d.low, 100.0 * d.high));
        let verdict = match q.verdict {
            None => "-",
            Some(Verdict::Better) => "better",
            Some(Verdict::Worse) => "worse",
            Some(Verdict::NotShown) => "no significant difference",
        };
        let marks = [(row.pareto, " *"), (table.choice == Some(i), " <- ship this")].map(|(on, mark)| if on { mark } else { "" }).concat();
        println!(
            "{:run$} {:unet$} {:>8.2}M {:>8.2}G {:>11} {:>8} {value:>24} {decline:>27}  {verdict}{marks}",
            row.run,
            row.unet,
            row.params as f64 / 1e6,
            row.macs as f64 / 1e9,
            row.latency_s.map_or("-".into(), |s| format!("{:.2} ms", 1e3 * s)),
            row.speedup.map_or("-".into(), |s| format!("{s:.2}x")),
        );
    }
    println!("* not beaten in both latency and {} by another one", table.metric.label);
    match (latency, table.choice) {
        (Some(ms), Some(at)) => println!("within {ms} ms: {} of {}", table.rows[at].unet, table.rows[at].run),
        (Some(ms), None) => println!("within {ms} ms: none of them"),
        (None, _) => {}
    }
}
