//! House rules that no compiler checks: who may depend on whom, how files begin, and words that must not be committed.
//!
//! Stands beside the data flow and guards its order: an edge that is not in [`ALLOWED`] is an error. Runs as
//! `cargo xtask tidy` and as a test. `command` holds the rules of the thin command, `documents` those of what people read.

mod command;
mod documents;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::proc;

/// Every package of the workspace and which of the others it may depend on, in any way (normal, build or dev).
const ALLOWED: [(&str, &[&str]); 15] = [
    ("prune-core", &[]),
    ("prune-core-python", &["prune-core"]),
    ("artifact", &["prune-core"]),
    ("scenes", &[]),
    ("unet", &["prune-core", "artifact", "torch-ext"]),
    ("diffusion", &["artifact", "unet"]),
    ("torch-ext", &[]),
    ("data", &["unet", "diffusion", "artifact", "scenes"]),
    ("distill", &["artifact", "unet", "diffusion", "data", "torch-ext"]),
    ("eval", &["artifact", "unet", "diffusion", "data", "scenes"]),
    ("report", &["prune-core", "artifact", "unet", "diffusion", "data", "distill", "eval", "scenes"]),
    (
        "laptop-diff",
        &["prune-core", "artifact", "scenes", "unet", "diffusion", "data", "distill", "torch-ext", "eval", "report", "cuda-standin"],
    ),
    ("cuda-standin", &[]),
    ("laptop-diff-tests", &["prune-core", "scenes", "unet", "diffusion", "data", "distill", "eval", "laptop-diff"]),
    ("xtask", &[]),
];

/// What the packages that work without libtorch must not reach, not even through others.
const LIBTORCH: [&str; 2] = ["tch", "torch-sys"];
const WITHOUT_LIBTORCH: [&str; 5] = ["prune-core", "prune-core-python", "artifact", "scenes", "xtask"];

/// A Rust file longer than this is reported, but allowed.
const LONG: usize = 500;

/// Words that must not stand in any file. Put together here, so that this file does not contain them itself.
const FORBIDDEN: [(&str, &str); 4] = [
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("/ro", "ot/"), "a path of one machine"),
    (concat!("../sha", "red"), "a path outside the repository"),
    (concat!("TO", "DO"), "unfinished work; finish it or open an issue"),
];

/// A word that library code avoids, and the comment that excuses an exception on the same line or the line before.
struct Rule {
    words: &'static [&'static str],
    advice: &'static str,
    excuse: &'static str,
}

const SPEAKS: &str = "speaks";

/// Why a test may be ignored: it would be green for doing nothing where no other test started it.
const STARTED: &str = "\"a program that another test starts\"";

/// Rules for `crates/*/src` outside tests. The command-line program may print and end, which the second is about.
const LIBRARY: [Rule; 2] = [
    Rule { words: &["HashMap", "HashSet"], advice: "its order changes from run to run; use BTreeMap or BTreeSet", excuse: "hashed" },
    Rule {
        words: &["println!", "eprintln!", "print!", "eprint!", "env::var", "env::var_os", "process::exit"],
        advice: "only the command-line program prints, reads the environment or ends the process; return or trace it",
        excuse: SPEAKS,
    },
];

/// Checks everything, prints each problem, and fails if there is one.
pub fn tidy(root: &Path) -> Result<()> {
    let report = inspect(root)?;
    for warning in &report.warnings {
        eprintln!("tidy: note: {warning}");
    }
    for problem in &report.problems {
        eprintln!("tidy: {problem}");
    }
    match report.problems.len() {
        0 => Ok(()),
        count => bail!("tidy found {count} problem{}", if count == 1 { "" } else { "s" }),
    }
}

#[derive(Default)]
struct Report {
    problems: Vec<String>,
    warnings: Vec<String>,
}

