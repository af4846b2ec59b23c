//! Ranks that meet, work together and fail: this test program starts itself once per rank.

use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use torch_ext::{Error, GradientBuckets, Launch, ProcessGroup};

const SCENARIO: &str = "TORCH_EXT_TEST_SCENARIO";

/// Number of GPUs; set by hand, it sends collectives and buckets over NCCL, one GPU per rank.
const GPUS: &str = "TORCH_EXT_TEST_GPUS";

fn gpus() -> Option<usize> {
    Some(std::env::var(GPUS).ok()?.parse().expect("TORCH_EXT_TEST_GPUS is a number"))
}

/// Numbers of ranks for a test: as many as there are GPUs where they are to be used.
fn worlds(worlds: &[usize]) -> Vec<usize> {
    let mut worlds: Vec<usize> = worlds.iter().map(|&world| gpus().map_or(world, |most| world.min(most))).collect();
    worlds.dedup();
    worlds
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts `ranks` (of a world of `world`) on `scenario`.
fn start(scenario: &str, world: usize, ranks: std::ops::Range<usize>, timeout: u64) -> Vec<Child> {
    let port = free_port();
    ranks
        .map(|rank| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "rank", "--ignored", "--nocapture", "--test-threads=1"])
                .env(SCENARIO, scenario)
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

fn run(scenario: &str, world: usize) {
    for (rank, child) in start(scenario, world, 0..world, 60).into_iter().enumerate() {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{scenario}, rank {rank} of {world}: {}", text(&out));
    }
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// One rank: what the scenario asks for.
#[test]
#[ignore = "a program that another test starts"]
fn rank() {
    let scenario = std::env::var(SCENARIO).unwrap();
    tch::set_num_threads(1);
    let launch = Launch::from_vars(|name| std::env::var(name).ok()).unwrap().unwrap();
    let group = match ProcessGroup::join(&launch) {
        Err(e) if scenario == "missing" => {
            assert!(matches!(e, Error::Join { .. }), "{e}");
            println!("{e}");
            return;
        }
        joined => Rc::new(joined.unwrap()),
    };
    let mut device = Device::Cpu;
    if gpus().is_some() && ["collectives", "buckets"].contains(&scenario.as_str()) {
        group.open_nccl(launch.rank).unwrap();
        device = Device::Cuda(launch.rank);
    }
    match scenario.as_str() {
        "collectives" => collectives(&group, device),
        "buckets" => buckets(&group, device),
        "nccl" => {
            let err = group.open_nccl(0).unwrap_err();
            assert!(matches!(err, Error::Nccl { rank: 0, device: 0, .. }), "{err}");
            println!("{err}");
            // The group itself is as good as before.
            group.barrier().unwrap();
        }
        "disagree" => {
            for round in 0..20 {
                group.agree("round", &round.to_string()).unwrap();
            }
            let value = if group.rank() == 1 { "123 tensors" } else { "124 tensors" };
            let err = group.agree("parameters", value).unwrap_err();
            assert!(matches!(&err, Error::Disagreement { what, .. } if what == "parameters"), "{err}");
            let message = err.to_string();
            assert!(message.contains("123 tensors") && message.contains("124 tensors"), "{message}");
        }
        "alone" => alone(&group),
        "death" => death(&group),
        other => panic!("unknown scenario {other}"),
    }
}

fn collectives(group: &ProcessGroup, device: Device) {
    let (rank, world) = (group.rank() as i64, group.world() as i64);
    let x = Tensor::arange(1_000_003, (Kind::Float, device)).g_mul_scalar((rank + 1) as f64) / 1e6;
    let expected = Tensor::arange(1_000_003, (Kind::Double, device)) * ((world * (world + 1) / 2) as f64) / 1e6;
    group.all_reduce(&x).unwrap();
    let diff = (x.to_kind(Kind::Double) - expected).abs().max().double_value(&[]);
    assert!(diff < 2e-6, "sum is {diff} off");

    for root in 0..group.world() {
        let x = Tensor::full([5], rank, (Kind::Int64, device));
        group.broadcast(&x, root).unwrap();
        assert_eq!(Vec::<i64>::try_from(&x).unwrap(), [root as i64; 5]);
    }

    let part = Tensor::from_slice(&[rank as f32, 10.0 * rank as f32]).to_device(device);
    let whole = Tensor::zeros([2 * world], (Kind::Float, device));
    group.all_gather(&whole, &part).unwrap();
    let expected: Vec<f32> = (0..world).flat_map(|r| [r as f32, 10.0 * r as f32]).collect();
    assert_eq!(Vec::<f32>::try_from(&whole).unwrap(), expected);

    let mut values = [1.0, rank as f64];
    group.sum(&mut values).unwrap();
    assert_eq!(values, [world as f64, (world * (world - 1) / 2) as f64]);

    let strided = Tensor::zeros([4, 4], (Kind::Float, device)).transpose(0, 1);
    let err = group.all_reduce(&strided).unwrap_err().to_string();
    assert!(err.contains("contiguous"), "{err}");
    group.barrier().unwrap();
}

/// A chain of layers, some of them unused, one used twice; gradients of every rank's own input.
fn gradients(leaves: &[Tensor], input: f64, device: Device) -> Tensor {
    let x = Tensor::full([3, 8], input, (Kind::Float, device));
    let mut x = x + Tensor::arange(8, (Kind::Float, device));
    for w in &leaves[..5] {
        x = x.matmul(w).tanh();
    }
    x.square().sum(Kind::Float)
}

fn buckets(group: &Rc<ProcessGroup>, device: Device) {
    // Others before them must not leave them their order.
    train(group, 64 * 4, device);
    train(group, 2 * 64 * 4, device);
}

fn train(group: &Rc<ProcessGroup>, bucket_bytes: usize, device: Device) {
    let leaves: Vec<Tensor> = (0..6i64)
        .map(|i| ((Tensor::arange(64, (Kind::Float, device)).view([8, 8]) * (i + 1) as f64).sin() * 0.3).set_requires_grad(true))
        .collect();
    let mut buckets = GradientBuckets::new(&leaves, Some(group.clone()), bucket_bytes).unwrap();
    for step in 0..3 {
        let inputs = |rank: usize| [0.1 * rank as f64 + step as f64, 0.3 * rank as f64 - 0.2];
        buckets.begin();
        let [first, last] = inputs(group.rank());
        gradients(&leaves, first, device).backward();
        buckets.arm();
        gradients(&leaves, last, device).backward();
        let flat = Tensor::cat(&buckets.finish().unwrap(), 0);
        assert!(leaves.iter().all(|w| !w.grad().defined()), "the leaves' own gradients are freed");
        let (all, early) = buckets.overlap();
        // The bucket of the unused layer is never ready, the others are sent as soon as they are.
        let (expected, ready) = if bucket_bytes == 64 * 4 { (6, 5) } else { (3, 2) };
        assert_eq!((all, early), (expected, if step == 0 { 0 } else { ready }));

        let plain: Vec<Tensor> = leaves.iter().map(|w| w.detach().set_requires_grad(true)).collect();
        for rank in 0..group.world() {
            for input in inputs(rank) {
                gradients(&plain, input, device).backward();
            }
        }
        for (i, w) in plain.iter().enumerate() {
            let got = flat.narrow(0, 64 * i as i64, 64);
            let expected = if i == 5 { Tensor::zeros([64], (Kind::Float, device)) } else { w.grad().reshape([-1]) };
            let diff = (got - &expected).abs().max().double_value(&[]);
            let size = expected.abs().max().double_value(&[]).max(1e-3);
            assert!(diff <= 1e-5 * size, "step {step}, layer {i}: {diff} off at {size}");
        }
    }
}

/// Work that takes twice as long as any collective may, and work that fails.
fn alone(group: &ProcessGroup) {
    let done = group.first_alone(|| {
        std::thread::sleep(Duration::from_secs(6));
        Ok::<_, Error>(7)
    });
    assert_eq!(done.unwrap(), (group.rank() == 0).then_some(7));
    let mut values = [1.0];
    group.sum(&mut values).unwrap();
    assert_eq!(values, [group.world() as f64], "the group is as good as before");
    let failed = group.first_alone(|| Err::<(), _>(Error::Tensor("no room".into()))).unwrap_err();
    match group.rank() {
        0 => assert_eq!(failed.to_string(), "no room"),
        // Told, or met by a meeting place that has gone.
        _ => assert!(matches!(&failed, Error::Collective { .. }), "{failed}"),
    }
}

fn death(group: &ProcessGroup) {
    let x = Tensor::ones([4_000_000], (Kind::Float, Device::Cpu));
    for round in 0..1000 {
        if group.rank() == 1 && round == 5 {
            // SAFETY: ends this process, as a machine that fails would.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        if let Err(e) = group.all_reduce(&x) {
            assert!(matches!(&e, Error::Collective { .. }), "{e}");
            assert!(e.to_string().contains("another rank stopped"), "{e}");
            return;
        }
    }
    panic!("nobody noticed");
}

#[test]
fn two_and_four_ranks_add_up_hand_out_and_gather() {
    worlds(&[2, 4]).into_iter().for_each(|world| run("collectives", world));
}

#[test]
fn buckets_hold_the_sum_of_all_ranks_gradients_and_leave_early() {
    worlds(&[1, 2, 4]).into_iter().for_each(|world| run("buckets", world));
}

#[test]
fn nccl_that_is_not_there_is_an_error_with_a_next_step() {
    if gpus().is_some() {
        return;
    }
    let out = start("nccl", 1, 0..1, 60).remove(0).wait_with_output().unwrap();
    assert!(out.status.success() && text(&out).contains("cargo xtask nccl"), "{}", text(&out));
}

#[test]
fn ranks_wait_for_the_firsts_own_work_longer_than_for_a_collective() {
    for (rank, child) in start("alone", 3, 0..3, 3).into_iter().enumerate() {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "rank {rank}: {}", text(&out));
    }
}

#[test]
fn ranks_that_differ_are_told_before_any_collective() {
    run("disagree", 2);
    run("disagree", 3);
}

#[test]
fn a_killed_rank_ends_the_others_with_an_error() {
    let begin = Instant::now();
    let mut children = start("death", 3, 0..3, 60);
    let victim = children.remove(1).wait_with_output().unwrap();
    assert!(!victim.status.success());
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
    }
    assert!(begin.elapsed() < Duration::from_secs(60), "noticed by the broken connection, not by the timeout");
}

#[test]
fn a_rank_that_never_comes_is_reported_after_the_timeout() {
    for child in start("missing", 3, 0..2, 4) {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success() && text(&out).contains("could not join"), "{}", text(&out));
    }
}
