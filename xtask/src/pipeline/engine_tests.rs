//! Tests of the stage engine with pipelines of tiny shell commands: skip, rerun, force, failure, interruption.

use super::*;
use crate::proc::tests_support::scratch;

const NONE: Options = Options { force: false, only: None, from: None, config: None, out: None, device: String::new(), gpus: 1 };

/// A stage `sh -c SCRIPT` that reads `inputs`, writes `output` and notes each call in `calls`.
fn shell(name: &str, script: &str, inputs: &[&str], output: &str) -> Stage {
    let script = format!("echo {name} >> calls; {script}");
    let mut stage = Stage::new(name, format!("tests {name}"), 1.0, "-c").words(&[&script, "sh"]).output("--out", output);
    for input in inputs {
        stage = stage.input("--in", input);
    }
    stage
}

/// source.txt -> double -> count; `other` depends on nothing.
fn pipeline(name: &str) -> Pipeline {
    let root = scratch(name);
    fs::write(root.join("source.txt"), "one\n").unwrap();
    Pipeline {
        command: "cargo xtask demo".to_owned(),
        program: "/bin/sh".into(),
        root,
        out: "run".into(),
        stages: vec![
            shell("double", "cat source.txt source.txt > run/double.txt", &["source.txt"], "run/double.txt"),
            shell("count", "wc -l < run/double.txt > run/sub/count.txt", &["run/double.txt"], "run/sub/count.txt"),
            shell("other", "echo x > run/other.txt", &[], "run/other.txt"),
        ],
    }
}