fn inspect(root: &Path) -> Result<Report> {
    let mut report = Report::default();
    let text = proc::capture(&mut proc::cargo(root, &["metadata", "--format-version=1", "--filter-platform=x86_64-unknown-linux-gnu"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cannot read the output of `cargo metadata`")?;
    let members = metadata.members();
    check_edges(&metadata, &members, &mut report.problems);
    check_reach(&metadata, &mut report.problems);
    let mut command = BTreeMap::new();
    for path in files(root)? {
        let Ok(text) = fs::read_to_string(root.join(&path)) else { continue };
        check_text(&path, &text, &mut report);
        let name = path.to_string_lossy().into_owned();
        report.problems.extend(documents::long_main(&name, &text));
        report.problems.extend(documents::other_versions(&name, &text));
        report.problems.extend(documents::wide_lines(&name, &text));
        if name.starts_with(command::SOURCES) && name.ends_with(".rs") {
            command.insert(name, text);
        }
    }
    report.problems.extend(command::too_long(&command));
    report.problems.extend(command::tensors(&command));
    report.problems.extend(command::long_functions(&command));
    report.problems.extend(command::circles(&command));
    if let Ok(text) = fs::read_to_string(root.join("ARCHITECTURE.md")) {
        let names: BTreeSet<&str> = members.keys().copied().collect();
        check_architecture(&text, &names, &mut report.problems);
    }
    Ok(report)
}

/// The parts of `cargo metadata` that are looked at.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    path: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Deserialize)]
struct Edge {
    pkg: String,
}

impl Metadata {
    /// The packages of the workspace by name.
    fn members(&self) -> BTreeMap<&str, &Package> {
        let members = self.packages.iter().filter(|package| self.workspace_members.contains(&package.id));
        members.map(|package| (package.name.as_str(), package)).collect()
    }
}

fn check_edges(metadata: &Metadata, members: &BTreeMap<&str, &Package>, problems: &mut Vec<String>) {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.into_iter().collect();
    for (name, package) in members {
        let Some(may) = allowed.get(name) else {
            problems.push(format!("package `{name}` is not in the table of allowed dependencies (xtask/src/checks/tidy.rs)"));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            if !may.contains(&dependency.name.as_str()) {
                problems.push(format!("`{name}` must not depend on `{}`", dependency.name));
            }
        }
    }
    for (name, _) in ALLOWED {
        if !metadata.packages.iter().any(|package| package.name == name) {
            problems.push(format!("package `{name}` of the table in xtask/src/checks/tidy.rs is not in the workspace"));
        }
    }
}

/// Walks the resolved graph from each package that must work without libtorch.
fn check_reach(metadata: &Metadata, problems: &mut Vec<String>) {
    let names: BTreeMap<&str, &str> = metadata.packages.iter().map(|p| (p.id.as_str(), p.name.as_str())).collect();
    let edges: BTreeMap<&str, &Vec<Edge>> = metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), &node.deps)).collect();
    for (start, name) in names.iter().filter(|(_, name)| WITHOUT_LIBTORCH.contains(name)) {
        let mut seen = BTreeSet::from([*start]);
        let mut open = vec![*start];
        while let Some(id) = open.pop() {
            for edge in edges.get(id).into_iter().copied().flatten() {
                if seen.insert(&edge.pkg) {
                    open.push(&edge.pkg);
                }
            }
        }
        for found in seen.iter().filter_map(|id| names.get(id)).filter(|found| LIBTORCH.contains(found)) {
            problems.push(format!("`{name}` must work without libtorch, but reaches `{found}`"));
        }
    }
}

/// All files that are or could be committed, relative to `root`: git's list, else all but build and run outputs.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let listed = proc::capture(Command::new("git").args(["ls-files", "-z", "-co", "--exclude-standard"]).current_dir(root));
    if let Ok(list) = listed {
        return Ok(list.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect());
    }
    let (mut found, mut open) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                if ![".git", "target", "runs", "__pycache__"].contains(&name.as_str()) && !name.starts_with(".libtorch") {
                    open.push(path);
                }
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn check_text(path: &Path, text: &str, report: &mut Report) {
    let shown = path.display();
    let is_rust = path.extension().is_some_and(|ext| ext == "rs");
    let is_library = is_rust && path.starts_with("crates") && path.components().nth(2).is_some_and(|part| part.as_os_str() == "src");
    if is_rust && !text.starts_with("//!") {
        report.problems.push(format!("{shown}:1: does not begin with `//!` saying what the file is for"));
    }
    if is_rust && text.lines().count() > LONG {
        report.warnings.push(format!("{shown} has {} lines; consider splitting it above {LONG}", text.lines().count()));
    }
    let (mut before, mut in_tests) = ("", false);
    for (index, line) in text.lines().enumerate() {
        let mut problem = |what: &str| report.problems.push(format!("{shown}:{}: {what}", index + 1));
        for (word, why) in FORBIDDEN {
            if stands_alone(line, word) {
                problem(&format!("contains `{word}`: {why}"));
            }
        }
        let trimmed = line.trim_start();
        in_tests |= trimmed.starts_with("#[cfg(test)]");
        let code = trimmed.trim_start_matches(['/', '!', ' ']);
        if code.starts_with("```") && code.contains("ignore") {
            problem("an ignored code block is never compiled; make it `text` or let it compile");
        }
        if is_rust && trimmed.starts_with(concat!("#[ig", "nore")) && !trimmed.contains(STARTED) {
            problem("an ignored test is never run; make it cheap or remove it");
        }
        if is_library && !in_tests && !trimmed.starts_with("//") {
            for rule in LIBRARY.iter().filter(|rule| rule.words.iter().any(|word| stands_alone(line, word))) {
                let excused = [line, before].iter().any(|line| line.contains(&format!("// {}:", rule.excuse)));
                let at_home = rule.excuse == SPEAKS && path.starts_with("crates/cli");
                if !excused && !at_home {
                    problem(&format!("{}, or say why not in a comment `// {}: ...`", rule.advice, rule.excuse));
                }
            }
        }
        before = line;
    }
}

/// Does `word` stand in `line` without letters, digits or path characters before it and letters or digits after it?
fn stands_alone(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let path_like = |c: char| c.is_alphanumeric() || "_.-~}".contains(c);
        let word_like = |c: char| c.is_alphanumeric() || c == '_';
        let ends_in_name = word.chars().next_back().is_some_and(word_like);
        !(before.is_some_and(path_like) || ends_in_name && after.is_some_and(word_like))
    })
}

