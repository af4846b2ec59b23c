//! `laptop-diff report`: the files of one or several run directories -> **results.json, report.html, report.md**. End of the flow.

use std::path::{Path, PathBuf};

use artifact::Document;
use eval::{
    Hardware, Results, RunReport, Timings, Versioned, render_html, render_markdown, render_model_card, render_runs_html,
    render_runs_markdown,
};
use serde::{Deserialize, Serialize};

use crate::collect;
use crate::common::{BadFile, BadInput, prepare_file};

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
  published.json                   declines that others published, to be set beside these
  commands.json                    the commands that were run and how long they took")]
pub struct Args {
    /// The run directory; several stand side by side on one page.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// The page to write; report.md goes to the same folder, and results.json and timings.json, or runs.json with those of several
    /// runs [default: RUN/report.html; several runs need one].
    #[arg(long)]
    out: Option<PathBuf>,
    /// One line that names the run, or the page of several.
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
    /// Highest resident memory of its process, in bytes.
    #[serde(default)]
    pub peak_rss_bytes: Option<u64>,
}

/// `runs.json`: the results and times of several runs, as each has them in its own files.
#[derive(Debug, Serialize)]
struct RunsFile<'a> {
    format: &'static str,
    version: u32,
    title: &'a str,
    runs: Vec<RunRow<'a>>,
}

#[derive(Debug, Serialize)]
struct RunRow<'a> {
    name: &'a str,
    results: &'a Results,
    timings: &'a Timings,
}

/// Collects and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    for run in &args.runs {
        if !run.is_dir() {
            return Err(BadFile::new(run, "no such folder", "name a run directory").into());
        }
    }
    match args.runs.as_slice() {
        [run] => one(args, run),
        runs => several(args, runs),
    }
}

fn one(args: &Args, run: &Path) -> anyhow::Result<()> {
    let out = args.out.clone().unwrap_or_else(|| run.join("report.html"));
    prepare_file(&out)?;
    let (results, timings) = collected(run, args.title.as_deref(), args.headline.as_deref())?;
    let html = render_html(&results, Some(&timings), run)?;
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

fn several(args: &Args, runs: &[PathBuf]) -> anyhow::Result<()> {
    let Some(out) = &args.out else {
        return Err(BadInput("several run directories: the page belongs to none of them; name it with --out".into()).into());
    };
    for (flag, given) in [("--headline", args.headline.is_some()), ("--model-card", !args.model_card.is_empty())] {
        if given {
            return Err(BadInput(format!("{flag} is for one run directory, got {}", runs.len())).into());
        }
    }
    prepare_file(out)?;
    let names = distinct_names(runs)?;
    let collected = runs.iter().map(|run| collected(run, None, None)).collect::<anyhow::Result<Vec<_>>>()?;
    let title = args.title.clone().unwrap_or_else(|| format!("{} runs of LAPTOP-Diff", runs.len()));
    let rows = || names.iter().zip(&collected).zip(runs);
    let reports: Vec<RunReport> =
        rows().map(|((name, (results, timings)), dir)| RunReport { name, results, timings: Some(timings), dir }).collect();
    let (html, markdown) = (render_runs_html(&title, &reports)?, render_runs_markdown(&title, &reports));
    let runs = rows().map(|((name, (results, timings)), _)| RunRow { name, results, timings }).collect();
    let file = RunsFile { format: "laptop-diff/runs", version: 1, title: &title, runs };
    prune_core::file::write_json(&out.with_file_name("runs.json"), &file)?;
    eval::write_whole(&out.with_file_name("report.md"), markdown.as_bytes())?;
    eval::write_whole(out, html.as_bytes())?;
    println!("{}", out.display());
    Ok(())
}

/// What is known of one run directory.
fn collected(run: &Path, title: Option<&str>, headline: Option<&str>) -> anyhow::Result<(Results, Timings)> {
    let commands = read_commands(run)?;
    let results = collect::results(run, &commands.commands, title, headline)?;
    Ok((results, timings(run, &commands.stages)?))
}

/// The folders' names; where two are alike, with the folder above.
///
/// # Errors
/// [`BadInput`] when one folder is named twice.
pub fn distinct_names(runs: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let full: Vec<PathBuf> = runs.iter().map(|dir| std::fs::canonicalize(dir).unwrap_or_else(|_| dir.clone())).collect();
    if let Some(i) = (0..full.len()).find(|&i| full[..i].contains(&full[i])) {
        return Err(BadInput(format!("{}: this run directory is there twice", runs[i].display())).into());
    }
    // As many parts of the paths as it takes to tell them apart.
    let last = |path: &PathBuf, parts: usize| {
        let all: Vec<_> = path.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
        all[all.len().saturating_sub(parts)..].join("/")
    };
    let most = full.iter().map(|p| p.components().count()).max().unwrap_or(1);
    let named = |parts| full.iter().map(|p| last(p, parts)).collect::<Vec<_>>();
    let clear = |names: &Vec<String>| (0..names.len()).all(|i| !names[..i].contains(&names[i]));
    Ok((1..=most).map(named).find(clear).unwrap_or_else(|| named(most)))
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
    let row = |s: &Seconds| eval::StageTime { stage: s.stage.clone(), seconds: s.seconds, peak_rss_bytes: s.peak_rss_bytes };
    timings.stages = stages.iter().map(row).collect();
    Ok(timings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_named_by_as_much_of_their_paths_as_tells_them_apart() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["a/tiny", "b/tiny", "b/large"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        let names = |of: &[&str]| distinct_names(&of.iter().map(|n| at(n)).collect::<Vec<_>>());
        assert_eq!(names(&["a/tiny", "b/large"]).unwrap(), ["tiny", "large"]);
        assert_eq!(names(&["a/tiny", "b/tiny"]).unwrap(), ["a/tiny", "b/tiny"]);
        assert!(names(&["a/tiny", "a/../a/tiny"]).unwrap_err().to_string().contains("twice"));
    }
}
