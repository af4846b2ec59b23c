//! The committed experiments: every variant wires up, what is missing is named, and the rehearsal runs to its report.

use super::*;
use crate::proc;
use crate::proc::tests_support::scratch;

const EXPERIMENTS: [(&str, Experiment); 2] = [("sdxl", Experiment::Sdxl), ("sd15", Experiment::Sd15)];
const VARIANTS: [(&str, Option<&str>); 6] = [
    ("profile", None),
    ("profile", Some("day")),
    ("profile", Some("hour")),
    ("rehearse", Some("small")),
    ("rehearse", Some("full-size")),
    ("rehearse", Some("full-size-gpu")),
];

fn text(name: &str) -> String {
    fs::read_to_string(proc::root().join(format!("configs/reproduce-{name}.toml"))).unwrap()
}

fn args(rehearse: Option<Rehearsal>, out: Option<PathBuf>) -> Args {
    let common = Options { force: false, only: None, from: None, config: None, out, device: "cpu".into(), gpus: 1 };
    Args { common, profile: Profile::Paper, rehearse, dry_run: false, ranks: 1 }
}

#[test]
fn every_variant_of_the_committed_settings_makes_a_pipeline_without_gaps() {
    for (name, _) in EXPERIMENTS {
        for (group, variant) in VARIANTS {
            let s = settings::read(&text(name), name, group, variant).unwrap_or_else(|error| panic!("{name} {variant:?}: {error:#}"));
            let (args, out) = (args(None, None), Path::new("runs/x"));
            let stages = stages(&s, out, &args, Path::new("runs/x/settings/distill.toml"), Sizes::default(), Vec::new());
            let published = out.join("published.json");
            let given = ["configs", "assets", "tests", "data", "runs/x/settings"].map(Path::new);
            pipeline::check_wiring(&stages, &[&given[..], &[&published]].concat());
            let has = |stage: &str| stages.iter().any(|known| known.name() == stage);
            assert!(has("inspect") && has("prune-output_loss-0.5") == (name == "sdxl") && has("report"), "{name} {variant:?}");
            assert_eq!(has("distill-output_loss-0.5-normalized"), name == "sdxl" && variant != Some("full-size"));
            assert_eq!(has("random-model"), group == "rehearse");
        }
    }
}

#[test]
fn a_profile_changes_what_it_names_and_nothing_else() {
    let read = |variant| settings::read(&text("sdxl"), "sdxl", "profile", variant).unwrap();
    let (paper, hour) = (read(None), read(Some("hour")));
    let steps = |s: &Settings| s.distill["trainer"]["steps"].as_integer().unwrap();
    assert_eq!((steps(&paper), steps(&hour)), (251_000, 300));
    assert_eq!((paper.data.size, hour.data.size), (1024, 512));
    assert_eq!((paper.calibration.bins, &paper.plan.rivals), (hour.calibration.bins, &hour.plan.rivals));
    let error = format!("{:#}", settings::read(&text("sdxl"), "sdxl", "profile", Some("week")).err().unwrap());
    assert!(error.contains("day") && error.contains("hour"), "{error}");
}

#[test]
fn wrong_settings_are_named_with_what_is_allowed() {
    let broken = |from: &str, to: &str| {
        let text = text("sdxl");
        assert!(text.contains(from), "{from}");
        format!("{:#}", settings::read(&text.replacen(from, to, 1), "mine.toml", "profile", None).err().unwrap())
    };
    for (from, to, expected) in [
        ("skip = []", "skip = [\"scores\"]", "`scores`"),
        ("plan = \"ssd-1b\"", "plan = \"ssd-2b\"", "ssd-1b"),
        ("criterion = \"output_loss\"", "criterion = \"taylors\"", "`taylors`"),
        ("shards = 8", "shards = 80", "at most 64"),
        ("samples = 256", "sample = 256", "unknown field `sample`"),
        ("licence = \"CreativeML Open RAIL++-M\"\nfetch = ", "licence = \"x\"\nfetches = ", "mine.toml"),
    ] {
        let error = broken(from, to);
        assert!(error.contains("mine.toml") && error.contains(expected), "{error}");
    }
}

