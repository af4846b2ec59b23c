//! Training by several ranks: this test program starts itself once per rank.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::time::Duration;

use crate::support::{Run, World, config, losses};
use distill::{Error, EventWriter, LogRow, LoggedRun, LossConfig, NormScope, Trainer, TrainerConfig, Validation};
use torch_ext::{Launch, ProcessGroup};
use unet::weights::Tensors;

const SCENARIO: &str = "DISTILL_TEST_SCENARIO";
const DIR: &str = "DISTILL_TEST_DIR";
const STEPS: u64 = 12;
/// Seconds that the ranks wait for each other where a test is about that.
const SHORT: u64 = 4;

fn settings(micros: u64, ranks: u64, shard_optimizer: bool) -> (TrainerConfig, LossConfig) {
    let accumulate = micros / ranks;
    // Buckets of a few tensors each, so that there are many.
    let config = TrainerConfig { accumulate, shard_optimizer, log_every: 1, checkpoint_every: 5, bucket_mb: 0.02, ..config(STEPS) };
    (config, losses("normalized", NormScope::Running))
}

fn spawn(scenario: &str, world: usize, dir: &Path) -> Vec<Child> {
    spawn_with(scenario, world, dir, 60)
}

fn spawn_with(scenario: &str, world: usize, dir: &Path, timeout: u64) -> Vec<Child> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    (0..world)
        .map(|rank| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "ranks::rank", "--ignored", "--nocapture", "--test-threads=1"])
                .env(SCENARIO, scenario)
                .env(DIR, dir)
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", world.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", port.to_string())
                .env("LAPTOP_DIFF_TIMEOUT", timeout.to_string())
                .env("OMP_NUM_THREADS", "1")
                .env_remove("TORCHELASTIC_USE_AGENT_STORE")
                .env_remove("TORCHELASTIC_RESTART_COUNT")
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect()
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn run(scenario: &str, world: usize, dir: &Path) {
    for (rank, child) in spawn(scenario, world, dir).into_iter().enumerate() {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{scenario}, rank {rank} of {world}: {}", text(&out));
    }
}

/// One rank: what the scenario asks for.
#[test]
#[ignore = "a program that another test starts"]
fn rank() {
    let scenario = std::env::var(SCENARIO).unwrap();
    let dir = std::env::var(DIR).unwrap();
    let dir = Path::new(&dir);
    let launch = Launch::from_vars(|name| std::env::var(name).ok()).unwrap().unwrap();
    let group = Rc::new(ProcessGroup::join(&launch).unwrap());
    let (rank, ranks) = (group.rank(), group.world() as u64);
    let world = World::new();
    let go = |config: TrainerConfig, losses: &LossConfig, stop_at| {
        world.run_with(Run { group: Some(group.clone()), stop_at, ..Run::new(config) }, losses, Some(dir))
    };
    match scenario.as_str() {
        "four micros" | "four micros, cut" => {
            let (config, losses) = settings(4, ranks, scenario.ends_with("cut"));
            let (trainer, _) = go(config, &losses, u64::MAX).unwrap();
            let (all, early) = trainer.overlap();
            assert!(all > 20 && early > all / 2, "{early} of {all} buckets left before the backward pass ended");
            save(&trainer, dir, rank);
        }
        "stopped" => {
            let (config, losses) = settings(4, ranks, false);
            // Only one rank is asked to stop; all do, a step later.
            let (trainer, _) = go(config, &losses, if rank == 1 { 6 } else { u64::MAX }).unwrap();
            assert_eq!(trainer.step(), 7);
        }
        "killed" => {
            let (config, losses) = settings(4, ranks, false);
            if rank == 1 {
                let group = group.clone();
                let mut steps = 0;
                let killed = &mut |_: distill::Progress| {
                    steps += 1;
                    if steps == 7 {
                        // SAFETY: ends this process, as a machine that fails would.
                        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
                    }
                    distill::Control::Continue
                };
                world.run_hooked(Run { group: Some(group), ..Run::new(config) }, &losses, Some(dir), killed).unwrap();
                unreachable!("killed before the end");
            }
            let err = go(config, &losses, u64::MAX).unwrap_err();
            assert!(matches!(&err, Error::Distributed(torch_ext::Error::Collective { .. })), "{err}");
        }
        "other seed" => {
            let (config, losses) = settings(4, ranks, false);
            let config = TrainerConfig { seed: rank as u64, ..config };
            let err = go(config, &losses, u64::MAX).unwrap_err();
            assert!(matches!(&err, Error::Distributed(torch_ext::Error::Disagreement { what, .. }) if what == "run"), "{err}");
        }
        "slow validation" => slow_validation(&world, &group, dir),
        other => panic!("unknown scenario {other}"),
    }
}

/// A validation that takes longer than the ranks wait for each other, and writes down what it did.
struct Slow<'a> {
    dir: &'a Path,
    done: Vec<u64>,
}

impl Validation for Slow<'_> {
    fn every(&self) -> u64 {
        STEPS
    }

    fn is_done(&self, step: u64) -> bool {
        self.done.contains(&step)
    }

    fn validate(&mut self, step: u64, _: Tensors, _: &mut EventWriter) -> distill::Result<()> {
        let saved = self.dir.join(format!("checkpoint-{step:08}.safetensors")).is_file();
        assert!(saved, "what was trained is safe before the validation of step {step}");
        std::thread::sleep(Duration::from_secs(2 * SHORT));
        std::fs::write(self.dir.join(format!("validated-{step}")), "").unwrap();
        Ok(())
    }
}

