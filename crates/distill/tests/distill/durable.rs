//! Runs that are killed at any moment, or whose disk is full, go on from their last checkpoint with the same bits. This test
//! program starts itself as the run that is killed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Run, World, config, losses};
use distill::{Error, LossConfig, NormScope, TrainerConfig};
use rand::{RngExt, SeedableRng};

const DIR: &str = "DISTILL_TEST_DIR";
const STEPS: u64 = 60;

fn settings() -> (TrainerConfig, LossConfig) {
    let config = TrainerConfig { accumulate: 2, log_every: 7, checkpoint_every: 4, ..config(STEPS) };
    // The running norms are state of the task.
    (config, losses("normalized", NormScope::Running))
}

fn train(dir: &Path) -> distill::Result<()> {
    let (config, losses) = settings();
    World::new().run_with(Run::new(config), &losses, Some(dir)).map(|_| ())
}

/// The run to be killed.
#[test]
#[ignore = "a program that another test starts"]
fn run() {
    let dir = std::env::var(DIR).unwrap();
    train(Path::new(&dir)).unwrap();
}

fn last(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join(format!("checkpoint-{STEPS:08}.safetensors"))).unwrap()
}

fn newest(dir: &Path) -> u64 {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let steps = names.filter_map(|n| n.strip_prefix("checkpoint-")?.strip_suffix(".safetensors")?.parse().ok());
    steps.max().unwrap_or(0)
}

#[test]
fn a_run_killed_at_many_moments_ends_with_the_bits_of_an_unharmed_one() {
    let unharmed = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    train(unharmed.path()).unwrap();
    let whole = begin.elapsed();

    let dir = tempfile::tempdir().unwrap();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let (mut kills, mut progress) = (0, vec![]);
    loop {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "durable::run", "--ignored", "--test-threads=1"])
            .env(DIR, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Between two and many kills, whatever the machine's speed; the last child is left alone.
        let alive = whole.mul_f64(0.05 + 0.3 * rng.random::<f64>());
        let deadline = Instant::now() + alive;
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if kills < 25 && Instant::now() >= deadline {
                break None;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        match ended {
            Some(status) => {
                assert!(status.success());
                break;
            }
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                progress.push(newest(dir.path()));
            }
        }
    }
    assert!(kills >= 2, "the run was over before it could be killed");
    assert!(progress.is_sorted(), "no kill loses a finished checkpoint: {progress:?}");
    assert_eq!(last(dir.path()), last(unharmed.path()), "weights, moments, average, log, norms after {kills} kills at {progress:?}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().filter(|n| n.to_string_lossy().starts_with("checkpoint-")).count() == 2, "{left:?}");
}

/// A file system that is full: no file may grow beyond this.
fn limit_file_size(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: changes this process's limits only. Without the signal ignored, a write beyond the limit would end the process.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
}

/// The run on a full disk.
#[test]
#[ignore = "a program that another test starts"]
fn run_on_a_full_disk() {
    let dir = std::env::var(DIR).unwrap();
    let size = std::fs::metadata(Path::new(&dir).join("checkpoint-00000008.safetensors")).unwrap().len();
    limit_file_size(size / 2);
    let err = train(Path::new(&dir)).unwrap_err();
    assert!(matches!(&err, Error::Unet(unet::Error::Io { path, .. }) if path.to_string_lossy().contains("checkpoint-00000012")), "{err}");
}

#[test]
fn a_full_disk_stops_the_run_with_an_error_and_costs_one_interval() {
    let dir = tempfile::tempdir().unwrap();
    let (config, losses) = settings();
    World::new().run_with(Run { stop_at: 8, ..Run::new(config) }, &losses, Some(dir.path())).unwrap();
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "durable::run_on_a_full_disk", "--ignored", "--test-threads=1"])
        .env(DIR, dir.path())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(names(), before, "nothing half-written is left, nothing that was there is lost");

    let unharmed = tempfile::tempdir().unwrap();
    train(unharmed.path()).unwrap();
    train(dir.path()).unwrap();
    assert_eq!(last(dir.path()), last(unharmed.path()));
}
