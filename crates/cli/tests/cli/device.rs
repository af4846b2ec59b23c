//! Commands on a GPU, of which a stand-in takes the place: where tensors are, what the host waits for, and the number type.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::ranks::losses;
use crate::support::{DISTILL, base, command, fails, ok, read_json, text};

/// Runs a command on the stand-in and gives what its devices counted, and what it said on standard error.
fn counted(args: &[&str], report: &Path) -> (Value, String) {
    let out = command(args).env(cuda_standin::REPORT, report).output().expect("the binary starts");
    let said = String::from_utf8(out.stderr).expect("text");
    assert!(out.status.success(), "{args:?} failed:\n{said}");
    (read_json(report), said)
}

/// How much more the second of two calls did.
fn more(first: &Value, second: &Value, what: &str) -> u64 {
    second[what].as_u64().unwrap() - first[what].as_u64().unwrap()
}

fn calls(report: &Value) -> u64 {
    report["calls"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum()
}

fn scores(path: &Path) -> Vec<(String, f64)> {
    let rows = read_json(path)["scores"].as_array().unwrap().clone();
    rows.iter().map(|r| (r["id"].as_str().unwrap().to_string(), r["value"].as_f64().unwrap())).collect()
}

#[test]
fn scores_of_a_gpu_are_those_of_the_cpu() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("scores");
    let call = ["score", "--model", text(&base.model), "--calibration", text(&base.calibration), "--criterion"];
    let criteria = "output_loss,task_loss,magnitude,taylor,random,clip_score";
    // The second of two devices: nothing may go to the first by mistake.
    let place = ["--prompts", "2", "--steps", "2", "--device", "cuda:1", "--compute", "f32", "--out", text(&out)];
    ok(&[&call[..], &[criteria], &place].concat());
    for criterion in ["output_loss", "task_loss_delta", "magnitude", "taylor", "random", "clip_score"] {
        let (cpu, gpu) = (scores(&base.score(criterion)), scores(&out.join(format!("{criterion}.json"))));
        let largest = cpu.iter().map(|(_, v)| v.abs()).fold(0.0, f64::max);
        for ((id, a), (other, b)) in cpu.iter().zip(&gpu) {
            assert_eq!(id, other);
            // A CLIP score goes through images of whole numbers.
            let allowed = if criterion == "clip_score" { 1e-3 } else { 1e-5 };
            assert!((a - b).abs() <= allowed * largest, "{criterion} of {id}: {a} on the CPU, {b} on the GPU");
        }
    }
}

#[test]
fn gpus_compare_layers_in_f16_and_say_how_much_that_rounds() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (f16, bf16) = (dir.path().join("f16"), dir.path().join("bf16"));
    let call = ["score", "--model", text(&base.model), "--calibration", text(&base.calibration), "--criterion", "output_loss"];
    let run = |out: &Path, more: &[&str]| ok(&[&call[..], &["--device", "cuda", "--out", text(out)], more].concat());
    run(&f16, &[]);
    run(&bf16, &["--compute", "bf16"]);
    let settings = |out: &Path| read_json(&out.join("output_loss.json"))["settings"].clone();
    assert_eq!((&settings(&f16)["compute"], &settings(&bf16)["compute"]), (&"f16".into(), &"bf16".into()));
    // Three more bits: an eighth of the error, a 64th of its square.
    let rounding = |out: &Path| settings(out)["rounding_output_loss"].as_f64().unwrap();
    let ratio = rounding(&bf16) / rounding(&f16);
    assert!((20.0..200.0).contains(&ratio), "{} and {}", rounding(&bf16), rounding(&f16));
    // The report says it too.
    let run_dir = dir.path().join("run");
    std::fs::create_dir_all(run_dir.join("scores")).unwrap();
    std::fs::copy(bf16.join("output_loss.json"), run_dir.join("scores/output_loss.json")).unwrap();
    ok(&["inspect", "--model", text(&base.model), "--out", text(&run_dir.join("layers.json"))]);
    ok(&["report", text(&run_dir)]);
    let page = std::fs::read_to_string(run_dir.join("report.html")).unwrap();
    assert!(page.contains(&format!("Computed in bf16, whose rounding alone changes the output by {:.1e}", rounding(&bf16))), "{page}");
    // In f32 there is nothing to say, and a run goes on in the number type that it began with.
    assert!(read_json(&base.score("output_loss"))["settings"].get("rounding_output_loss").is_none());
    run(&f16, &[]);
    fails(&[&call[..], &["--device", "cuda", "--compute", "f32", "--out", text(&f16)]].concat(), 2, &["settings.compute", "f16", "f32"]);
}

