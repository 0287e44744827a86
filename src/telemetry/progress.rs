//! Progress of long work: a bar on a terminal, elsewhere a log line every few seconds, both with rate and time left.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(5);

/// Counts finished items of one piece of work; may be advanced from several threads.
#[derive(Debug)]
pub struct Progress {
    what: String,
    unit: &'static str,
    total: u64,
    done: AtomicU64,
    started: Instant,
    last_line: Mutex<Instant>,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts counting `total` items, e.g. `Progress::new("embed", 1000, "images")`.
    #[must_use]
    pub fn new(what: impl Into<String>, total: u64, unit: &'static str) -> Progress {
        let what = what.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
            let template = "{prefix:>12} {wide_bar} {pos}/{len} {msg} {eta} left";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(what.clone());
            bar
        });
        let now = Instant::now();
        Progress { what, unit, total, done: AtomicU64::new(0), started: now, last_line: Mutex::new(now), bar }
    }

    /// `count` more items are done; `detail` is shown beside them, e.g. a loss.
    pub fn advance(&self, count: u64, detail: &str) {
        let done = self.done.fetch_add(count, Ordering::Relaxed) + count;
        let rate = done as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{rate:.1} {}/s {detail}", self.unit));
            bar.set_position(done);
            return;
        }
        let Ok(mut last) = self.last_line.try_lock() else { return };
        if last.elapsed() < EVERY {
            return;
        }
        *last = Instant::now();
        let left = Duration::from_secs_f64(self.total.saturating_sub(done) as f64 / rate.max(1e-9));
        tracing::info!(
            done,
            total = self.total,
            rate = %format!("{rate:.1} {}/s", self.unit),
            left = %duration(left),
            "{}{}{detail}",
            self.what,
            if detail.is_empty() { "" } else { ": " }
        );
    }

    /// Ends the bar; elsewhere there is nothing to end.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A time span for people: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`.
#[must_use]
pub fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..=9 => format!("{:.1} s", span.as_secs_f64()),
        10..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}
