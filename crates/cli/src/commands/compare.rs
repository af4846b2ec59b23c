//! `laptop-diff compare`: the U-Nets of several runs in one table, and which one to ship at a latency. Reports -> **table**.

use std::path::{Path, PathBuf};

use artifact::Document;
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
    /// The longest latency that is acceptable, in milliseconds; the answer is the best U-Net within it.
    #[arg(long, visible_alias = "max-latency", value_name = "MS")]
    latency: Option<f64>,
    /// What that latency is of: one call of the U-Net, or one whole picture.
    #[arg(long, value_enum, default_value_t = Of::Call)]
    latency_of: Of,
    /// The most memory that is acceptable for drawing a picture, in MB of a million bytes; the GPU's where it was measured on one.
    #[arg(long, value_name = "MB")]
    max_memory: Option<f64>,
    /// Print the table as JSON.
    #[arg(long)]
    json: bool,
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Of {
    /// One call of the U-Net.
    Call,
    /// One picture, from prompt to pixels.
    Picture,
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
    picture_s: Option<f64>,
    picture_speedup: Option<f64>,
    /// Highest memory of a process that draws a picture, or that calls the U-Net where no picture was drawn.
    memory_bytes: Option<u64>,
    file_bytes: Option<u64>,
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
    for (flag, unit, value) in [("--latency", "milliseconds", args.latency), ("--max-memory", "megabytes", args.max_memory)] {
        if let Some(value) = value.filter(|v| v.is_nan() || *v <= 0.0) {
            return Err(BadInput(format!("{flag} {value}: expected a number of {unit} above 0")).into());
        }
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
            let (time, picture) =
                (timings.as_ref().and_then(|t| t.call_of(&unet.names())), timings.as_ref().and_then(|t| t.picture_of(&unet.names())));
            let found = timings.as_ref().and_then(|t| t.footprint_of(&unet.names()));
            rows.push(Row {
                run: run.clone(),
                unet: unet.name.clone(),
                params: unet.params,
                macs: unet.macs,
                latency_s: time.map(|t| t.median_s),
                speedup: time.map(|t| t.speedup),
                picture_s: picture.map(|t| t.median_s),
                picture_speedup: picture.map(|t| t.speedup),
                memory_bytes: found.and_then(|f| f.picture.or(f.call)).map(|p| p.device_bytes.unwrap_or(p.resident_bytes)),
                file_bytes: found.map(|f| f.unet_file_bytes),
                quality: quality.clone(),
                pareto: false,
            });
        }
    }
    let time = |r: &Row| if args.latency_of == Of::Call { r.latency_s } else { r.picture_s };
    let candidates: Vec<Candidate> = rows.iter().map(|r| Candidate { latency_s: time(r), value: r.quality.value.value }).collect();
    let front = pareto_front(&candidates, metric.higher_is_better);
    // One whose memory is not known is not known to fit.
    let fits = |r: &Row| args.max_memory.is_none_or(|mb| r.memory_bytes.is_some_and(|n| n as f64 <= 1e6 * mb));
    let fitting: Vec<Candidate> =
        rows.iter().zip(&candidates).map(|(r, c)| Candidate { latency_s: c.latency_s.filter(|_| fits(r)), value: c.value }).collect();
    let limit = args.latency.map(|ms| ms / 1e3).or(args.max_memory.map(|_| f64::INFINITY));
    let choice = limit.and_then(|limit| best_within(&fitting, limit, metric.higher_is_better));
    for (row, on) in rows.iter_mut().zip(front) {
        row.pareto = on;
    }
    let table = Table { metric, rows, choice };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&table)?);
    } else {
        print(&table, args);
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

fn print(table: &Table, args: &Args) {
    let scale = if table.metric.percent { 100.0 } else { 1.0 };
    let wide = |f: &dyn Fn(&Row) -> &str| table.rows.iter().map(|r| f(r).chars().count()).max().unwrap_or(0).max(5);
    let (run, unet) = (wide(&|r| &r.run), wide(&|r| &r.unet));
    println!(
        "{:run$} {:unet$} {:>9} {:>9} {:>9} {:>11} {:>11} {:>8} {:>12} {:>8} {:>24} {:>27}  against its teacher",
        "run",
        "U-Net",
        "params",
        "MACs",
        "file",
        "memory",
        "call",
        "speed-up",
        "picture",
        "speed-up",
        table.metric.label,
        "relative decline"
    );
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    for (i, row) in table.rows.iter().enumerate() {
        let q = &row.quality;
        let value = format!("{:.2} [{:.2}, {:.2}]", q.value.value * scale, q.value.low * scale, q.value.high * scale);
        let decline = q.decline.map(|d| format!("{:.1} % [{:.1}, {:.1}]", 100.0 * d.value, 100.0 * d.low, 100.0 * d.high));
        let verdict = match q.verdict {
            None => "-",
            Some(Verdict::Better) => "better",
            Some(Verdict::Worse) => "worse",
            Some(Verdict::NotShown) => "no significant difference",
        };
        let marks = [(row.pareto, " *"), (table.choice == Some(i), " <- ship this")].map(|(on, mark)| if on { mark } else { "" }).concat();
        let mb = |n: Option<u64>| or_dash(n.map(|n| format!("{:.1}MB", n as f64 / 1e6)));
        let ms = |s: Option<f64>| or_dash(s.map(|s| format!("{:.2} ms", 1e3 * s)));
        let times = |x: Option<f64>| or_dash(x.map(|x| format!("{x:.2}x")));
        println!(
            "{:run$} {:unet$} {:>8.2}M {:>8.2}G {:>9} {:>11} {:>11} {:>8} {:>12} {:>8} {value:>24} {:>27}  {verdict}{marks}",
            row.run,
            row.unet,
            row.params as f64 / 1e6,
            row.macs as f64 / 1e9,
            mb(row.file_bytes),
            mb(row.memory_bytes),
            ms(row.latency_s),
            times(row.speedup),
            ms(row.picture_s),
            times(row.picture_speedup),
            or_dash(decline),
        );
    }
    let of = if args.latency_of == Of::Call { "a call" } else { "a picture" };
    println!("* not beaten in both latency of {of} and {} by another one", table.metric.label);
    let limits = [args.latency.map(|ms| format!("{ms} ms for {of}")), args.max_memory.map(|mb| format!("{mb} MB"))];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    if limits.is_empty() {
        return;
    }
    let within = limits.join(" and ");
    match table.choice {
        Some(at) => println!("within {within}: {} of {}", table.rows[at].unet, table.rows[at].run),
        None => println!("within {within}: none of them"),
    }
}
