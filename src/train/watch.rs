//! What a running training shows: progress, the series of losses and accuracies, and how long the model waited for data.

use crate::error::Result;
use crate::registry::{Earlier, Series, SeriesFolder};
use crate::telemetry::{Measures, Progress};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// The eyes on a training.
#[derive(Debug)]
pub struct Watch {
    place: Option<SeriesFolder>,
    series: Option<Series>,
    progress: Option<Progress>,
    whole: Clock,
    recent: Clock,
}

/// Images, time and waiting since it was started.
#[derive(Debug, Clone, Copy)]
struct Clock {
    since: Instant,
    images: usize,
    waited: Duration,
    /// Evaluations and checkpoints: no time of training.
    paused: Duration,
}

impl Clock {
    fn start() -> Clock {
        Clock { since: Instant::now(), images: 0, waited: Duration::ZERO, paused: Duration::ZERO }
    }

    /// The share of the time that went by waiting for data, and images a second.
    fn rates(&self) -> (f64, f64) {
        let seconds = self.since.elapsed().saturating_sub(self.paused).as_secs_f64().max(1e-9);
        (self.waited.as_secs_f64() / seconds, self.images as f64 / seconds)
    }
}

impl Watch {
    /// The series goes to `place` while the training runs; `None` keeps it on the local disk only.
    #[must_use]
    pub fn new(place: Option<SeriesFolder>) -> Watch {
        Watch { place, series: None, progress: None, whole: Clock::start(), recent: Clock::start() }
    }

    /// Begins the series in `folder`, with the lines up to `step` of `earlier` when the training is resumed.
    pub(super) fn open(&mut self, folder: &Path, earlier: Option<(&[u8], u64)>) -> Result<()> {
        let earlier = earlier.map(|(text, step)| Earlier { text, step });
        self.series = Some(Series::open(self.place.take(), folder, earlier)?);
        Ok(())
    }

    /// Begins to count steps from `step` on.
    pub(super) fn start(&mut self, step: u64, total: u64) {
        self.progress = Some(Progress::new("train", total, "steps").starting_at(step));
        self.whole = Clock::start();
        self.recent = Clock::start();
    }

    /// A batch of `images` came after a wait.
    pub(super) fn fetched(&mut self, waited: Duration, images: usize) {
        for clock in [&mut self.whole, &mut self.recent] {
            clock.waited += waited;
            clock.images += images;
        }
    }

    /// So long something else was done than training.
    pub(super) fn paused(&mut self, time: Duration) {
        self.whole.paused += time;
        self.recent.paused += time;
    }

    /// A step is done.
    pub(super) fn advance(&mut self, loss: f64, lr: f64) {
        let (data_wait, images_per_s) = self.recent.rates();
        if let Some(progress) = &self.progress {
            progress.advance_measured(1, &Measures { loss, lr, images_per_s, data_wait });
        }
    }

    /// A line of the series, with the rates since the last one.
    pub(super) fn write(&mut self, step: u64, values: &Value) -> Result<()> {
        let (data_wait, images_per_s) = self.recent.rates();
        let clock = if self.recent.images == 0 {
            json!({})
        } else {
            json!({ "images_per_s": images_per_s, "data_wait": data_wait })
        };
        self.recent = Clock::start();
        self.series.as_mut().map_or(Ok(()), |series| series.write(step, values, &clock))
    }

    /// Puts a file beside the series in the store.
    pub(super) fn note(&self, name: &str, bytes: Vec<u8>) {
        if let Some(series) = &self.series {
            series.note(name, bytes);
        }
    }

    /// The series so far, for a checkpoint.
    pub(super) fn text(&self) -> &[u8] {
        self.series.as_ref().map_or(&[], Series::text)
    }

    /// Ends progress and series; returns the share of the time that went by waiting for data, and images a second.
    pub(super) fn finish(&mut self) -> (f64, f64) {
        self.progress = None;
        self.series = None;
        self.whole.rates()
    }
}
