//! Latency: medians and quartiles, teacher and students interleaved.
//!
//! A machine speeds up and slows down over seconds, so all subjects are timed in every round, each round beginning with
//! another one, and speed-ups are taken within rounds. The caller's functions must wait for the device ([`wait_for`]) before they return.

use std::time::Instant;

use tch::{Cuda, Device};

use crate::error::{Error, Result};
use crate::stats::quantile;
use crate::timings::{Hardware, LatencyRow};

/// One thing to time: a name and a call that returns when its work is done.
pub struct Subject<'a> {
    /// The U-Net's name.
    pub name: String,
    /// One complete call.
    pub call: Box<dyn FnMut() -> Result<()> + 'a>,
}

/// Times every subject `rounds` times after `warmup` untimed calls each; the first subject is what speed-ups refer to. `on_call` is
/// called after each, with the number of calls done and of all.
///
/// # Errors
/// [`Error::Input`] without subjects or rounds; else the first error of a call or of `on_call`.
pub fn measure_latency<E: From<Error>>(
    subjects: &mut [Subject<'_>],
    batch: u64,
    warmup: usize,
    rounds: usize,
    mut on_call: impl FnMut(usize, usize) -> std::result::Result<(), E>,
) -> std::result::Result<Vec<LatencyRow>, E> {
    if subjects.is_empty() || rounds == 0 {
        return Err(Error::input("latency", "at least one subject and one round", format!("{} and {rounds}", subjects.len())).into());
    }
    let (mut done, total) = (0, subjects.len() * (warmup + rounds));
    let mut called = || {
        done += 1;
        on_call(done, total)
    };
    for subject in subjects.iter_mut() {
        for _ in 0..warmup {
            (subject.call)()?;
            called()?;
        }
    }
    let n = subjects.len();
    let mut seconds = vec![Vec::with_capacity(rounds); n];
    for round in 0..rounds {
        for i in (0..n).map(|k| (k + round) % n) {
            let start = Instant::now();
            (subjects[i].call)()?;
            seconds[i].push(start.elapsed().as_secs_f64());
            called()?;
        }
    }
    Ok(summarise(subjects.iter().map(|s| s.name.as_str()), &seconds, batch))
}

/// Rows from raw times: `seconds[i][r]` is subject i in round r.
fn summarise<'a>(names: impl Iterator<Item = &'a str>, seconds: &[Vec<f64>], batch: u64) -> Vec<LatencyRow> {
    let sorted = |mut v: Vec<f64>| {
        v.sort_by(f64::total_cmp);
        v
    };
    let row = |(name, own): (&str, &Vec<f64>)| {
        let ratios = sorted(seconds[0].iter().zip(own).map(|(first, own)| first / own).collect());
        let own = sorted(own.clone());
        LatencyRow {
            unet: name.into(),
            batch,
            n: own.len(),
            median_s: quantile(&own, 0.5),
            q1_s: quantile(&own, 0.25),
            q3_s: quantile(&own, 0.75),
            speedup: quantile(&ratios, 0.5),
        }
    };
    names.zip(seconds).map(row).collect()
}

/// Returns when all work queued on `device` is done; a GPU's calls return before that.
pub fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

/// The highest resident memory of this process so far, in bytes: all models that it held, not one U-Net's own. None where the
/// system does not tell (it is read from Linux' `/proc`).
pub fn peak_rss() -> Option<u64> {
    kib_line(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

impl Hardware {
    /// What this process runs on; `device` says device and number type, such as `cpu, f32`.
    pub fn detect(device: &str) -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split_once(':')).map(|(_, name)| name.trim());
        Self {
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: model.unwrap_or("unknown processor").to_owned(),
            logical_cpus: std::thread::available_parallelism().map_or(1, usize::from),
            torch_threads: tch::get_num_threads().max(1) as usize,
            memory_bytes: kib_line(&read("/proc/meminfo"), "MemTotal:"),
            device: device.to_owned(),
        }
    }
}

/// The number of bytes in a line such as `VmHWM:   1234 kB`.
fn kib_line(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn subjects_are_interleaved_and_take_turns_in_being_first() {
        let order = RefCell::new(Vec::new());
        let log = &order;
        let subject = |name: &'static str| {
            let call = move || {
                log.borrow_mut().push(name);
                Ok(())
            };
            Subject { name: name.into(), call: Box::new(call) }
        };
        let mut subjects = [subject("t"), subject("s")];
        let rows = measure_latency(&mut subjects, 2, 1, 3, |done, total| {
            assert!(done <= total && total == 8);
            Ok::<_, Error>(())
        })
        .unwrap();
        drop(subjects);
        assert_eq!(order.into_inner(), ["t", "s", "t", "s", "s", "t", "t", "s"]);
        assert_eq!(rows.iter().map(|r| (r.unet.as_str(), r.n, r.batch)).collect::<Vec<_>>(), [("t", 3, 2), ("s", 3, 2)]);
        assert_eq!(rows[0].speedup, 1.0);
    }

    #[test]
    fn speedups_are_taken_within_rounds() {
        // The machine halves its speed in the second round; the ratio is 2 in both.
        let rows = summarise(["t", "s"].into_iter(), &[vec![2.0, 4.0, 2.0], vec![1.0, 2.0, 1.0]], 1);
        assert_eq!((rows[1].speedup, rows[1].median_s, rows[1].q3_s), (2.0, 1.0, 1.5));
    }

    #[test]
    fn errors_of_a_call_come_through() {
        let call = Box::new(|| Err(Error::input("x", "y", "z")));
        assert!(measure_latency(&mut [Subject { name: "t".into(), call }], 1, 0, 1, |_, _| Ok::<_, Error>(())).is_err());
        assert!(measure_latency(&mut [], 1, 0, 1, |_, _| Ok::<_, Error>(())).is_err());
    }

    #[test]
    fn memory_lines_are_read() {
        assert_eq!(kib_line("VmPeak: 9 kB\nVmHWM:\t   12 kB\n", "VmHWM:"), Some(12 * 1024));
        assert_eq!(kib_line("nothing", "VmHWM:"), None);
        #[cfg(target_os = "linux")]
        assert!(peak_rss().unwrap() > 1024 * 1024);
    }
}
