//! A small random model directory, and calls of the binary.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use diffusion::{
    AutoencoderKl, ClipConfig, ClipModel, ClipPreprocess, ClipTextConfig, ClipTextModel, ClipVisionConfig, Family, HiddenAct,
    NoiseSchedule, PredictionType, SchedulerConfig, Tokenizer, VaeConfig, write_model_index,
};
use serde_json::{Value, json};
use tch::{Device, Kind};
use unet::{UNet, UNetConfig};

/// Side of the model's images: the least that scenes are drawn at.
pub const SIZE: u32 = 32;
const TOKENS: usize = 20;

/// `cuda` sends the commands of these tests that are told `--device cpu` to the stand-in for a GPU, in f32: the same numbers come back.
const DEVICE: &str = "LAPTOP_DIFF_TEST_DEVICE";

/// A call of the binary with one thread, on the CPU unless `args` or [`DEVICE`] say otherwise.
pub fn command(args: &[&str]) -> Command {
    let mut args = args.to_vec();
    if std::env::var(DEVICE).is_ok_and(|device| device == "cuda")
        && let Some(at) = args.windows(2).position(|pair| pair == ["--device", "cpu"])
    {
        args[at + 1] = "cuda";
        // Their settings say it.
        if !["distill", "train"].contains(&args[0]) {
            args.extend(["--compute", "f32"]);
        }
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_laptop-diff"));
    command.args(&args).env("OMP_NUM_THREADS", "1").env_remove("RUST_LOG");
    // Where no command asks for a GPU, there is none.
    if args.iter().any(|arg| arg.starts_with("cuda")) {
        command.env("LD_LIBRARY_PATH", cuda_standin::folder()).env(cuda_standin::DEVICES, "4");
    }
    // The hub's client would look for this machine's own servers behind the proxy.
    for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command
}

/// Runs the binary.
pub fn run(args: &[&str]) -> Output {
    command(args).output().expect("the binary starts")
}

/// Runs the binary, which must succeed, and gives its standard output.
pub fn ok(args: &[&str]) -> String {
    let out = run(args);
    assert!(out.status.success(), "{args:?} failed:\n{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

/// Runs the binary, which must fail with this code and one line of error that has all these words.
pub fn fails(args: &[&str], code: i32, words: &[&str]) {
    let out = run(args);
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}:\n{error}");
    assert!(out.stdout.is_empty(), "a failed command prints no result: {}", String::from_utf8_lossy(&out.stdout));
    for word in words {
        assert!(error.contains(word), "{args:?}: `{word}` is missing in:\n{error}");
    }
    assert!(!error.contains("panicked") && !error.contains("stack backtrace"), "{error}");
    let lines = error.lines().filter(|l| l.starts_with("error: ")).count();
    assert_eq!(lines, 1, "{args:?}:\n{error}");
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// Parses a file.
pub fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The names in a folder, hidden ones too.
pub fn names(dir: &Path) -> Vec<String> {
    let entry = |e: std::io::Result<std::fs::DirEntry>| e.expect("readable").file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = std::fs::read_dir(dir).expect("a folder").map(entry).collect();
    names.sort();
    names
}

/// Copies a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, target) = (entry.as_ref().unwrap().path(), to.join(entry.as_ref().unwrap().file_name()));
        if path.is_dir() { copy(&path, &target) } else { std::fs::copy(&path, &target).map(|_| ()).unwrap() }
    }
}

/// The architecture of SDXL, as small as it gets; every width differs from its neighbours.
fn unet_config() -> UNetConfig {
    let json = json!({
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "attention_head_dim": [1, 2, 3],
        "block_out_channels": [8, 12, 24],
        "cross_attention_dim": 28,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-5,
        "norm_num_groups": 4,
        "out_channels": 4,
        "projection_class_embeddings_input_dim": 64,
        "sample_size": 8,
        "transformer_layers_per_block": [1, 1, 2],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": true
    });
    UNetConfig::parse(&json.to_string(), "test").expect("a valid configuration")
}

fn text_config(hidden: i64, heads: i64, with_projection: bool, tokenizer: &Tokenizer) -> ClipTextConfig {
    ClipTextConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: hidden,
        intermediate_size: 2 * hidden,
        projection_dim: 16,
        num_hidden_layers: 2,
        num_attention_heads: heads,
        max_position_embeddings: TOKENS as i64,
        hidden_act: HiddenAct::QuickGelu,
        layer_norm_eps: 1e-5,
        bos_token_id: tokenizer.bos(),
        eos_token_id: tokenizer.eos(),
        pad_token_id: tokenizer.pad(),
        with_projection,
    }
}

