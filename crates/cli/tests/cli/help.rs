//! What the program says about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::support::{command, fails, ok, run};

/// The subcommands that the program lists, without `help` itself.
fn subcommands() -> Vec<String> {
    let top = ok(&["--help"]);
    let list = top.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A name stands two blanks to the right; what continues an explanation, farther.
    let names = list.filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty()));
    names.filter(|name| *name != "help").map(str::to_string).collect()
}

#[test]
fn every_subcommand_explains_itself() {
    let names = subcommands();
    // In the order of the data flow, and none is lost from the list.
    let flow = ["calibrate", "score", "plan", "prune", "distill", "generate", "eval", "report"];
    assert!(names.len() >= 27 && flow.iter().all(|name| names.iter().any(|known| known == name)), "{names:?}");
    for name in &names {
        let text = ok(&[name, "--help"]);
        assert!(text.contains(&format!("Usage: laptop-diff {name}")), "{text}");
        assert!(!text.starts_with("Usage"), "{name} says first what it does:\n{text}");
    }
}

/// The flags in a text, such as `--out`.
fn flags(text: &str) -> BTreeSet<String> {
    let names = text.match_indices("--").filter(|(at, _)| !text[..*at].ends_with(|c: char| c == '-' || c.is_alphanumeric()));
    let name = |(at, _): (usize, &str)| text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect::<String>();
    names.map(name).filter(|flag| flag.len() > 3 && flag[2..].starts_with(|c: char| c.is_ascii_lowercase())).collect()
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        match path.extension() {
            None if path.is_dir() => sources(&path, found),
            Some(ending) if ending == "rs" => found.push(path),
            _ => {}
        }
    }
}

#[test]
fn messages_name_flags_that_are_there() {
    let of: BTreeMap<String, BTreeSet<String>> =
        subcommands().into_iter().map(|name| (name.clone(), flags(&ok(&[&name, "--help"])))).collect();
    let all: BTreeSet<String> = of.values().flatten().cloned().collect();
    // Of other programs, and one that people are not to give.
    let foreign = ["--no-python", "--dereference", "--peak-of"];
    // Of another command, which the message names.
    let others = [("prune", "--portable"), ("fetch", "--model")];
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(crates).unwrap() {
        sources(&entry.unwrap().path().join("src"), &mut files);
    }
    assert!(files.len() > 300, "{} files", files.len());
    let mut wrong = Vec::new();
    for path in &files {
        let stem = path.file_stem().unwrap().to_str().unwrap().replace('_', "-");
        let own = of.get(&stem).filter(|_| path.parent().unwrap().ends_with("cli/src/commands"));
        let text = std::fs::read_to_string(path).unwrap();
        // Tests may name flags that are not there.
        let code = text.split("#[cfg(test)]").next().unwrap();
        let told: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        let missing = flags(&told).into_iter().filter(|flag| !own.unwrap_or(&all).contains(flag) && !foreign.contains(&flag.as_str()));
        let missing = missing.filter(|flag| !others.contains(&(stem.as_str(), flag.as_str())));
        wrong.extend(missing.map(|flag| format!("{}: {flag}", path.display())));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_exit_codes_are_documented() {
    let text = ok(&["--help"]);
    for (code, meaning) in [(3, "truncated"), (4, "budget"), (5, "NaN"), (6, "cannot be written"), (130, "interrupted")] {
        let line = text.lines().find(|l| l.trim_start().starts_with(&format!("{code} "))).unwrap_or_else(|| panic!("{code} in:\n{text}"));
        assert!(line.contains(meaning), "{line}");
    }
}

#[test]
fn what_libtorch_is_changed_in_can_be_switched_off() {
    let text = ok(&["--help"]);
    for (name, off) in [("LAPTOP_DIFF_ALLOCATOR", "system"), ("LAPTOP_DIFF_MKL", "default")] {
        let line = text.lines().find(|l| l.trim_start().starts_with(name)).unwrap_or_else(|| panic!("{name} in:\n{text}"));
        assert!(line.contains(off), "{line}");
        let run = |value: &str| command(&["--version"]).env(name, value).output().expect("the binary starts");
        assert!(run(off).status.success() && run("").status.success());
        let wrong = run("of");
        let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
        assert_eq!(wrong.status.code(), Some(2), "{said}");
        assert!(said.starts_with("error: ") && said.contains(name) && said.contains(off) && said.contains("`of`"), "{said}");
    }
}

#[test]
fn a_wrong_command_line_has_its_own_code() {
    for args in
        [&["no-such-command"][..], &["plan"], &["inspect", "--no-such-flag"], &["inspect", "--model", "x", "--granularity", "atoms"]]
    {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
    fails(&["speed", "--model", "x", "--out", "y", "--device", "tpu"], 2, &["--device", "auto, cpu, cuda", "`tpu`"]);
}