fn calls(pipeline: &Pipeline) -> Vec<String> {
    let text = fs::read_to_string(pipeline.root.join("calls")).unwrap_or_default();
    fs::write(pipeline.root.join("calls"), "").unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_second_run_does_nothing() {
    let demo = pipeline("engine-skip");
    let summary = demo.run(&NONE).unwrap();
    assert_eq!(summary.ran, ["double", "count", "other"]);
    assert_eq!(fs::read_to_string(demo.root.join("run/sub/count.txt")).unwrap().trim(), "2");
    assert_eq!(calls(&demo), ["double", "count", "other"]);
    assert_eq!(demo.run(&NONE).unwrap().up_to_date, ["double", "count", "other"]);
    assert!(calls(&demo).is_empty());
}

#[test]
fn a_changed_input_reruns_what_depends_on_it_and_stops_where_nothing_changes() {
    let demo = pipeline("engine-change");
    demo.run(&NONE).unwrap();
    calls(&demo);
    fs::write(demo.root.join("source.txt"), "one\ntwo\n").unwrap();
    assert_eq!(demo.run(&NONE).unwrap().ran, ["double", "count"]);
    // Touched, but with the same content: nothing to do.
    fs::write(demo.root.join("source.txt"), "one\ntwo\n").unwrap();
    assert!(demo.run(&NONE).unwrap().ran.is_empty());
    // The output of `double` changes, but `count` reads the same number of lines; `other` never reran.
    assert_eq!(calls(&demo), ["double", "count"]);
}

#[test]
fn a_changed_command_line_or_a_lost_output_reruns_the_stage() {
    let mut demo = pipeline("engine-argv");
    demo.run(&NONE).unwrap();
    demo.stages[2] = demo.stages[2].clone().set("--seed", 7);
    assert_eq!(demo.run(&NONE).unwrap().ran, ["other"]);
    fs::remove_file(demo.root.join("run/double.txt")).unwrap();
    assert_eq!(demo.run(&NONE).unwrap().ran, ["double"], "count reads the same bytes as before");
}

#[test]
fn force_only_and_from_select_stages() {
    let demo = pipeline("engine-select");
    let missing = demo.run(&Options { only: Some("count".into()), ..NONE }).unwrap_err().to_string();
    assert_eq!(missing, "stage `count` needs run/double.txt, which stage `double` makes; run `cargo xtask demo --from double`");
    demo.run(&NONE).unwrap();
    assert_eq!(demo.run(&Options { force: true, ..NONE }).unwrap().ran, ["double", "count", "other"]);
    assert_eq!(demo.run(&Options { force: true, only: Some("count".into()), ..NONE }).unwrap().ran, ["count"]);
    assert_eq!(demo.run(&Options { force: true, from: Some("count".into()), ..NONE }).unwrap().ran, ["count", "other"]);
    let unknown = demo.run(&Options { from: Some("cuont".into()), ..NONE }).unwrap_err().to_string();
    assert_eq!(unknown, "there is no stage `cuont`; the stages are: double, count, other");
}

#[test]
fn a_failure_names_the_command_and_the_way_back_and_the_next_run_goes_on_from_it() {
    let mut demo = pipeline("engine-failure");
    demo.stages[1] = shell("count", "exit 7", &["run/double.txt"], "run/sub/count.txt");
    let error = demo.run(&NONE).unwrap_err().to_string();
    assert!(error.contains("stage `count` failed (exit status: 7)"), "{error}");
    assert!(error.contains("/bin/sh -c 'echo count >> calls; exit 7' sh --out run/sub/count.txt --in run/double.txt"), "{error}");
    assert!(error.contains("cargo xtask demo --only count"), "{error}");
    calls(&demo);
    demo.stages = pipeline_stages();
    assert_eq!(demo.run(&NONE).unwrap().up_to_date, ["double"]);
    assert_eq!(calls(&demo), ["count", "other"]);
}

fn pipeline_stages() -> Vec<Stage> {
    pipeline("engine-failure-stages").stages
}

#[test]
fn a_stage_that_forgets_its_output_fails() {
    let mut demo = pipeline("engine-forgets");
    demo.stages = vec![shell("forgets", "true", &[], "run/never.txt")];
    let error = demo.run(&NONE).unwrap_err().to_string();
    assert!(error.contains("stage `forgets` ended well but did not write run/never.txt"), "{error}");
}

#[test]
fn a_missing_input_is_found_before_anything_runs() {
    let mut demo = pipeline("engine-missing");
    demo.stages.push(shell("late", "true", &["absent.txt"], "run/late.txt"));
    assert_eq!(demo.run(&NONE).unwrap_err().to_string(), "stage `late` needs absent.txt, which does not exist");
    assert!(calls(&demo).is_empty());
}

/// A stage that dies on its first call with half of its work in a checkpoint, and resumes from it on the next.
fn resumable(setting: &str) -> Stage {
    let script =
        "mkdir -p run/ckpt; if test -e run/ckpt/half; then cat run/ckpt/half > run/model; else echo $4 > run/ckpt/half; kill -9 $$; fi";
    shell("train", script, &[], "run/model").set("--steps", setting).scratch("run/ckpt")
}

#[test]
fn an_interrupted_stage_resumes_with_the_same_settings_and_starts_anew_with_others() {
    let mut demo = pipeline("engine-resume");
    demo.stages = vec![resumable("10")];
    assert!(demo.run(&NONE).unwrap_err().to_string().contains("failed (signal: 9"), "killed half-way");
    assert_eq!(demo.run(&NONE).unwrap().ran, ["train"]);
    assert!(demo.run(&NONE).unwrap().ran.is_empty());
    // Other settings: the old checkpoint must not be taken up, so the first call dies half-way again.
    demo.stages = vec![resumable("20")];
    assert!(demo.run(&NONE).is_err());
    assert!(!demo.root.join("run/model").exists(), "the old result is gone as well");
    assert_eq!(demo.run(&NONE).unwrap().ran, ["train"]);
    assert!(demo.run(&Options { force: true, ..NONE }).is_err(), "--force starts anew");
}

#[test]
fn a_stage_that_was_asked_to_stop_is_no_failure() {
    let mut demo = pipeline("engine-stopped");
    demo.stages = vec![shell("train", "exit 130", &[], "run/model")];
    let error = demo.run(&NONE).unwrap_err();
    assert!(error.is::<Interrupted>());
    assert_eq!(error.to_string(), "interrupted in stage `train`; `cargo xtask demo` goes on from there");
}

#[test]
fn nothing_outside_the_run_folder_is_ever_removed() {
    let mut demo = pipeline("engine-outside");
    fs::write(demo.root.join("asset"), "precious").unwrap();
    demo.stages = vec![shell("asset", "true", &[], "asset")];
    demo.run(&Options { force: true, ..NONE }).unwrap();
    assert_eq!(fs::read_to_string(demo.root.join("asset")).unwrap(), "precious");
}

#[test]
fn two_runs_in_one_folder_exclude_each_other() {
    let demo = pipeline("engine-lock");
    fs::create_dir_all(demo.root.join("run/.stages")).unwrap();
    let lock = Lock::take(&demo.root.join("run/.stages/lock")).unwrap();
    assert!(lock.is_some());
    assert!(demo.run(&NONE).unwrap_err().to_string().starts_with("another run is at work in run"));
    drop(lock);
    demo.run(&NONE).unwrap();
}

#[test]
fn the_time_left_counts_only_stages_that_will_run() {
    let demo = pipeline("engine-estimate");
    demo.run(&NONE).unwrap();
    let records = demo.root.join("run/.stages");
    for (name, seconds) in [("double", 5.0), ("count", 7.0), ("other", 11.0)] {
        let path = records.join(format!("{name}.json"));
        let record = read_record(&path).unwrap();
        write_whole(&path, &Record { seconds: Some(seconds), ..record }).unwrap();
    }
    let all: Vec<&Stage> = demo.stages.iter().collect();
    // `count` reads what `double` is about to write; `other` reads nothing that changes.
    assert_eq!(demo.estimates(&all, &records, &NONE, 1.0), [5.0, 7.0, 0.0]);
    assert_eq!(demo.estimates(&all, &records, &Options { force: true, ..NONE }, 1.0), [5.0, 7.0, 11.0]);
    // Without past runs the committed table counts, at the pace of this machine.
    fs::remove_file(records.join("count.json")).unwrap();
    assert_eq!(demo.estimates(&all, &records, &NONE, 2.0), [5.0, 2.0, 0.0]);
}

#[test]
fn durations_read_as_people_say_them() {
    assert_eq!([0.4, 59.6, 200.0, 7500.0].map(duration), ["0 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]);
}

/// A stage that takes a place, says on which device it computes, and waits until `partner` has begun too.
fn meeting(name: &str, partner: &str) -> Stage {
    let script = format!(
        "echo $2 > run/{name}; touch run/{name}.here; i=0; while [ ! -e run/{partner}.here ]; do i=$((i+1)); [ $i -lt 500 ] || exit 1; sleep 0.02; done"
    );
    Stage::new(name, format!("tests {name}"), 1.0, "-c")
        .words(&[&script, "sh"])
        .set("--device", "auto")
        .output("--out", format!("run/{name}"))
}

#[test]
fn independent_stages_run_at_once_each_on_its_own_gpu_and_dependent_ones_wait() {
    let mut demo = pipeline("engine-gpus");
    let after = "cat run/left run/right > run/both.txt";
    demo.stages =
        vec![meeting("left", "right"), meeting("right", "left"), shell("both", after, &["run/left", "run/right"], "run/both.txt")];
    let options = Options { gpus: 2, device: "auto".into(), ..NONE };
    let summary = demo.run(&options).unwrap();
    assert_eq!((summary.ran.len(), summary.ran[2].as_str()), (3, "both"));
    let text = fs::read_to_string(demo.root.join("run/both.txt")).unwrap();
    assert!(text == "cuda:0\ncuda:1\n" || text == "cuda:1\ncuda:0\n", "{text}");
    // With another number of GPUs nothing is out of date.
    assert_eq!(demo.run(&NONE).unwrap().up_to_date.len(), 3);
    assert_eq!(demo.run(&options).unwrap().up_to_date.len(), 3);
    assert!(demo.root.join("run/logs/both.log").exists());
}

#[test]
fn a_failure_among_several_stages_names_its_log_and_starts_nothing_new() {
    let mut demo = pipeline("engine-gpus-failure");
    demo.stages = vec![
        shell("bad", "echo reason >&2; exit 3", &[], "run/bad.txt").set("--device", "auto"),
        shell("next", "echo y > run/next.txt", &["run/bad.txt"], "run/next.txt"),
    ];
    let error = demo.run(&Options { gpus: 2, device: "cpu".into(), ..NONE }).unwrap_err().to_string();
    assert!(error.contains("`bad` failed") && error.contains("reason"), "{error}");
    assert_eq!(calls(&demo), ["bad"]);
    let wide = Pipeline { stages: vec![shell("wide", "true", &[], "run/w").set("--device", "auto").ranks(4)], ..pipeline("engine-ranks") };
    let error = wide.run(&Options { gpus: 2, device: "cpu".into(), ..NONE }).unwrap_err().to_string();
    assert!(error.contains("wants 4 GPUs"), "{error}");
}

#[test]
fn the_highest_memory_of_a_stage_is_recorded() {
    let mut demo = pipeline("engine-memory");
    demo.stages.truncate(1);
    demo.stages[0] = shell("big", "head -c 40000000 /dev/zero | tail -c 39999999 > run/big; sleep 0.2", &[], "run/big");
    demo.run(&NONE).unwrap();
    let record = read_record(&demo.root.join("run/.stages/big.json")).unwrap();
    assert!(record.peak_rss_bytes.is_some_and(|bytes| bytes > 100_000), "{:?}", record.peak_rss_bytes);
}