/// Writes a complete model directory with random weights and a CLIP model beside it.
pub fn write_model(dir: &Path, seed: u64) {
    let (cpu, f32) = (Device::Cpu, Kind::Float);
    let words = scenes::vocabulary();
    for (folder, pad) in [("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!"), ("clip", "!")] {
        Tokenizer::write_from_words(dir.join(folder), &words, TOKENS, pad).expect("written");
    }
    let (first, second) = (Tokenizer::open(dir.join("tokenizer")).unwrap(), Tokenizer::open(dir.join("tokenizer_2")).unwrap());
    UNet::random(&unet_config(), seed, cpu, f32).unwrap().save(dir.join("unet"), Some(Kind::Half), &BTreeMap::new()).unwrap();
    ClipTextModel::random(&text_config(12, 2, false, &first), seed, cpu, f32).unwrap().save(dir.join("text_encoder"), None).unwrap();
    ClipTextModel::random(&text_config(16, 2, true, &second), seed, cpu, f32).unwrap().save(dir.join("text_encoder_2"), None).unwrap();
    let vae = json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [4, 4, 8],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "out_channels": 3,
        "sample_size": 32,
        "scaling_factor": 0.5,
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]
    });
    std::fs::create_dir_all(dir.join("vae")).unwrap();
    std::fs::write(dir.join("vae/config.json"), vae.to_string()).unwrap();
    let config = VaeConfig::open(dir.join("vae")).unwrap();
    AutoencoderKl::random(&config, seed, cpu, f32).unwrap().save(dir.join("vae"), None).unwrap();
    let clip = ClipConfig {
        text: text_config(16, 2, false, &second),
        vision: ClipVisionConfig {
            hidden_size: 12,
            intermediate_size: 24,
            projection_dim: 16,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_channels: 3,
            image_size: SIZE.into(),
            patch_size: 8,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
        },
        projection_dim: 16,
        logit_scale_init_value: 2.66,
    };
    ClipModel::random(&clip, seed, cpu, f32).unwrap().save(dir.join("clip"), None, &ClipPreprocess::new(SIZE)).unwrap();
    let scheduler = SchedulerConfig::stable_diffusion(PredictionType::VPrediction);
    let class = scheduler.class_name.clone();
    std::fs::create_dir_all(dir.join("scheduler")).unwrap();
    NoiseSchedule::new(scheduler).unwrap().save(dir.join("scheduler")).unwrap();
    write_model_index(dir, Family::StableDiffusionXl, &class, true).unwrap();
}

/// A model directory and the two calibration sets, made once per run of the tests and never changed.
pub struct Base {
    pub model: PathBuf,
    pub calibration: PathBuf,
    pub heldout: PathBuf,
    pub scores: PathBuf,
}

/// See [`Base`].
pub fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli");
        // What an older run left there was made by an older program.
        let _ = std::fs::remove_dir_all(&dir);
        let base = Base {
            model: dir.join("tiny"),
            calibration: dir.join("calibration.safetensors"),
            heldout: dir.join("heldout.safetensors"),
            scores: dir.join("scores"),
        };
        write_model(&base.model, 7);
        for (path, seed) in [(&base.calibration, "1"), (&base.heldout, "2")] {
            ok(&[
                "calibrate",
                "--model",
                text(&base.model),
                "--scenes",
                "6",
                "--seed",
                seed,
                "--bins",
                "3",
                "--device",
                "cpu",
                "--out",
                text(path),
            ]);
        }
        ok(&[
            "score",
            "--model",
            text(&base.model),
            "--calibration",
            text(&base.calibration),
            "--criterion",
            "output_loss,task_loss,magnitude,taylor,random,clip_score",
            "--prompts",
            "2",
            "--steps",
            "2",
            "--device",
            "cpu",
            "--out",
            text(&base.scores),
        ]);
        base
    })
}

impl Base {
    /// The scores of a criterion.
    pub fn score(&self, criterion: &str) -> PathBuf {
        self.scores.join(format!("{criterion}.json"))
    }

    /// Writes a plan by output loss.
    pub fn plan(&self, dir: &Path, ratio: &str) -> PathBuf {
        let out = dir.join(format!("output_loss-{ratio}.json"));
        ok(&["plan", "--scores", text(&self.score("output_loss")), "--ratio", ratio, "--out", text(&out)]);
        out
    }
}

/// The keys of `[trainer]` in settings such as [`DISTILL`], which `[layerwise]` takes too.
pub fn trainer_keys(settings: &str) -> &str {
    settings.split_once("[trainer]").unwrap().1.split_once("[data]").unwrap().0
}

/// Settings of a short retraining run.
pub const DISTILL: &str = r#"
taps = "stages"

[losses]
task_weight = 1.0
output_weight = 1.0
feature_weight = 0.5
feature_loss = "normalized"
norm_power = 2
norm_scope = "batch"

[trainer]
steps = 4
batch = 2
lr = 1e-3
warmup = 1
lr_schedule = "constant"
lr_end_ratio = 1.0
beta1 = 0.9
beta2 = 0.99
weight_decay = 0.0
clip_norm = 1.0
ema_decay = 0.0
seed = 3
compute = "f32"
log_every = 2
checkpoint_every = 2

[data]
source = "scenes"
seed = 5
count = 8
caption_dropout = 0.1
"#;
