//! `cargo xtask check` and `cargo xtask test`: everything that must hold before a change lands, cheapest first.
//!
//! Stands beside the data flow. All cargo calls share one target folder and the dev profile, because torch-sys compiles
//! some minutes of C++ once per profile.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::tidy;
use crate::{pipeline, proc, setup};

/// Formatting, house rules, lints, documentation.
pub fn check(root: &Path, verbose: bool) -> Result<()> {
    proc::run(&mut proc::cargo(root, &["fmt", "--all", "--check"]))?;
    tidy::tidy(root)?;
    setup::run(root, verbose)?;
    proc::run(&mut proc::cargo(root, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    proc::run(proc::cargo(root, &["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    eprintln!("check: formatting, house rules, lints and documentation are in order");
    Ok(())
}

/// Test programs to run together.
#[derive(Default)]
struct Group {
    packages: &'static [&'static str],
    environment: Option<(&'static str, &'static str)>,
    skip: Option<&'static str>,
}

/// All tests: first those that need no libtorch, then the workspace, then the commands on a stand-in for a GPU, then xtask's own.
pub fn test(root: &Path, nocapture: bool, filter: Option<&str>, verbose: bool) -> Result<()> {
    setup::run(root, verbose)?;
    let start = Instant::now();
    let groups = [
        Group { packages: &["--package=prune-core"], ..Group::default() },
        Group { packages: &["--workspace", "--exclude=xtask", "--exclude=prune-core"], ..Group::default() },
        // The same test program; a rehearsal chooses its devices itself.
        Group {
            packages: &["--package=laptop-diff", "--test=cli"],
            environment: Some(("LAPTOP_DIFF_TEST_DEVICE", "cuda")),
            skip: Some("rehearsal"),
        },
        Group { packages: &["--package=xtask"], ..Group::default() },
    ];
    let mut total = Counts::default();
    let mut failed = Vec::new();
    for group in groups {
        let mut args = vec!["test", "--no-fail-fast"];
        args.extend(group.packages);
        args.extend(filter);
        args.push("--");
        args.extend(nocapture.then_some("--nocapture"));
        args.extend(group.skip.iter().flat_map(|name| ["--skip", name]));
        let mut command = proc::cargo(root, &args);
        command.envs(group.environment);
        let prefix = group.environment.map_or(String::new(), |(name, value)| format!("{name}={value} "));
        let line = prefix + &proc::show(&command);
        eprintln!("$ {line}");
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{line}`"))?;
        let stdout = child.stdout.take().expect("stdout was piped");
        for text in BufReader::new(stdout).lines() {
            let text = text.with_context(|| format!("cannot read the output of `{line}`"))?;
            println!("{text}");
            total.add(&text);
        }
        if !child.wait()?.success() {
            failed.push(line);
        }
    }
    let time = pipeline::duration(start.elapsed().as_secs_f64());
    println!("test summary: {} passed, {} failed, {} ignored, in {time}", total.passed, total.failed, total.ignored);
    if failed.is_empty() { Ok(()) } else { bail!("these failed:\n  {}", failed.join("\n  ")) }
}

/// Sums of the `test result:` lines of several test programs.
#[derive(Default, Debug, PartialEq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let count =
            |what: &str| rest.split(['.', ';']).find_map(|part| part.trim().strip_suffix(what)?.trim().parse::<u64>().ok()).unwrap_or(0);
        self.passed += count(" passed");
        self.failed += count(" failed");
        self.ignored += count(" ignored");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_are_summed() {
        let mut total = Counts::default();
        total.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s");
        total.add("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s");
        total.add("test some::test ... ok");
        assert_eq!(total, Counts { passed: 13, failed: 2, ignored: 1 });
    }
}