#[test]
fn f32_on_a_gpu_is_f32_unless_tf32_is_asked_for() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let call = ["score", "--model", text(&base.model), "--calibration", text(&base.calibration), "--criterion", "magnitude,output_loss"];
    let computed_in = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        ok(&[&call[..], &["--samples", "2", "--compute", "f32", "--out", text(&out)], more].concat());
        read_json(&out.join("output_loss.json"))["settings"]["compute"].as_str().unwrap().to_string()
    };
    assert_eq!(computed_in("f32", &["--device", "cuda"]), "f32");
    assert_eq!(computed_in("tf32", &["--device", "cuda", "--tf32"]), "tf32");
    assert_eq!(computed_in("deterministic", &["--device", "cuda", "--deterministic"]), "f32");
    assert_eq!(computed_in("cpu", &["--device", "cpu", "--tf32"]), "f32", "a CPU has no TF32");
    // The one is not taken for a part of the other.
    let out = dir.path().join("tf32");
    let again = ["--samples", "2", "--compute", "f32", "--out", text(&out), "--device", "cuda"];
    fails(&[&call[..], &again].concat(), 2, &["settings.compute", "tf32"]);
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.json");
    let call = ["measure", "--model", text(&base.model), "--out", text(&out), "--device"];
    fails(&[&call[..], &["cuda:4"]].concat(), 2, &["cuda:4", "4 CUDA devices are there", "--device cpu"]);
    assert!(!out.exists());
}

#[test]
fn passes_and_sampling_steps_keep_a_gpu_busy() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (out, report) = (dir.path().join("speed.json"), dir.path().join("report.json"));
    let speed = |rounds: &str| {
        let call = ["speed", "--model", text(&base.model), "--warmup", "1", "--picture-rounds", "0", "--no-memory"];
        counted(&[&call[..], &["--device", "cuda", "--rounds", rounds, "--out", text(&out)]].concat(), &report).0
    };
    let draw = |steps: &str| {
        let images = dir.path().join(steps);
        let call = ["generate", "--model", text(&base.model), "--prompt", "a red circle", "--sampler", "euler-ancestral", "--steps"];
        counted(&[&call[..], &[steps, "--device", "cuda", "--out", text(&images)]].concat(), &report).0
    };
    // Noise of the same seed is drawn on the host, whatever computes; everything else is there from the first step on.
    for (first, second, units, uploads) in [(speed("1"), speed("4"), 3, 0), (draw("2"), draw("6"), 4, 4)] {
        assert!(calls(&second) > calls(&first) + 100 * units, "it did run on the device");
        assert_eq!(more(&first, &second, "uploads"), uploads);
        assert_eq!((more(&first, &second, "downloads"), more(&first, &second, "scalars_read")), (0, 0));
    }
}

#[test]
fn a_step_of_training_waits_for_a_gpu_twice() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.3");
    let report = dir.path().join("report.json");
    let train = |steps: u32, compute: &str| {
        let (settings, out) = (dir.path().join("distill.toml"), dir.path().join(format!("{steps}-{compute}")));
        let text_of = DISTILL.replace("steps = 4", &format!("steps = {steps}")).replace("every = 2", "every = 100");
        std::fs::write(&settings, text_of.replace("\"f32\"", &format!("{compute:?}"))).unwrap();
        let call = ["distill", "--model", text(&base.model), "--plan", text(&plan), "--config", text(&settings)];
        let (counted, _) = counted(&[&call[..], &["--device", "cuda", "--out", text(&out)]].concat(), &report);
        (counted, out)
    };
    for compute in ["f32", "bf16"] {
        let ((first, _), (second, out)) = (train(2, compute), train(6, compute));
        // The norm of the gradient, and all losses at once.
        assert_eq!((more(&first, &second, "scalars_read"), more(&first, &second, "downloads")), (4, 4), "{compute}");
        assert!(losses(&out).iter().all(|loss| loss.is_finite()));
    }
}

