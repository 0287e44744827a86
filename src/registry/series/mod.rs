//! The curve of a running step: one JSON object a line, and the same as TensorBoard events, in the store while the run goes on.
//!
//! Guarantees:
//! - **The store never holds up or ends the work.** A thread of its own writes to it, at most every ten seconds; when it
//!   fails, a warning says so once and the next time everything is tried again. Dropping a [`Series`] waits for the last write,
//!   but not for ever.
//! - **The local file is a function of the work alone.** What depends on the clock (times, rates) is in the store's lines and
//!   not in the local ones, so a step that is done again makes the same file, and publishing it again is publishing it once.
//! - **A resumed run tells the whole story.** It starts from the lines up to its checkpoint, with their times; what came after
//!   the checkpoint is dropped, since it happens again.
//!
//! A line in the store is `{"step": 5, "loss": 1.2, "time": "2026-11-24T09:15:00.123Z", "images_per_s": 12.3}`: the step, what
//! was computed, the time, and what the clock decided. The local line ends before `time`. In TensorBoard these are
//! `train/loss` and `speed/images_per_s`; numbers in an object, as in `"evaluation": {"knn": 0.9}`, are `evaluation/knn`.

mod upload;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::{Error, Result};
use crate::storage::{Store, check_key};
use crate::telemetry::tfevents;

use super::now;
use upload::{Pace, Target, Uploader};

/// The file with one JSON object a line, in the store and on the disk.
const LINES: &str = "metrics.jsonl";
/// What parts the fields that the work decides from those that the clock decides.
const TIME: &str = "time";

/// Where in a store the series of one step of a run lies: `runs/<run id>/<step>/`.
#[derive(Debug, Clone)]
pub struct SeriesFolder {
    store: Store,
    key: String,
}

impl SeriesFolder {
    /// The folder of `step` in the run `run_id`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] for a run id or step name that is no plain name.
    pub fn new(store: &Store, run_id: &str, step: &str) -> Result<Self> {
        if let Some(bad) = [run_id, step].into_iter().find(|part| part.contains('/')) {
            return Err(Error::config(format!("'{}' is not the name of a run or step", bad.escape_default())));
        }
        let key = format!("runs/{run_id}/{step}");
        check_key(&key)?;
        Ok(SeriesFolder { store: store.clone(), key })
    }

    /// The folder's URI.
    #[must_use]
    pub fn uri(&self) -> String {
        self.store.uri_of(&self.key)
    }
}

/// The folders that hold series of a run's steps: step to URI.
///
/// # Errors
/// [`crate::ErrorKind::Config`] for an invalid run id, [`crate::ErrorKind::Storage`] if the store cannot be listed.
pub fn series_folders(store: &Store, run_id: &str) -> Result<BTreeMap<String, String>> {
    let run = format!("runs/{run_id}");
    let objects = store.list(&run)?.into_iter();
    let steps = objects.filter_map(|o| {
        let (step, file) = o.key.strip_prefix(&run)?.strip_prefix('/')?.split_once('/')?;
        (file == LINES || file.contains("tfevents")).then(|| step.to_owned())
    });
    Ok(steps.map(|step| (step.clone(), store.uri_of(&format!("{run}/{step}")))).collect())
}

/// What a run that is resumed had written: [`Series::text`] of then, of which the lines up to `step` count.
#[derive(Debug, Clone, Copy)]
pub struct Earlier<'a> {
    /// The lines, also from a file whose last line was cut off.
    pub text: &'a [u8],
    /// The step of the checkpoint; lines of later steps are dropped.
    pub step: u64,
}

/// A series that is being written.
#[derive(Debug)]
pub struct Series {
    path: PathBuf,
    file: File,
    text: Vec<u8>,
    uploader: Option<Uploader>,
}

impl Series {
    /// Starts `metrics.jsonl` in the folder `local`, and in the store if `place` is given: empty, or with the `earlier`
    /// lines of a run that is resumed.
    ///
    /// # Errors
    /// Those of writing the local file. The store's are only logged.
    pub fn open(place: Option<SeriesFolder>, local: &Path, earlier: Option<Earlier<'_>>) -> Result<Series> {
        Series::start(place, local, earlier, upload::PACE)
    }

