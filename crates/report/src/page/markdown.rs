//! `report.md`: the summary and the tables of the page, for terminals, pull requests and read-mes.

use std::fmt::Write;

use eval::Timings;

use super::overview::Overview;
use super::tables::{self, Table};
use super::{RunReport, format, speed_tables, summary};
use crate::results::Results;

/// The report as markdown; images and charts are in the page only.
pub fn render_markdown(results: &Results, timings: Option<&Timings>) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "# {}\n", results.title);
    for sentence in summary::sentences(results, timings) {
        let _ = writeln!(out, "- {sentence}");
    }
    if !results.claims.is_empty() {
        let _ = writeln!(out, "\n## Which claims held\n");
        for c in &results.claims {
            let _ = writeln!(out, "- **{}**: {} {}", format::outcome(c.outcome), c.statement, c.evidence);
        }
    }
    section(&mut out, "Quality", Some(tables::metric_table(results)));
    section(&mut out, "Published results beside ours", tables::published_table(results));
    section(&mut out, "Students against each other", tables::comparison_table(results));
    section(&mut out, "Quality by category", tables::category_table(results));
    section(&mut out, "Size and memory", speed_tables::size_table(results, timings));
    section(&mut out, "Speed", speed_tables::speed_table(results, timings));
    section(&mut out, "Plans", Some(tables::plan_table(results)));
    section(&mut out, "Additivity", Some(tables::audit_table(results)));
    section(&mut out, "Additivity by kind and depth of layer", Some(tables::part_table(results)));
    section(&mut out, "Retraining", Some(tables::distill_table(results)));
    if !results.provenance.commands.is_empty() {
        let _ = writeln!(out, "\n## Commands\n\n```sh");
        for c in &results.provenance.commands {
            let _ = writeln!(out, "{}", c.line);
        }
        let _ = writeln!(out, "```");
    }
    let of_run = timings.map_or_else(Vec::new, speed_tables::hardware).into_iter().map(|[k, v]| (k, v));
    let versions = results.provenance.versions.iter().map(|(k, v)| (k.clone(), v.clone()));
    let seeds = results.provenance.seeds.iter().map(|(k, v)| (format!("seed of {k}"), v.to_string()));
    let mut table = Table::new("Versions, seeds and machine", &["what", "value"]);
    for (key, value) in versions.chain(seeds).chain(of_run) {
        table.push(false, vec![key, value]);
    }
    section(&mut out, "Run", Some(table));
    section(&mut out, "Time", Some(speed_tables::stage_table(timings)));
    out
}

/// Several runs as markdown: all of them in one table, then each by itself.
pub fn render_runs_markdown(title: &str, runs: &[RunReport]) -> String {
    let overview = Overview::new(runs);
    let mut out = format!("# {title}\n");
    for note in &overview.notes {
        let _ = writeln!(out, "\n{note}");
    }
    section(&mut out, "Runs", Some(overview.runs));
    for (title, table) in ["Size and speed of all runs", "Quality of all runs"].into_iter().zip(overview.tables) {
        section(&mut out, title, Some(table));
    }
    for run in runs {
        let _ = writeln!(out, "\n## {}\n", run.name);
        let mut in_code = false;
        for line in render_markdown(run.results, run.timings).lines() {
            in_code ^= line.starts_with("```");
            // One level deeper, so that the document has one title; a command's comment is no heading.
            let deeper = if line.starts_with('#') && !in_code { "##" } else { "" };
            let _ = writeln!(out, "{deeper}{line}");
        }
    }
    out
}

pub(super) fn section(out: &mut String, title: &str, table: Option<Table>) {
    let Some(table) = table.filter(|t| !t.rows.is_empty()) else { return };
    let line = |cells: &[String]| {
        format!("| {} |", cells.iter().map(|c| c.replace('|', "\\|").replace('\n', " ")).collect::<Vec<_>>().join(" | "))
    };
    let _ = writeln!(out, "\n## {title}\n\n{}.\n\n{}", table.caption, line(&table.head));
    let _ = writeln!(out, "|{}", " --- |".repeat(table.head.len()));
    for row in &table.rows {
        let cells: Vec<String> =
            row.cells.iter().map(|c| if row.strong && !c.is_empty() { format!("**{c}**") } else { c.clone() }).collect();
        let _ = writeln!(out, "{}", line(&cells));
    }
}
