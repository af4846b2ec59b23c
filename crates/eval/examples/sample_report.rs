//! Writes the report of a made-up run into a folder, to look at the page without a run: `sample_report FOLDER [sdxl]`.

#[path = "../tests/sample/mod.rs"]
mod sample;

use std::path::PathBuf;

use eval::{Versioned, render_html, render_markdown, write_whole};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("name the folder to write into")?);
    let depths = if args.next().as_deref() == Some("sdxl") { [0, 2, 10] } else { [0, 1, 2] };
    std::fs::create_dir_all(&dir)?;
    let (results, timings) = (sample::results(depths, &dir), sample::timings());
    results.write(&dir.join("results.json"))?;
    timings.write(&dir.join("timings.json"))?;
    write_whole(&dir.join("report.html"), render_html(&results, Some(&timings), &dir)?.as_bytes())?;
    write_whole(&dir.join("report.md"), render_markdown(&results, Some(&timings)).as_bytes())?;
    Ok(())
}