    fn start(place: Option<SeriesFolder>, local: &Path, earlier: Option<Earlier<'_>>, pace: Pace) -> Result<Series> {
        let kept = earlier.map(kept_lines).unwrap_or_default();
        let path = local.join(LINES);
        let mut file = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        let mut text = Vec::new();
        let started = OffsetDateTime::now_utc();
        let mut events = tfevents::header(seconds(started));
        for line in &kept {
            writeln!(file, "{}", lasting(line)).map_err(|e| Error::io("write", &path, e))?;
            text.extend(format!("{}\n", Value::Object(line.clone())).bytes());
            events.extend(event(line));
        }
        let uploader = place.and_then(|place| {
            tracing::info!(folder = %place.uri(), "the curve is written here while the step runs: {LINES}, and events for TensorBoard");
            let target = |name: &str, bytes: Vec<u8>| Target::new(format!("{}/{name}", place.key), bytes);
            let events_name = format!("events.out.tfevents.{}.medtune", started.unix_timestamp());
            let (lines, events) = (target(LINES, text.clone()), target(&events_name, events));
            Uploader::start(place, lines, events, pace)
        });
        Ok(Series { path, file, text, uploader })
    }

    /// Adds a line for `step`: `values` is what was computed, `clock` what depends on how fast it went; both are objects.
    /// Their fields `step` and `time` are replaced. Numbers that are not finite are `null`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] if one is not an object, and those of writing the local file.
    pub fn write(&mut self, step: u64, values: &Value, clock: &Value) -> Result<()> {
        let (Value::Object(values), Value::Object(clock)) = (values, clock) else {
            return Err(Error::internal("a line of a series is made of two objects"));
        };
        let fields = |map: &Map<String, Value>| -> Vec<(String, Value)> {
            let own = |key: &str| key == "step" || key == TIME;
            map.iter().filter(|(k, _)| !own(k)).map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        let mut line = Map::new();
        line.insert("step".to_owned(), step.into());
        line.extend(fields(values));
        line.insert(TIME.to_owned(), now().into());
        line.extend(fields(clock).into_iter().filter(|(key, _)| !values.contains_key(key)));
        writeln!(self.file, "{}", lasting(&line)).map_err(|e| Error::io("write", &self.path, e))?;
        let event = event(&line);
        let line = format!("{}\n", Value::Object(line)).into_bytes();
        self.text.extend(&line);
        if let Some(uploader) = &self.uploader {
            uploader.add(line, event);
        }
        Ok(())
    }

    /// Puts a small file beside the series in the store, soon: it does not wait for the next write. It replaces an earlier
    /// one of the same name.
    pub fn note(&self, name: &str, bytes: Vec<u8>) {
        if let Some(uploader) = &self.uploader {
            uploader.note(name, bytes);
        }
    }

    /// All lines so far as they are in the store, for a checkpoint: [`Earlier::text`].
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }
}

/// The lines that count, parsed.
fn kept_lines(earlier: Earlier<'_>) -> Vec<Map<String, Value>> {
    let mut kept = Vec::new();
    for line in earlier.text.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        match serde_json::from_slice::<Map<String, Value>>(line) {
            Ok(fields) if fields.get("step").and_then(Value::as_u64).is_some_and(|s| s <= earlier.step) => {
                kept.push(fields);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a damaged line of the earlier series is dropped"),
        }
    }
    kept
}

/// The part of a line that does not depend on the clock.
fn lasting(line: &Map<String, Value>) -> Value {
    Value::Object(line.iter().take_while(|(key, _)| *key != TIME).map(|(k, v)| (k.clone(), v.clone())).collect())
}

/// A line as a record for TensorBoard: its numbers by name, at its time. Empty for a line without numbers.
fn event(line: &Map<String, Value>) -> Vec<u8> {
    let step = line.get("step").and_then(Value::as_u64).unwrap_or(0);
    let time = line.get(TIME).and_then(Value::as_str).and_then(|t| OffsetDateTime::parse(t, &Rfc3339).ok());
    let mut values = Vec::new();
    let mut group = "train";
    for (key, value) in line.iter().filter(|(key, _)| *key != "step") {
        match value {
            _ if key == TIME => group = "speed",
            Value::Number(_) => values.extend(value.as_f64().map(|v| (format!("{group}/{key}"), v))),
            Value::Object(fields) => {
                values.extend(fields.iter().filter_map(|(k, v)| Some((format!("{key}/{k}"), v.as_f64()?))));
            }
            _ => {}
        }
    }
    if values.is_empty() {
        return Vec::new();
    }
    tfevents::scalars(time.map_or(0.0, seconds), step, &values)
}

fn seconds(time: OffsetDateTime) -> f64 {
    time.unix_timestamp_nanos() as f64 / 1e9
}

#[cfg(test)]
mod tests;
