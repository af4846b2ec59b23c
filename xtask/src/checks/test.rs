//! `cargo xtask test`: all tests, cheapest first, and those whose numbers depend on the processor a second time as an older one.
//!
//! Stands beside the data flow. All cargo calls share one target folder and the dev profile, because torch-sys compiles some minutes of
//! C++ once per profile; a second run of a group starts the same test programs again.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{pipeline, proc, setup};

/// What of `cargo xtask test` can be chosen.
#[derive(Default, clap::Args)]
pub struct Options {
    /// Show what passing tests print.
    #[arg(long)]
    nocapture: bool,
    /// Leave out the tests of this package, which ran already.
    #[arg(long, value_name = "PACKAGE")]
    exclude: Vec<String>,
    /// Tell the slowest tests at the end.
    #[arg(long, value_name = "N", default_value_t = 0)]
    slowest: usize,
    /// Run only tests whose name contains this.
    filter: Option<String>,
}

/// Test programs to run together.
struct Group {
    /// What it is, for messages.
    about: &'static str,
    packages: &'static [&'static str],
    /// Only tests whose name contains one of these; all where there is none.
    filters: &'static [&'static str],
    /// No tests whose name contains one of these.
    skip: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

const ALL: &[&str] = &[];

/// One thread for libtorch, since tests run at once, one per core: with as many threads each, they wait for one another. On two busy
/// cores a test took 10 s with one thread and 246 s with two.
const ONE_THREAD: &[(&str, &str)] = &[("OMP_NUM_THREADS", "1"), ("MKL_NUM_THREADS", "1")];

/// The same as a processor of 2013 for ATen, oneDNN and MKL, whose kernels sum in another order and round differently.
const OLDER: &[(&str, &str)] = &[
    ("ATEN_CPU_CAPABILITY", "avx2"),
    ("ONEDNN_MAX_CPU_ISA", "AVX2"),
    ("MKL_ENABLE_INSTRUCTIONS", "AVX2"),
    ("OMP_NUM_THREADS", "1"),
    ("MKL_NUM_THREADS", "1"),
];

/// In this order: first what needs no libtorch.
const GROUPS: [Group; 7] = [
    Group { about: "without libtorch", packages: &["--package=prune-core", "--tests"], filters: ALL, skip: ALL, environment: &[] },
    Group { about: "its documentation", packages: &["--package=prune-core", DOC], filters: ALL, skip: ALL, environment: &[] },
    Group {
        about: "the workspace",
        packages: &["--workspace", "--exclude=xtask", "--exclude=prune-core", "--tests"],
        filters: ALL,
        skip: ALL,
        environment: ONE_THREAD,
    },
    Group {
        about: "examples in the documentation",
        packages: &["--workspace", "--exclude=xtask", "--exclude=prune-core", DOC],
        filters: ALL,
        skip: ALL,
        environment: ONE_THREAD,
    },
    Group { about: "numbers, as an older processor", packages: NUMERIC_PACKAGES, filters: NUMERIC, skip: ALL, environment: OLDER },
    Group {
        about: "the commands on a stand-in for a GPU",
        packages: &["--workspace", "--exclude=xtask", "--exclude=prune-core", "--test=cli"],
        filters: ALL,
        skip: NOT_ON_THE_STAND_IN,
        environment: &[("LAPTOP_DIFF_TEST_DEVICE", "cuda")],
    },
    Group { about: "xtask and the rehearsals", packages: &["--package=xtask"], filters: ALL, skip: ALL, environment: ONE_THREAD },
];

/// Examples in the documentation, which rustdoc runs itself: no program that could be told anything but what a stable compiler allows.
const DOC: &str = "--doc";

/// Where tests compare numbers that libtorch computes with numbers from elsewhere, within a bound. All packages are selected, so that
/// features, and so the programs, are those of the run before; the targets say which.
const NUMERIC_PACKAGES: &[&str] = &[
    "--workspace",
    "--exclude=xtask",
    "--exclude=prune-core",
    "--lib",
    "--test=unet",
    "--test=diffusion",
    "--test=data",
    "--test=distill",
    "--test=eval",
    "--test=tests",
];

/// Those tests, by module.
const NUMERIC: &[&str] = &[
    "oracle::",
    "scores::",
    "export::a_host",
    "samplers::",
    "calibration::",
    "pipeline::",
    "models::",
    "scorers::",
    "agree",
    "trainer::",
    "recovery::",
    "flow::",
    "plans::",
    "students::",
    "embedded_model::",
];

/// What says nothing new there: tests of words, files and plans, those that name their device anyway, and a rehearsal, which chooses it.
const NOT_ON_THE_STAND_IN: &[&str] =
    &["help::", "device::", "formats::", "limits::", "tables::", "bad_files::", "bad_settings::", "rehearsal::"];