#[test]
fn the_memory_that_distill_announces_is_what_a_gpu_gives() {
    let dir = tempfile::tempdir().unwrap();
    // Large enough that networks and activations outweigh all else.
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-sdxl");
    let (scores, plan, report) = (dir.path().join("scores"), dir.path().join("plan.json"), dir.path().join("report.json"));
    let (calibration, settings) = (dir.path().join("calibration.safetensors"), dir.path().join("distill.toml"));
    ok(&["calibrate", "--model", text(&model), "--scenes", "2", "--device", "cpu", "--out", text(&calibration)]);
    let call = ["score", "--model", text(&model), "--calibration", text(&calibration), "--criterion", "magnitude"];
    ok(&[&call[..], &["--device", "cpu", "--out", text(&scores)]].concat());
    let file = scores.join("magnitude.json");
    ok(&["plan", "--scores", text(&file), "--ratio", "0.5", "--out", text(&plan)]);
    let train = |first: &str, batch: &str, name: &str| {
        let settings_text = DISTILL.replace("steps = 4", "steps = 1").replace("batch = 2", batch).replace("count = 8", "count = 64");
        std::fs::write(&settings, format!("{first}\n{settings_text}")).unwrap();
        let out = dir.path().join(name);
        let call = ["distill", "--model", text(&model), "--plan", text(&plan), "--config", text(&settings)];
        let (counted, said) = counted(&[&call[..], &["--device", "cuda", "--out", text(&out)]].concat(), &report);
        let line = said.lines().find_map(|l| l.split_once("memory per rank")?.1.trim().strip_prefix("about ")).expect("it is announced");
        let announced = match line.split_once(' ').unwrap() {
            (n, "MB") => 1e6 * n.parse::<f64>().unwrap(),
            (n, _) => 1e9 * n.parse::<f64>().unwrap(),
        };
        let counted = counted["peak_bytes"].as_f64().unwrap();
        assert!((0.8..1.1).contains(&(announced / counted)), "{announced:e} announced, {counted:e} counted");
        counted
    };
    let peaks = [false, true].map(|on| train(&format!("activation_checkpointing = {on}"), "batch = 64", &on.to_string()));
    assert!(peaks[1] < 0.6 * peaks[0], "{peaks:?}");
    // A teacher in half the bytes saves them; the weights that the student began with are let go.
    let [whole, half] = ["f32", "bf16"].map(|kind| train(&format!("teacher_compute = {kind:?}"), "batch = 1", kind));
    let teacher = 4.0 * 7.03e6;
    assert!(whole - half > 0.4 * teacher, "{whole:e} with a teacher in f32, {half:e} in bf16");
}

#[test]
fn a_gpu_that_is_too_small_is_an_error_and_training_goes_on_with_more() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.3");
    let (report, settings) = (dir.path().join("report.json"), dir.path().join("distill.toml"));
    std::fs::write(&settings, DISTILL.replace("checkpoint_every = 2", "checkpoint_every = 1")).unwrap();
    let out = |name: &str, run: &str| dir.path().join(format!("{name}-{run}"));
    let call = |name: &str, run: &str| -> Vec<String> {
        let (model, out) = (text(&base.model), out(name, run));
        let args: &[&str] = match name {
            "distill" => &["distill", "--model", model, "--plan", text(&plan), "--config", text(&settings)],
            "score" => {
                &["score", "--model", model, "--calibration", text(&base.calibration), "--criterion", "output_loss", "--compute", "f32"]
            }
            "speed" => &["speed", "--model", model, "--warmup", "1", "--rounds", "1", "--picture-rounds", "0"],
            _ => &["generate", "--model", model, "--prompt", "a red circle", "--steps", "2"],
        };
        [args, &["--device", "cuda", "--out", text(&out)]].concat().into_iter().map(str::to_string).collect()
    };
    for name in ["generate", "score", "speed", "distill"] {
        let args = call(name, "whole");
        let (counted, _) = counted(&args.iter().map(String::as_str).collect::<Vec<_>>(), &report);
        let peak = counted["peak_bytes"].as_u64().unwrap();
        // No room for the networks; none for the last tensors.
        for (run, percent) in [("tenth", 10), ("most", 97)] {
            let args = call(name, run);
            let mut command = command(&args.iter().map(String::as_str).collect::<Vec<_>>());
            let done = command.env(cuda_standin::MEMORY, (peak * percent / 100).to_string()).output().unwrap();
            let said = String::from_utf8(done.stderr).unwrap();
            assert_eq!(done.status.code(), Some(7), "{name} with {percent} % of its memory:\n{said}");
            let errors: Vec<&str> = said.lines().filter(|l| l.starts_with("error: ")).collect();
            assert!(errors.len() == 1 && !said.contains("panicked") && !said.contains("frame #"), "{said}");
            assert!(errors[0].starts_with("error: CUDA out of memory. Tried to allocate ") && !errors[0].contains("PYTORCH"), "{said}");
            assert_eq!(errors[0].matches("--batch").count(), 1, "{said}");
            assert!(done.stdout.is_empty());
            let results = files(&out(name, run))
                .into_iter()
                .filter(|f| ["png", "json", "safetensors"].contains(&f.extension().unwrap().to_str().unwrap()));
            assert_eq!(results.filter(|f| !f.starts_with(out(name, run).join(".work"))).collect::<Vec<_>>(), Vec::<PathBuf>::new());
        }
    }
    // The same command goes on where there is room.
    let (whole, most) = (out("distill", "whole"), out("distill", "most"));
    let args = call("distill", "most");
    ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let weights = |dir: &Path| std::fs::read(dir.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&most));
}

fn files(at: &Path) -> Vec<PathBuf> {
    match std::fs::read_dir(at) {
        Ok(entries) => entries.flat_map(|entry| files(&entry.unwrap().path())).collect(),
        Err(_) if at.is_file() => vec![at.into()],
        Err(_) => Vec::new(),
    }
}
