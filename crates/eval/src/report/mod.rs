//! The page: `report.html`, one file that opens without network, and `report.md` with the same tables. Last arrow of the flow.
//!
//! `view` turns rows into texts and charts, the templates only place them.

mod format;
mod svg;
mod charts;
mod unet_drawing;
mod pictures;
mod summary;
mod tables;
mod view;
mod markdown;
mod model_card;

use std::path::Path;

use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, Value};

pub use markdown::render_markdown;
pub use model_card::render_model_card;

use crate::error::Result;
use crate::results::{Results, Timings, Versioned};

const TEMPLATES: [(&str, &str); 11] = [
    ("page.html", include_str!("templates/page.html")),
    ("summary.html", include_str!("templates/summary.html")),
    ("unet.html", include_str!("templates/unet.html")),
    ("scores.html", include_str!("templates/scores.html")),
    ("additivity.html", include_str!("templates/additivity.html")),
    ("plans.html", include_str!("templates/plans.html")),
    ("distillation.html", include_str!("templates/distillation.html")),
    ("quality.html", include_str!("templates/quality.html")),
    ("pictures.html", include_str!("templates/pictures.html")),
    ("run.html", include_str!("templates/run.html")),
    ("macros.html", include_str!("templates/macros.html")),
];
const STYLE: &str = include_str!("templates/style.css");
const SCRIPT: &str = include_str!("templates/script.js");

/// The self-contained page. `run_dir` is the folder that the gallery's pictures are relative to.
///
/// # Errors
/// [`crate::Error::Results`] when the results contradict themselves, [`crate::Error::Io`] and [`crate::Error::Format`] for a
/// missing or damaged picture.
pub fn render_html(results: &Results, timings: Option<&Timings>, run_dir: &Path) -> Result<String> {
    results.check()?;
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    for (name, source) in TEMPLATES {
        env.add_template(name, source)?;
    }
    env.add_global("style", Value::from_safe_string(STYLE.into()));
    env.add_global("script", Value::from_safe_string(SCRIPT.into()));
    let page = view::Page::new(results, timings, run_dir)?;
    Ok(env.get_template("page.html")?.render(Value::from(Serde(page)))?)
}
