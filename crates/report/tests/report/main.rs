//! Tests of the report. On a made-up run: its files, its page and Markdown, its claims; then the examples on a small model.

mod support;

mod results;
mod page;
mod claims;
mod examples;

/// A run and the folder of its images.
fn run() -> (tempfile::TempDir, ::report::Results) {
    let dir = tempfile::tempdir().unwrap();
    let results = support::results([0, 1, 2], dir.path());
    (dir, results)
}
