//! Retraining by several processes with the variables that torchrun sets, and validation on the way.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Output, Stdio};

use crate::support::{DISTILL, base, command, names, ok, text, trainer_keys};

fn start(args: &[&str], rank: usize, world: usize, port: u16) -> Child {
    command(args)
        .env("RANK", rank.to_string())
        .env("WORLD_SIZE", world.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .env("LAPTOP_DIFF_TIMEOUT", "60")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// The losses that a run logged.
pub fn losses(out: &Path) -> Vec<f64> {
    let log = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
    log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap()).collect()
}

fn accumulating(passes: u64) -> String {
    DISTILL.replace("[trainer]\n", &format!("[trainer]\naccumulate = {passes}\n"))
}

/// `distill` by one process, and by two whose settings are `cut`; what the first of the two printed.
fn one_and_two(words: &[&str], whole: [&Path; 2], cut: [&Path; 2]) -> String {
    let call = |[config, out]: [&Path; 2]| -> Vec<String> {
        let rest = ["--config", text(config), "--device", "cpu", "--out", text(out)];
        words.iter().chain(&rest).map(|word| word.to_string()).collect()
    };
    let words = call(whole);
    ok(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let words = call(cut);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let port = free_port();
    let ranks: Vec<Child> = (0..2).map(|rank| start(&words, rank, 2, port)).collect();
    let outputs: Vec<Output> = ranks.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    for out in &outputs {
        assert!(out.status.success(), "{}", said(out));
    }
    assert!(outputs[1].stdout.is_empty(), "the second rank says nothing: {}", said(&outputs[1]));
    said(&outputs[0])
}

/// Losses of one and of two processes, the same up to the order of a sum.
fn same_curve(one: &Path, two: &Path) {
    let (one, two) = (losses(one), losses(two));
    assert!(!one.is_empty());
    assert_eq!(one.len(), two.len());
    for (a, b) in one.iter().zip(&two) {
        assert!((a - b).abs() <= 1e-5 * a, "{a} and {b}");
    }
}

#[test]
fn two_ranks_recover_each_gap_as_one_does() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.4");
    let settings = |passes: u64| {
        let path = dir.path().join(format!("{passes}.toml"));
        let whole = accumulating(passes);
        std::fs::write(&path, format!("{whole}\n[layerwise]{}", trainer_keys(&whole))).unwrap();
        path
    };
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let words = ["distill", "--model", text(&base.model), "--plan", text(&plan)];
    one_and_two(&words, [&settings(2), &one], [&settings(1), &two]);
    same_curve(&one.join(".work/layerwise"), &two.join(".work/layerwise"));
    same_curve(&one, &two);
}

#[test]
fn two_ranks_train_what_one_does_with_twice_the_passes_and_validate_on_the_way() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.4");
    let settings = |passes: u64| {
        let path = dir.path().join(format!("{passes}.toml"));
        let validation =
            format!("[validation]\nevery = 2\nprompts = [\"a red circle\"]\nsteps = 2\nheld_out = \"{}\"\n", text(&base.heldout));
        std::fs::write(&path, accumulating(passes) + &validation).unwrap();
        path
    };
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let (cut, whole) = (settings(1), settings(2));
    let words = ["distill", "--model", text(&base.model), "--plan", text(&plan)];
    let printed = one_and_two(&words, [&whole, &one], [&cut, &two]);
    assert!(printed.contains("x 1 passes x 2 ranks"), "{printed}");
    same_curve(&one, &two);
    assert_eq!(names(&one), [".work", "distill.json", "log.jsonl", "tensorboard", "unet", "validation", "validation.jsonl"]);
    assert_eq!(names(&one.join("validation")), ["step-00000000.png", "step-00000002.png", "step-00000004.png"]);
    let rows = std::fs::read_to_string(one.join("validation.jsonl")).unwrap();
    let rows: Vec<serde_json::Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row["joint_output_loss"].as_f64().unwrap() > 0.0 && row["standard_error"].as_f64().is_some()));
    // A second call has nothing left to do and measures nothing again.
    let before = std::fs::metadata(one.join("validation/step-00000004.png")).unwrap().modified().unwrap();
    ok(&[&words[..], &["--config", text(&whole), "--device", "cpu", "--out", text(&one)]].concat());
    assert_eq!(std::fs::metadata(one.join("validation/step-00000004.png")).unwrap().modified().unwrap(), before);
}

#[test]
fn a_launch_that_makes_no_sense_is_refused_by_name() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.4");
    let config = dir.path().join("distill.toml");
    std::fs::write(&config, DISTILL).unwrap();
    let out = dir.path().join("out");
    let words =
        ["distill", "--model", text(&base.model), "--plan", text(&plan), "--config", text(&config), "--device", "cpu", "--out", text(&out)];
    let result = start(&words, 2, 2, free_port()).wait_with_output().unwrap();
    assert_eq!(result.status.code(), Some(2));
    assert!(said(&result).contains("RANK") && said(&result).contains("0 to 1"), "{}", said(&result));
}