/// Runs every group and sums what they say.
pub fn run(root: &Path, options: &Options, verbose: bool) -> Result<()> {
    setup::run(root, verbose)?;
    let start = Instant::now();
    let mut told = Told::default();
    let mut failed = Vec::new();
    let left_out = |group: &Group| options.exclude.iter().any(|name| group.packages.contains(&format!("--package={name}").as_str()));
    for group in GROUPS.iter().filter(|group| !left_out(group)) {
        let begin = Instant::now();
        if let Some(line) = group.run(root, options, &mut told)? {
            failed.push(line);
        }
        eprintln!("tests, {}: {}", group.about, pipeline::duration(begin.elapsed().as_secs_f64()));
    }
    told.print_slowest(options.slowest);
    let time = pipeline::duration(start.elapsed().as_secs_f64());
    println!("test summary: {} passed, {} failed, {} ignored, in {time}", told.passed, told.failed, told.ignored);
    if failed.is_empty() { Ok(()) } else { bail!("these failed:\n  {}", failed.join("\n  ")) }
}

impl Group {
    /// Runs the group and shows what it prints; the command line, if it failed.
    fn run(&self, root: &Path, options: &Options, told: &mut Told) -> Result<Option<String>> {
        let mut args = vec!["test", "--no-fail-fast"];
        args.extend(self.packages);
        args.push("--");
        args.extend(options.nocapture.then_some("--nocapture"));
        args.extend(self.skip.iter().flat_map(|name| ["--skip", name]));
        match &options.filter {
            // Several filters would be alternatives.
            Some(filter) => args.push(filter),
            None => args.extend(self.filters),
        }
        let timed = options.slowest > 0 && !self.packages.contains(&DOC);
        if timed {
            args.extend(["-Zunstable-options", "--report-time"]);
        }
        let mut command = proc::cargo(root, &args);
        command.envs(self.environment.iter().copied());
        if timed {
            // The test programs alone are told, since cargo would compile everything anew.
            command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "env RUSTC_BOOTSTRAP=1");
        }
        let prefix: String = self.environment.iter().map(|(name, value)| format!("{name}={value} ")).collect();
        let line = prefix + &proc::show(&command);
        eprintln!("$ {line}");
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{line}`"))?;
        let stdout = child.stdout.take().expect("stdout was piped");
        for text in BufReader::new(stdout).lines() {
            let text = text.with_context(|| format!("cannot read the output of `{line}`"))?;
            println!("{text}");
            told.add(&text);
        }
        Ok((!child.wait()?.success()).then_some(line))
    }
}

/// What several test programs said: the sums of their `test result:` lines, and the seconds of each test where they tell.
#[derive(Default, Debug, PartialEq)]
struct Told {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// The longest time of each test.
    seconds: BTreeMap<String, f64>,
}

impl Told {
    fn add(&mut self, line: &str) {
        if let Some((name, rest)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            if let Some(seconds) = rest.split_once('<').and_then(|(_, rest)| rest.strip_suffix("s>")?.parse::<f64>().ok()) {
                let longest = self.seconds.entry(name.to_owned()).or_default();
                *longest = longest.max(seconds);
            }
            return;
        }
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let count =
            |what: &str| rest.split(['.', ';']).find_map(|part| part.trim().strip_suffix(what)?.trim().parse::<u64>().ok()).unwrap_or(0);
        self.passed += count(" passed");
        self.failed += count(" failed");
        self.ignored += count(" ignored");
    }

    /// A table of the slowest tests, and what all of them take one after the other.
    fn print_slowest(&self, count: usize) {
        if count == 0 {
            return;
        }
        let mut tests: Vec<(&String, f64)> = self.seconds.iter().map(|(name, seconds)| (name, *seconds)).collect();
        tests.sort_by(|a, b| b.1.total_cmp(&a.1));
        println!("\n| seconds | test |\n|---:|---|");
        tests.iter().take(count).for_each(|(name, seconds)| println!("| {seconds:.1} | `{name}` |"));
        println!("| {:.1} | all {} |", self.seconds.values().sum::<f64>(), tests.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_are_summed() {
        let mut total = Told::default();
        total.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s");
        total.add("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s");
        total.add("test some::test ... ok");
        total.add("test some::other ... ok <1.250s>");
        total.add("test some::other ... FAILED <0.500s>");
        let seconds = BTreeMap::from([("some::other".to_owned(), 1.25)]);
        assert_eq!(total, Told { passed: 13, failed: 2, ignored: 1, seconds });
    }
}
