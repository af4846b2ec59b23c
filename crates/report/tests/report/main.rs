//! Tests of the report on a made-up run: its files, its page and Markdown, its claims. Table of contents, in the order of the flow.

mod support;

mod results;
mod page;
mod claims;

/// A run and the folder of its images.
fn run() -> (tempfile::TempDir, ::report::Results) {
    let dir = tempfile::tempdir().unwrap();
    let results = support::results([0, 1, 2], dir.path());
    (dir, results)
}