fn slow_validation(world: &World, group: &Rc<ProcessGroup>, dir: &Path) {
    let (config, losses) = settings(4, group.world() as u64, true);
    let first = group.first_alone(|| {
        std::thread::sleep(Duration::from_secs(2 * SHORT));
        Ok::<_, Error>(())
    });
    assert_eq!(first.unwrap().is_some(), group.rank() == 0);
    let run = Run { group: Some(group.clone()), ..Run::new(config) };
    world
        .run_task(run, &losses, Some(dir), &mut |trainer, task| {
            assert_eq!(trainer.is_resumed(), dir.join("validated-0").is_file());
            let done = if trainer.is_resumed() { vec![0] } else { vec![] };
            let logged = LoggedRun { stage: "ranks", dir };
            let stop = trainer.step() == 0 && !trainer.is_resumed();
            let on_step =
                &mut |_: distill::Progress| Ok::<_, Error>(if stop { distill::Control::Stop } else { distill::Control::Continue });
            match logged.run(trainer, task, Some(&mut Slow { dir, done }), on_step) {
                Err(Error::Stopped { .. }) if stop => Ok(()),
                ended => ended.map(|_| ()),
            }
        })
        .unwrap();
}

#[test]
fn work_of_one_rank_may_take_longer_than_the_ranks_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        for (rank, child) in spawn_with("slow validation", 2, dir.path(), SHORT).into_iter().enumerate() {
            let out = child.wait_with_output().unwrap();
            assert!(out.status.success(), "rank {rank}: {}", text(&out));
        }
        assert!(dir.path().join("validated-0").is_file());
    }
    assert!(dir.path().join(format!("validated-{STEPS}")).is_file());
}

fn save(trainer: &Trainer, dir: &Path, rank: usize) {
    std::fs::write(dir.join(format!("log-{rank}.json")), serde_json::to_string(trainer.log()).unwrap()).unwrap();
}

fn log(dir: &Path, rank: usize) -> Vec<LogRow> {
    serde_json::from_str(&std::fs::read_to_string(dir.join(format!("log-{rank}.json"))).unwrap()).unwrap()
}

fn checkpoint(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join(format!("checkpoint-{STEPS:08}.safetensors"))).unwrap()
}

/// One rank that makes all passes itself.
fn alone(dir: &Path) -> Vec<LogRow> {
    let (config, losses) = settings(4, 1, false);
    World::new().run_with(Run::new(config), &losses, Some(dir)).unwrap().0.log().to_vec()
}

#[test]
fn the_loss_curve_does_not_depend_on_the_number_of_ranks() {
    let single = tempfile::tempdir().unwrap();
    let expected = alone(single.path());
    for ranks in [2, 4] {
        let dir = tempfile::tempdir().unwrap();
        run("four micros", ranks, dir.path());
        for rank in 0..ranks {
            for (row, expected) in log(dir.path(), rank).iter().zip(&expected) {
                for (name, value) in [("loss", expected.loss)].into_iter().chain(expected.terms.iter().map(|(k, v)| (k.as_str(), *v))) {
                    let got = if name == "loss" { row.loss } else { row.terms[name] };
                    assert!((got - value).abs() <= 1e-5 * value, "{ranks} ranks, step {}, {name}: {got} is not {value}", row.step);
                }
                assert!((row.grad_norm - expected.grad_norm).abs() <= 1e-5 * expected.grad_norm);
            }
            assert_eq!(log(dir.path(), rank).len(), expected.len());
        }

        let cut = tempfile::tempdir().unwrap();
        run("four micros, cut", ranks, cut.path());
        assert!(
            checkpoint(dir.path()) == checkpoint(cut.path()),
            "{ranks} ranks: an optimizer that is cut among the ranks has the same bits"
        );
    }
}

#[test]
fn a_stop_of_one_rank_stops_all_and_another_number_of_ranks_goes_on() {
    let whole = tempfile::tempdir().unwrap();
    let expected = alone(whole.path());
    let dir = tempfile::tempdir().unwrap();
    run("stopped", 2, dir.path());
    run("four micros", 4, dir.path());
    for (row, expected) in log(dir.path(), 0).iter().zip(&expected) {
        assert!((row.loss - expected.loss).abs() <= 1e-5 * expected.loss, "step {}", row.step);
    }
    assert_eq!(log(dir.path(), 0).len(), STEPS as usize);
}

#[test]
fn a_killed_rank_ends_the_others_and_the_restart_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut children = spawn("killed", 2, dir.path());
    let victim = children.pop().unwrap().wait_with_output().unwrap();
    assert!(!victim.status.success());
    let survivor = children.pop().unwrap().wait_with_output().unwrap();
    assert!(survivor.status.success(), "{}", text(&survivor));
    assert!(dir.path().join("checkpoint-00000005.safetensors").is_file());

    run("four micros", 2, dir.path());
    let unharmed = tempfile::tempdir().unwrap();
    run("four micros", 2, unharmed.path());
    assert!(checkpoint(dir.path()) == checkpoint(unharmed.path()), "the same bits as without the loss of a rank");
}

#[test]
fn ranks_of_different_runs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    run("other seed", 2, dir.path());
}
