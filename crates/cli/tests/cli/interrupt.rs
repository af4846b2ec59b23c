//! Stops: a signal leaves what was done, exit code 130, and the same command goes on to the same bytes.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::{DISTILL, base, command, names, ok, text};

/// Starts the binary, waits until `ready`, sends SIGINT and gives the exit code.
fn stop(args: &[&str], ready: impl Fn() -> bool) -> Option<i32> {
    let mut child: Child = command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts");
    let deadline = Instant::now() + Duration::from_secs(120);
    while !ready() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "{args:?} never got that far");
        std::thread::sleep(Duration::from_millis(2));
    }
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    // The run may have ended by itself in this moment; then there was nothing to stop.
    let code = child.wait().unwrap().code();
    if killed.success() { code } else { None }
}

#[test]
#[cfg(unix)]
fn a_stopped_scoring_goes_on_to_the_same_bytes() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("scores");
    let call = ["score", "--model", text(&base.model), "--calibration", text(&base.calibration), "--criterion", "output_loss,task_loss"];
    let args = [&call[..], &["--device", "cpu", "--out", text(&out)]].concat();
    let file = out.join("output_loss.json");
    let code = stop(&args, || file.exists());
    assert!(matches!(code, Some(130 | 0) | None), "{code:?}");
    ok(&args);
    let bytes = |p: &Path| std::fs::read(p).unwrap();
    assert_eq!(bytes(&file), bytes(&base.score("output_loss")));
    // A finished run has nothing left to do.
    let before = std::fs::metadata(&file).unwrap().modified().unwrap();
    ok(&args);
    assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), before);
}

#[test]
fn scores_of_other_settings_are_not_gone_on_from() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("scores");
    let run = |set: &Path, samples: &str| {
        let call = ["score", "--model", text(&base.model), "--calibration", text(set), "--criterion", "output_loss", "--samples", samples];
        crate::support::run(&[&call[..], &["--device", "cpu", "--out", text(&out)]].concat())
    };
    assert!(run(&base.calibration, "3").status.success());
    for (set, samples, word) in [(&base.calibration, "4", "`samples`"), (&base.heldout, "3", "cannot go on")] {
        let result = run(set, samples);
        let error = String::from_utf8_lossy(&result.stderr).into_owned();
        assert_eq!(result.status.code(), Some(2), "{error}");
        assert!(error.contains(word) && error.contains("choose another --out"), "{error}");
    }
}

#[test]
#[cfg(unix)]
fn a_stopped_retraining_goes_on_to_the_same_weights() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.4");
    let config = dir.path().join("distill.toml");
    std::fs::write(&config, DISTILL).unwrap();
    let args = |out: &Path, steps: &str| -> Vec<String> {
        let call = ["distill", "--model", text(&base.model), "--plan", text(&plan), "--config", text(&config), "--steps", steps];
        [&call[..], &["--device", "cpu", "--out", text(out)]].concat().iter().map(|s| s.to_string()).collect()
    };
    let refs = |v: &[String]| -> Vec<String> { v.to_vec() };
    let (whole, halted) = (dir.path().join("whole"), dir.path().join("halted"));
    let steps = "40";
    let call = refs(&args(&whole, steps));
    ok(&call.iter().map(String::as_str).collect::<Vec<_>>());
    let call = refs(&args(&halted, steps));
    let call: Vec<&str> = call.iter().map(String::as_str).collect();
    let work = halted.join(".work");
    let code = stop(&call, || work.exists() && names(&work).iter().any(|n| n.starts_with("checkpoint-")));
    assert!(matches!(code, Some(130 | 0) | None), "{code:?}");
    if code == Some(130) {
        assert!(!halted.join("unet").exists(), "no student before the last step");
    }
    ok(&call);
    let weights = |d: &Path| std::fs::read(d.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    assert_eq!(weights(&whole), weights(&halted));
    let log = |d: &Path| std::fs::read_to_string(d.join("log.jsonl")).unwrap();
    assert_eq!(log(&whole), log(&halted));
    // Another loss must not be trained on from these checkpoints.
    let out = crate::support::run(&[&call[..], &["--features", "plain"]].concat());
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(3), "{error}");
    assert!(error.contains("another run") && error.contains("losses"), "{error}");
}
