//! A training on the terminal: what it is going to do, a progress bar with the time left, a stop by signal.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use distill::{Control, Event, Summary};
use indicatif::ProgressBar;

use crate::common::{stop_flag, stopped};
use crate::progress;
use crate::table::thousands;

/// Shows the events of a run.
pub struct TrainingDisplay {
    stop: Arc<AtomicBool>,
    // Whether this process shows anything.
    shown: bool,
    bar: ProgressBar,
}

impl TrainingDisplay {
    /// On the terminal, where `shown`; from now on a signal stops the run.
    pub fn new(shown: bool) -> anyhow::Result<Self> {
        Ok(Self { stop: stop_flag()?, shown, bar: ProgressBar::hidden() })
    }

    /// Shows one event, and says whether the run goes on.
    pub fn show(&mut self, event: Event) -> Control {
        match event {
            Event::Begin(summary) => eprintln!("{}", describe(summary)),
            Event::Stage { name, step, steps } => self.begin(name, step, steps),
            Event::Step(progress) => {
                self.bar.set_position(progress.step);
                self.bar.set_message(format!("loss {:.4}, {:.1} images/s", progress.loss, progress.samples_per_second));
            }
            Event::Indexed { done } => self.count("images", done, 0),
            Event::Encoded { done, of } => self.count("latents", done, of),
        }
        if stopped(&self.stop) { Control::Stop } else { Control::Continue }
    }

    fn begin(&mut self, name: &str, step: u64, steps: u64) {
        self.bar.finish();
        self.bar = if self.shown { progress::bar(name, steps) } else { ProgressBar::hidden() };
        self.bar.set_position(step);
        self.bar.reset_eta();
    }

    fn count(&mut self, name: &str, done: u64, of: u64) {
        if self.bar.prefix() != name {
            self.begin(name, 0, of);
        }
        self.bar.set_position(done);
    }
}

impl Drop for TrainingDisplay {
    fn drop(&mut self) {
        self.bar.finish();
    }
}

/// The settings as TOML, and one line for each size that follows from them.
fn describe(summary: &Summary) -> String {
    let s = summary;
    let mut lines = vec![s.settings.clone(), String::new()];
    let mut line = |name: &str, value: String| lines.push(format!("# {name:18} {value}"));
    let per_epoch = s.steps_per_epoch();
    line("student", format!("{} of {} parameters", thousands(s.student_params), thousands(s.teacher_params)));
    line("trained", format!("{} numbers", thousands(s.trained)));
    line("global batch", format!("{} = {} a pass x {} passes x {} ranks", s.global_batch(), s.batch, s.accumulate, s.ranks));
    line("steps per epoch", format!("{per_epoch:.1} over {} images", thousands(s.images)));
    line("epochs", format!("{:.2}", s.steps as f64 / per_epoch));
    line("memory per rank", format!("about {}", bytes(s.memory.iter().map(|(_, bytes)| bytes).sum())));
    for (what, size) in &s.memory {
        line("", format!("{:>9} {what}", bytes(*size)));
    }
    lines.join("\n")
}

fn bytes(n: f64) -> String {
    if n >= 1e9 { format!("{:.2} GB", n / 1e9) } else { format!("{:.1} MB", n / 1e6) }
}