/// Every package is named in `code marks`, and every `crates/NAME` is a package's folder.
fn check_architecture(text: &str, names: &BTreeSet<&str>, problems: &mut Vec<String>) {
    for name in names {
        if !stands_alone(text, name) {
            problems.push(format!("ARCHITECTURE.md does not name the package `{name}`"));
        }
    }
    for (at, start) in text.match_indices("crates/") {
        let rest = &text[at + start.len()..];
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '-' || c == '_')).unwrap_or(rest.len());
        let folder = &rest[..end];
        let known = names.contains(folder) || (folder == "cli" && names.contains("laptop-diff"));
        if !folder.is_empty() && !known {
            problems.push(format!("ARCHITECTURE.md names crates/{folder}, which does not exist"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_repository_is_tidy() {
        let report = inspect(&proc::root()).unwrap();
        assert!(report.problems.is_empty(), "\n{}", report.problems.join("\n"));
    }

    fn problems(path: &str, text: &str) -> Vec<String> {
        let mut report = Report::default();
        check_text(Path::new(path), text, &mut report);
        report.problems
    }

    #[test]
    fn each_rule_on_text_finds_its_breach() {
        let breaches = [
            ("xtask/src/a.rs", "fn main() {}\n", "a.rs:1: does not begin"),
            ("docs/a.md", concat!("see `/wo", "rk/x`\n"), "a path of one machine"),
            ("docs/a.md", concat!("/ro", "ot/x\n"), "a path of one machine"),
            ("a.toml", concat!("path = \"../sha", "red/x\"\n"), "outside the repository"),
            ("a.rs", concat!("//! A\n// TO", "DO: later\n"), "a.rs:2: contains"),
            ("tests/a.rs", concat!("//! A\n    #[ig", "nore = \"slow\"]\n"), "never run"),
            ("a.rs", "//! ```rust,ignore\n", "never compiled"),
            ("crates/x/src/a.rs", "//! A\nuse std::collections::HashMap;\n", "a.rs:2: its order changes"),
            ("crates/x/src/a.rs", "//! A\nfn a() { println!(\"a\") }\n", "a.rs:2: only the command-line program prints"),
        ];
        for (path, text, expected) in breaches {
            let found = problems(path, text);
            assert!(found.len() == 1 && found[0].contains(expected), "{path}: {found:?}");
        }
    }

    #[test]
    fn look_alikes_are_left_alone() {
        assert!(problems("a.rs", concat!("//! A\n#[ig", "nore = \"a program that another test starts\"]\n")).is_empty());
        assert!(problems("a.md", concat!("runs/wo", "rk/x and https://x.y/ro", "ot/z and <TO", "DOS>\n")).is_empty());
        assert!(problems("crates/x/src/a.rs", "//! A\n// hashed: only counted, never written\nlet m = HashMap::new();\n").is_empty());
        assert!(problems("crates/cli/src/a.rs", "//! A\nprintln!();\n").is_empty());
        assert!(problems("crates/x/src/a.rs", "//! A\n#[cfg(test)]\nmod tests { use std::collections::HashSet; }\n").is_empty());
        assert!(problems("xtask/src/a.rs", "//! A\n//! ```text\n//! x\n//! ```\nlet m = HashMap::new();\n").is_empty());
    }

    #[test]
    fn a_forbidden_edge_and_a_hidden_libtorch_are_found() {
        let text = r#"{
            "packages": [
                {"id": "p", "name": "prune-core", "dependencies": [{"name": "unet", "path": "/x"}, {"name": "serde", "path": null}]},
                {"id": "s", "name": "serde", "dependencies": []},
                {"id": "t", "name": "torch-sys", "dependencies": []},
                {"id": "n", "name": "new", "dependencies": []}],
            "workspace_members": ["p", "n"],
            "resolve": {"nodes": [{"id": "p", "deps": [{"pkg": "s"}]}, {"id": "s", "deps": [{"pkg": "t"}]}]}}"#;
        let metadata: Metadata = serde_json::from_str(text).unwrap();
        let mut found = Vec::new();
        check_edges(&metadata, &metadata.members(), &mut found);
        check_reach(&metadata, &mut found);
        assert!(found.contains(&"`prune-core` must not depend on `unet`".to_owned()), "{found:?}");
        assert!(found.contains(&"`prune-core` must work without libtorch, but reaches `torch-sys`".to_owned()), "{found:?}");
        assert!(found.iter().any(|line| line.starts_with("package `new` is not in the table")), "{found:?}");
    }

    #[test]
    fn architecture_must_name_what_exists_and_nothing_else() {
        let mut found = Vec::new();
        check_architecture(
            "`unet` lies in crates/unet, the rest in crates/ghost and crates/cli",
            &BTreeSet::from(["unet", "eval", "laptop-diff"]),
            &mut found,
        );
        assert_eq!(
            found,
            [
                "ARCHITECTURE.md does not name the package `eval`",
                "ARCHITECTURE.md does not name the package `laptop-diff`",
                "ARCHITECTURE.md names crates/ghost, which does not exist"
            ]
        );
    }
}
