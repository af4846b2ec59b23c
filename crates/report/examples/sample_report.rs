//! Writes the report of a made-up run into a folder, to look at the page without a run: `sample_report FOLDER [sdxl]`; beside it
//! `runs.html`, with a second run at its side.

#[path = "../tests/report/support.rs"]
mod sample;

use std::path::PathBuf;

use artifact::{Document, write_bytes};
use report::{RunReport, render_html, render_markdown, render_runs_html, render_runs_markdown};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("name the folder to write into")?);
    let depths = if args.next().as_deref() == Some("sdxl") { [0, 2, 10] } else { [0, 1, 2] };
    std::fs::create_dir_all(&dir)?;
    let (results, timings) = (sample::results(depths, &dir), sample::timings());
    results.write(&dir.join("results.json"))?;
    timings.write(&dir.join("timings.json"))?;
    write_bytes(&dir.join("report.html"), render_html(&results, Some(&timings), &dir)?.as_bytes())?;
    write_bytes(&dir.join("report.md"), render_markdown(&results, Some(&timings)).as_bytes())?;
    let (other_dir, other_times) = (dir.join("second"), sample::timings());
    std::fs::create_dir_all(&other_dir)?;
    let other = sample::results([0, 2, 3], &other_dir);
    let runs = [
        RunReport { name: "first", results: &results, timings: Some(&timings), dir: &dir },
        RunReport { name: "second", results: &other, timings: Some(&other_times), dir: &other_dir },
        RunReport { name: "third, not timed", results: &results, timings: None, dir: &dir },
    ];
    write_bytes(&dir.join("runs.html"), render_runs_html("Made-up runs", &runs)?.as_bytes())?;
    write_bytes(&dir.join("runs.md"), render_runs_markdown("Made-up runs", &runs).as_bytes())?;
    Ok(())
}