#[test]
fn what_is_missing_is_listed_with_size_licence_and_how_to_get_it() {
    let s = settings::read(&text("sdxl"), "sdxl", "profile", None).unwrap();
    let empty = proc::tests_support::scratch("reproduce-missing");
    let missing = missing(&empty, &s);
    assert_eq!(missing.len(), s.needs.len());
    let listed = needs_text(missing.iter().copied()).unwrap();
    for part in ["data/sdxl-base-1.0", "unet/diffusion_pytorch_model.safetensors (10.3 GB)", "Open RAIL++-M", "img2dataset", "HPDv2"] {
        assert!(listed.contains(part), "{part} is not in\n{listed}");
    }
    // Fetchable needs become stages; the others stop the run before anything is built.
    let fetch: Vec<_> = missing.into_iter().filter(|need| need.fetch.is_some()).collect();
    let count = fetch.len();
    let (args, out) = (args(None, None), Path::new("runs/x"));
    let stages = stages(&s, out, &args, Path::new("x.toml"), Sizes::default(), fetch);
    assert_eq!(stages.iter().filter(|stage| stage.name().starts_with("fetch-")).count(), count);
    let error = run(&proc::root(), Experiment::Sdxl, &args, false).unwrap_err().to_string();
    assert!(error.contains("data/images/train") && !error.contains("ImageReward.pt"), "{error}");
}

#[test]
fn the_global_batch_is_the_same_for_any_number_of_ranks() {
    let s = settings::read(&text("sdxl"), "sdxl", "profile", None).unwrap();
    let accumulate = |ranks| distill_settings(&s, ranks).map(|table| table["trainer"]["accumulate"].as_integer().unwrap());
    assert_eq!((accumulate(1).unwrap(), accumulate(8).unwrap()), (16, 2));
    assert!(accumulate(3).unwrap_err().to_string().contains("accumulate = 16"));
    let gpu = Args { ranks: 2, ..args(None, None) };
    let gpu = Args { common: Options { device: "auto".into(), ..gpu.common }, ..gpu };
    let root = scratch("nccl");
    let missing = several_gpus(&root, &gpu).unwrap_err().to_string();
    assert!(missing.contains("NCCL") && missing.contains("cargo xtask nccl"), "{missing}");
    fs::create_dir_all(nccl::library(&root).parent().unwrap()).unwrap();
    fs::write(nccl::library(&root), "").unwrap();
    several_gpus(&root, &gpu).unwrap();
}

/// The whole experiment on full-depth topologies at a fraction of the width: every stage with its real program.
#[test]
fn the_rehearsals_run_to_their_reports_and_then_have_nothing_to_do() {
    for (name, experiment) in EXPERIMENTS {
        let out = PathBuf::from(format!("target/tmp/rehearse-{name}"));
        let _ = fs::remove_dir_all(proc::root().join(&out));
        let mut args = args(Some(Rehearsal::Small), Some(out.clone()));
        args.common.gpus = 2;
        run(&proc::root(), experiment, &args, false).unwrap();
        let read = |file: &str| fs::read_to_string(proc::root().join(&out).join(file)).unwrap();
        let report = read("report.html");
        for part in ["pickscore", "hpsv2", "normalized"] {
            assert!(report.contains(part), "{name}: the report does not mention {part}");
        }
        let eval: serde_json::Value = serde_json::from_str(&read("eval.json")).unwrap();
        // The teacher, the pruned U-Nets and their students.
        let students = if name == "sdxl" { 1 + 4 + 5 } else { 1 + 3 + 4 };
        assert_eq!(eval["unets"].as_array().unwrap().len(), students, "{name}");
        let before = read(".stages/report.json");
        args.common.gpus = 1;
        run(&proc::root(), experiment, &args, false).unwrap();
        assert_eq!(read(".stages/report.json"), before, "{name}: the second run did something");
    }
}
