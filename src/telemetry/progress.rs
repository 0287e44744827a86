//! Progress of long work, with rate and time left: a bar on a terminal, elsewhere a log line every few seconds.
//!
//! Guarantees:
//! - On a terminal, log lines appear above the bars, never through them.
//! - JSON logs carry the numbers as fields of their own (`work`, `unit`, `done`, `total`, `rate`, `left_s`, and those of
//!   [`Measures`]); text logs carry one sentence.
//! - Rate and time left count what this process has done; work that was done before it started ([`Progress::starting_at`])
//!   counts as done only.

use super::LogFormat;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(5);

/// All bars: log lines must step around them.
static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(5)));

/// The bar's line; what is said beside it has a line of its own, so that narrow terminals show it too.
const LINE: &str = "{prefix:>12} {wide_bar} {pos}/{len} {msg}";
const LINES: &str = "{prefix:>12} {wide_bar} {pos}/{len} {msg}\n             {detail}";

/// What a training step shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measures {
    /// The loss.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// Images a second that were trained on since the last line of the curve.
    pub images_per_s: f64,
    /// The share of the time that the model waited for data, 0 to 1.
    pub data_wait: f64,
}

impl fmt::Display for Measures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Measures { loss, lr, images_per_s, data_wait } = self;
        write!(f, "loss {loss:.3} lr {lr:.1e} {images_per_s:.1} images/s wait {:.1} %", 100.0 * data_wait)
    }
}

/// Counts finished items of one piece of work; may be advanced from several threads.
#[derive(Debug)]
pub struct Progress {
    what: String,
    unit: &'static str,
    total: u64,
    /// What was done before this process began.
    before: u64,
    done: AtomicU64,
    started: Instant,
    last_line: Mutex<Instant>,
    bar: Option<Bar>,
}

#[derive(Debug)]
struct Bar {
    bar: ProgressBar,
    detail: Arc<Mutex<String>>,
}

impl Progress {
    /// Starts counting `total` items, e.g. `Progress::new("embed", 1000, "images")`.
    #[must_use]
    pub fn new(what: impl Into<String>, total: u64, unit: &'static str) -> Progress {
        let what = what.into();
        let shown = std::io::stderr().is_terminal() && super::format() == LogFormat::Text;
        let bar = shown.then(|| Bar::new(&what, total));
        let now = Instant::now();
        let done = AtomicU64::new(0);
        Progress { what, unit, total, before: 0, done, started: now, last_line: Mutex::new(now), bar }
    }

    /// The same with the first `done` items done by an earlier process.
    #[must_use]
    pub fn starting_at(mut self, done: u64) -> Progress {
        self.before = done;
        self.done = AtomicU64::new(done);
        if let Some(Bar { bar, .. }) = &self.bar {
            bar.set_position(done);
        }
        self
    }

    /// `count` more items are done; `detail` is shown beside them.
    pub fn advance(&self, count: u64, detail: &str) {
        self.show(count, detail, None);
    }

    /// `count` more training steps are done, the last of them with these numbers.
    pub fn advance_measured(&self, count: u64, measures: &Measures) {
        self.show(count, &measures.to_string(), Some(measures));
    }

    fn show(&self, count: u64, detail: &str, measures: Option<&Measures>) {
        let done = self.done.fetch_add(count, Ordering::Relaxed) + count;
        let (rate, left) = pace((self.before, done, self.total), self.started.elapsed());
        let pace = format!("{} {}/s", significant(rate), self.unit);
        if let Some(bar) = &self.bar {
            bar.show(done, format!("{pace}, {} left", duration(left)), detail);
            return;
        }
        let Ok(mut last) = self.last_line.try_lock() else { return };
        if last.elapsed() < EVERY {
            return;
        }
        *last = Instant::now();
        let (what, unit, total) = (&self.what, self.unit, self.total);
        if super::format() == LogFormat::Text {
            let beside = if detail.is_empty() { String::new() } else { format!(": {detail}") };
            tracing::info!("{what} {done}/{total} {unit}{beside}, {pace}, {} left", duration(left));
            return;
        }
        let detail = (measures.is_none() && !detail.is_empty()).then_some(detail);
        tracing::info!(
            work = %what,
            unit,
            done,
            total,
            rate,
            left_s = left.as_secs_f64(),
            loss = measures.map(|m| m.loss),
            lr = measures.map(|m| m.lr),
            images_per_s = measures.map(|m| m.images_per_s),
            data_wait = measures.map(|m| m.data_wait),
            detail,
            "progress"
        );
    }

