//! All files of a report at once: page, Markdown, results, times, model cards. Run folders -> **files**.

use std::path::{Path, PathBuf};

use artifact::{Document, write_bytes, write_json};
use eval::Timings;

use crate::error::{Error, Result};
use crate::page::{RunReport, render_html, render_markdown, render_model_card, render_runs_html, render_runs_markdown};
use crate::results::{Results, RunsFile};
use crate::run_dir::RunDir;

/// What a report says beyond the run's files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// One line that names the run.
    pub title: Option<String>,
    /// The plan that the summary speaks of; the exact plan by output loss that was retrained where none is given.
    pub headline: Option<String>,
    /// Students whose model cards are written too, to `model-card-NAME.md`.
    pub model_cards: Vec<String>,
}

/// Writes the report of one run: the page to `page`, and beside it `report.md`, `results.json`, `timings.json` and the model cards.
/// Nothing is written where something cannot be rendered.
///
/// # Errors
/// Those of [`RunDir::results`] and [`render_html`]; [`Error::Results`] for a model card of an unknown U-Net.
pub fn write(run: &RunDir, page: &Path, options: &WriteOptions) -> Result<Results> {
    let results = run.results(options.title.as_deref(), options.headline.as_deref())?;
    let timings = run.timings()?;
    let html = render_html(&results, Some(&timings), run.path())?;
    let markdown = render_markdown(&results, Some(&timings));
    let card = |name: &String| Ok((name.clone(), render_model_card(&results, Some(&timings), name)?));
    let cards = options.model_cards.iter().map(card).collect::<Result<Vec<_>>>()?;
    results.write(&page.with_file_name("results.json"))?;
    timings.write(&page.with_file_name("timings.json"))?;
    write_bytes(&page.with_file_name("report.md"), markdown.as_bytes())?;
    write_bytes(page, html.as_bytes())?;
    for (name, card) in cards {
        write_bytes(&page.with_file_name(format!("model-card-{name}.md")), card.as_bytes())?;
    }
    Ok(results)
}

/// Writes one page of several runs to `page`, and beside it `report.md` and `runs.json` with the results and times of all.
///
/// # Errors
/// As [`write()`]; [`Error::Input`] when one folder is named twice.
pub fn write_several(runs: &[PathBuf], page: &Path, title: Option<&str>) -> Result<()> {
    let names = distinct_names(runs)?;
    let read = |path: &PathBuf| {
        let run = RunDir::open(path)?;
        Ok((run.results(None, None)?, run.timings()?))
    };
    let found: Vec<(Results, Timings)> = runs.iter().map(read).collect::<Result<_>>()?;
    let title = title.map_or_else(|| format!("{} runs of LAPTOP-Diff", runs.len()), str::to_string);
    let rows = || names.iter().zip(&found).zip(runs);
    let reports: Vec<RunReport> =
        rows().map(|((name, (results, timings)), dir)| RunReport { name, results, timings: Some(timings), dir }).collect();
    let (html, markdown) = (render_runs_html(&title, &reports)?, render_runs_markdown(&title, &reports));
    let file = RunsFile::new(&title, rows().map(|((name, (results, timings)), _)| (name.as_str(), results, timings)));
    write_json(&page.with_file_name("runs.json"), &file)?;
    write_bytes(&page.with_file_name("report.md"), markdown.as_bytes())?;
    Ok(write_bytes(page, html.as_bytes())?)
}

/// The folders' names; where two are alike, with the folders above that tell them apart.
fn distinct_names(runs: &[PathBuf]) -> Result<Vec<String>> {
    let full: Vec<PathBuf> = runs.iter().map(|dir| std::fs::canonicalize(dir).unwrap_or_else(|_| dir.clone())).collect();
    if let Some(i) = (0..full.len()).find(|&i| full[..i].contains(&full[i])) {
        return Err(Error::input("run directory", "each once", format!("{} is there twice", runs[i].display())));
    }
    let last = |path: &PathBuf, parts: usize| {
        let all: Vec<_> = path.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
        all[all.len().saturating_sub(parts)..].join("/")
    };
    let most = full.iter().map(|p| p.components().count()).max().unwrap_or(1);
    let named = |parts| full.iter().map(|p| last(p, parts)).collect::<Vec<_>>();
    let clear = |names: &Vec<String>| (0..names.len()).all(|i| !names[..i].contains(&names[i]));
    Ok((1..=most).map(named).find(clear).unwrap_or_else(|| named(most)))
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
