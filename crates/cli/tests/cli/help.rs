//! What the program says about itself.

use crate::support::{command, fails, ok, run};

const SUBCOMMANDS: [&str; 18] = [
    "render-scenes",
    "train",
    "inspect",
    "calibrate",
    "cache",
    "score",
    "plan",
    "audit",
    "joint",
    "prune",
    "distill",
    "generate",
    "eval",
    "speed",
    "report",
    "compare",
    "forward",
    "help",
];

#[test]
fn every_subcommand_explains_itself() {
    let top = ok(&["--help"]);
    for name in SUBCOMMANDS {
        assert!(top.contains(&format!("\n  {name} ")), "{name} is missing in:\n{top}");
    }
    for name in &SUBCOMMANDS[..17] {
        let text = ok(&[name, "--help"]);
        assert!(text.contains("Usage: laptop-diff"), "{text}");
    }
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
