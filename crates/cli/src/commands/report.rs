//! `laptop-diff report`: the files of a run directory -> **results.json, report.html, report.md**. End of the flow.

use std::path::{Path, PathBuf};

use eval::{Hardware, Timings, Versioned, render_html, render_markdown, render_model_card};
use serde::Deserialize;

use crate::collect;
use crate::common::{BadFile, prepare_file};

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Files of a run directory that are read (all but layers.json may be missing):
  layers.json                      inspect --out
  scores/<criterion>.json          score --out
  audit.json                       audit --out
  plans/<plan>.json                plan --out
  joint.json                       joint --out
  distill/<name>/                  distill --out
  images/<name>/                   generate --out
  eval.json, per_prompt.json       eval --out
  speed.json                       speed --out
  commands.json                    the commands that were run and how long they took")]
pub struct Args {
    /// The run directory.
    run: PathBuf,
    /// The page to write; results.json, timings.json and report.md go to the same folder [default: RUN/report.html].
    #[arg(long)]
    out: Option<PathBuf>,
    /// One line that names the run.
    #[arg(long)]
    title: Option<String>,
    /// The plan that the summary speaks of [default: the exact plan by output loss that was retrained].
    #[arg(long)]
    headline: Option<String>,
    /// A student whose model card is written too, to model-card-NAME.md in the same folder; may be repeated.
    #[arg(long, value_name = "NAME")]
    model_card: Vec<String>,
}

/// `commands.json`, written by whoever drives the stages.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commands {
    /// The lines, in order.
    pub commands: Vec<eval::Command>,
    /// How long the stages took.
    pub stages: Vec<Seconds>,
}

/// One stage's time.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seconds {
    /// The stage.
    pub stage: String,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// Collects and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if !args.run.is_dir() {
        return Err(BadFile::new(&args.run, "no such folder", "name a run directory").into());
    }
    let out = args.out.clone().unwrap_or_else(|| args.run.join("report.html"));
    prepare_file(&out)?;
    let commands = read_commands(&args.run)?;
    let results = collect::results(&args.run, &commands.commands, args.title.as_deref(), args.headline.as_deref())?;
    let timings = timings(&args.run, &commands.stages)?;

    let html = render_html(&results, Some(&timings), &args.run)?;
    let markdown = render_markdown(&results, Some(&timings));
    let cards = args.model_card.iter().map(|name| Ok((name, render_model_card(&results, Some(&timings), name)?)));
    let cards = cards.collect::<eval::Result<Vec<_>>>()?;
    results.write(&out.with_file_name("results.json"))?;
    timings.write(&out.with_file_name("timings.json"))?;
    eval::write_whole(&out.with_file_name("report.md"), markdown.as_bytes())?;
    eval::write_whole(&out, html.as_bytes())?;
    for (name, card) in cards {
        eval::write_whole(&out.with_file_name(format!("model-card-{name}.md")), card.as_bytes())?;
    }
    println!("{}", out.display());
    Ok(())
}

fn read_commands(run: &Path) -> anyhow::Result<Commands> {
    let path = run.join("commands.json");
    if !path.is_file() {
        return Ok(Commands { commands: Vec::new(), stages: Vec::new() });
    }
    let bad = |problem: String| BadFile::new(&path, problem, "remove it, or let the pipeline write it again");
    let text = std::fs::read_to_string(&path).map_err(|e| bad(e.to_string()))?;
    Ok(serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?)
}

fn timings(run: &Path, stages: &[Seconds]) -> anyhow::Result<Timings> {
    let speed = run.join("speed.json");
    let mut timings = if speed.is_file() { Timings::read(&speed)? } else { Timings::new(Hardware::detect("not measured")) };
    let row = |s: &Seconds| eval::StageTime { stage: s.stage.clone(), seconds: s.seconds, peak_rss_bytes: None };
    timings.stages = stages.iter().map(row).collect();
    Ok(timings)
}
