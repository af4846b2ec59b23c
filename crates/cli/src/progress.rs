//! Progress bars with the time left, on stderr and only on a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over `len` units of work called `what`.
pub fn bar(what: &str, len: u64) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(len), target);
    let style = ProgressStyle::with_template("{prefix:>12} [{bar:32}] {pos}/{len} {elapsed} elapsed, {eta} left {msg}");
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(what.to_string());
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// One bar after the other, for work that has several parts.
#[derive(Default)]
pub struct Bars {
    present: Option<(String, ProgressBar)>,
}

impl Bars {
    /// Shows how much of `what` is done, on a new bar if it is another part than before.
    pub fn show(&mut self, what: &str, done: u64, all: u64) {
        if self.present.as_ref().is_none_or(|(present, _)| present != what) {
            self.clear();
            self.present = Some((what.to_string(), bar(what, all)));
        }
        if let Some((_, bar)) = &self.present {
            bar.set_position(done);
        }
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        if let Some((_, bar)) = self.present.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.clear();
    }
}
