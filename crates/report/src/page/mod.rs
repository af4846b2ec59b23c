//! The page: `report.html`, one file that opens without network, and `report.md` with the same tables. Last arrow of the flow.
//!
//! `view` turns the rows of one run into texts and charts, `overview` those of several; the templates only place them.

pub(crate) mod format;
mod svg;
mod charts;
mod plan_charts;
mod unet_drawing;
mod images;
mod summary;
mod tables;
mod speed_tables;
mod view;
mod overview;
mod markdown;
mod model_card;

use std::path::Path;

use eval::Timings;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, Value};
use serde::Serialize;

pub use markdown::{render_markdown, render_runs_markdown};
pub use model_card::render_model_card;

use crate::error::{Error, Result};
use crate::results::Results;

const TEMPLATES: [(&str, &str); 13] = [
    ("page.html", include_str!("templates/page.html")),
    ("overview.html", include_str!("templates/overview.html")),
    ("body.html", include_str!("templates/body.html")),
    ("summary.html", include_str!("templates/summary.html")),
    ("unet.html", include_str!("templates/unet.html")),
    ("scores.html", include_str!("templates/scores.html")),
    ("additivity.html", include_str!("templates/additivity.html")),
    ("plans.html", include_str!("templates/plans.html")),
    ("distillation.html", include_str!("templates/distillation.html")),
    ("quality.html", include_str!("templates/quality.html")),
    ("images.html", include_str!("templates/images.html")),
    ("run.html", include_str!("templates/run.html")),
    ("macros.html", include_str!("templates/macros.html")),
];
const STYLE: &str = include_str!("templates/style.css");
const SCRIPT: &str = include_str!("templates/script.js");

/// One of several runs on a page.
#[derive(Debug, Clone, Copy)]
pub struct RunReport<'a> {
    /// Its name in tables and headings; no other run has the same.
    pub name: &'a str,
    /// What it found.
    pub results: &'a Results,
    /// What the clock said.
    pub timings: Option<&'a Timings>,
    /// The folder that the gallery's images are relative to.
    pub dir: &'a Path,
}

#[derive(Serialize)]
struct Page {
    title: String,
    /// Nothing on the page of one run.
    overview: Option<overview::Overview>,
    runs: Vec<RunOnPage>,
}

#[derive(Serialize)]
struct RunOnPage {
    id: String,
    name: String,
    title: String,
    lead: String,
    body: String,
}

/// The self-contained page of one run. `run_dir` is the folder that the gallery's images are relative to.
///
/// # Errors
/// [`crate::Error::Results`] when the results contradict themselves, [`crate::Error::Io`] and [`crate::Error::File`] for a
/// missing or damaged image.
pub fn render_html(results: &Results, timings: Option<&Timings>, run_dir: &Path) -> Result<String> {
    let run = RunReport { name: &results.title, results, timings, dir: run_dir };
    render(results.title.clone(), &[run], None)
}

/// The self-contained page of several runs: all of them in one table, then each by itself.
///
/// # Errors
/// As [`render_html`]; [`crate::Error::Results`] for no run, or two of one name.
pub fn render_runs_html(title: &str, runs: &[RunReport]) -> Result<String> {
    for (i, run) in runs.iter().enumerate() {
        if runs[..i].iter().any(|other| other.name == run.name) {
            return Err(Error::contradiction("runs", "a name of its own for each", format!("`{}` twice", run.name)));
        }
    }
    if runs.is_empty() {
        return Err(Error::contradiction("runs", "at least one", "none"));
    }
    render(title.to_owned(), runs, Some(overview::Overview::new(runs)))
}

fn render(title: String, runs: &[RunReport], overview: Option<overview::Overview>) -> Result<String> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    for (name, source) in TEMPLATES {
        env.add_template(name, source)?;
    }
    env.add_global("style", Value::from_safe_string(STYLE.into()));
    env.add_global("script", Value::from_safe_string(SCRIPT.into()));
    let many = overview.is_some();
    let place = |(i, run): (usize, &RunReport)| {
        run.results.check()?;
        let id = format!("run-{}", i + 1);
        let (prefix, level) = if many { (format!("{id}-"), 3) } else { (String::new(), 2) };
        let view = view::RunView::new(run, prefix, level)?;
        let (title, lead) = (run.results.title.clone(), view.lead());
        let body = env.get_template("body.html")?.render(Value::from(Serde(view)))?;
        Ok(RunOnPage { id, name: run.name.to_owned(), title, lead, body })
    };
    let runs = runs.iter().enumerate().map(place).collect::<Result<Vec<_>>>()?;
    Ok(env.get_template("page.html")?.render(Value::from(Serde(Page { title, overview, runs })))?)
}
