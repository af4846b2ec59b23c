//! `laptop-diff report`: the files of one or several run directories -> **results.json, report.html, report.md**. End of the flow.

use std::path::PathBuf;

use report::{RunDir, WriteOptions};

use crate::common::{BadInput, prepare_file};

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

/// Reads and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let out = match (&args.out, args.runs.as_slice()) {
        (Some(out), _) => out.clone(),
        (None, [run]) => run.join("report.html"),
        _ => return Err(BadInput("several run directories: the page belongs to none of them; name it with --out".into()).into()),
    };
    if let [run] = args.runs.as_slice() {
        let run = RunDir::open(run)?;
        prepare_file(&out)?;
        let (title, headline, model_cards) = (args.title.clone(), args.headline.clone(), args.model_card.clone());
        report::write(&run, &out, &WriteOptions { title, headline, model_cards })?;
    } else {
        for (flag, given) in [("--headline", args.headline.is_some()), ("--model-card", !args.model_card.is_empty())] {
            if given {
                return Err(BadInput(format!("{flag} is for one run directory, got {}", args.runs.len())).into());
            }
        }
        prepare_file(&out)?;
        report::write_several(&args.runs, &out, args.title.as_deref())?;
    }
    println!("{}", out.display());
    Ok(())
}