    /// Ends the bar; elsewhere there is nothing to end.
    pub fn finish(&self) {
        if let Some(Bar { bar, .. }) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Bar {
    fn new(what: &str, total: u64) -> Bar {
        let bar = BARS.add(ProgressBar::new(total));
        bar.set_style(ProgressStyle::with_template(LINE).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(what.to_owned());
        Bar { bar, detail: Arc::default() }
    }

    fn show(&self, done: u64, pace: String, detail: &str) {
        let first = {
            let mut shown = self.detail.lock().unwrap_or_else(PoisonError::into_inner);
            let first = shown.is_empty() && !detail.is_empty();
            detail.clone_into(&mut shown);
            first
        };
        if first && let Ok(style) = ProgressStyle::with_template(LINES) {
            let shown = Arc::clone(&self.detail);
            let write = move |_: &ProgressState, to: &mut dyn fmt::Write| {
                // a terminal that cannot be written to has nothing to show
                to.write_str(&shown.lock().unwrap_or_else(PoisonError::into_inner)).ok();
            };
            self.bar.set_style(style.with_key("detail", write));
        }
        self.bar.set_message(pace);
        self.bar.set_position(done);
    }
}

/// Writes log lines to standard error, above the bars that are there.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AboveBars;

impl std::io::Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // a line comes in one call; whatever a library writes into it, no secret leaves
        let text = String::from_utf8_lossy(bytes);
        let shown = super::secrets::redact(&text);
        super::copy(shown.as_bytes());
        BARS.suspend(|| std::io::stderr().write_all(shown.as_bytes()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Items a second of this process, and how long the rest takes at that rate. `counts` are those before it, done and in all.
fn pace((before, done, total): (u64, u64, u64), elapsed: Duration) -> (f64, Duration) {
    let rate = done.saturating_sub(before) as f64 / elapsed.as_secs_f64().max(1e-9);
    let left = total.saturating_sub(done) as f64 / rate.max(1e-9);
    // a century is as good as for ever
    (rate, Duration::from_secs_f64(left.min(3.2e9)))
}

/// Three significant digits, so that slow work has a rate too: `123`, `12.3`, `0.0123`.
fn significant(rate: f64) -> String {
    match rate {
        100.0.. => format!("{rate:.0}"),
        10.0.. => format!("{rate:.1}"),
        1.0.. => format!("{rate:.2}"),
        0.1.. => format!("{rate:.3}"),
        _ => format!("{rate:.4}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_counts_what_this_process_did() {
        let minute = Duration::from_secs(60);
        assert_eq!(pace((0, 30, 90), minute), (0.5, Duration::from_secs(120)));
        // the same speed after 900 steps of an earlier process
        assert_eq!(pace((900, 930, 990), minute), (0.5, Duration::from_secs(120)));
        assert_eq!(pace((90, 90, 90), minute), (0.0, Duration::ZERO));
        let (rate, left) = pace((5, 5, 10), minute);
        assert!(rate == 0.0 && left > Duration::from_secs(1 << 31));
    }

    #[test]
    fn a_progress_that_starts_later_has_that_much_done() {
        let progress = Progress::new("train", 10, "steps").starting_at(4);
        progress.advance(1, "");
        assert_eq!((progress.before, progress.done.load(Ordering::Relaxed)), (4, 5));
    }

    #[test]
    fn numbers_are_short() {
        let measures = Measures { loss: 1.23449, lr: 4.9e-6, images_per_s: 12.34, data_wait: 0.0042 };
        assert_eq!(measures.to_string(), "loss 1.234 lr 4.9e-6 12.3 images/s wait 0.4 %");
        let rates = [123.4, 12.34, 1.234, 0.1234, 0.01234];
        assert_eq!(rates.map(significant), ["123", "12.3", "1.23", "0.123", "0.0123"]);
    }
}
