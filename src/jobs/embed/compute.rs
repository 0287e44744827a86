//! The shards of one process: rows are read, decoded and encoded at the same time, each by threads of its own, and finished shards go
//! to the store meanwhile.

use super::earlier::Earlier;
use super::load::{AHEAD, Chunk, Item, Loaded, Loader, Vector, read_rows};
use super::shards::{Done, Work};
use super::stopped;
use crate::data::embeddings::{BadRow, Part, Space};
use crate::data::rows::ImageRows;
use crate::error::{Error, Result};
use crate::infer::{Encoder, Encoding};
use crate::telemetry::Progress;
use crate::telemetry::stop::StopSignal;
use serde_json::json;
use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// How fast a process was.
#[derive(Debug, Default)]
pub(super) struct Speed {
    images: u64,
    bytes: u64,
    /// How long the thread of the model waited for pixels; a GPU may have computed meanwhile.
    waited: Duration,
    /// How long it computed or, with a GPU, gave it work and waited for it.
    computed: Duration,
    elapsed: Duration,
}

impl Speed {
    fn share(&self, of: Duration) -> f64 {
        of.as_secs_f64() / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn a_second(&self, count: u64) -> f64 {
        count as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub(super) fn to_json(&self) -> serde_json::Value {
        json!({
            "images_per_s": self.a_second(self.images),
            "bytes_per_s": self.a_second(self.bytes),
            "data_wait_share": self.share(self.waited),
            "compute_share": self.share(self.computed),
        })
    }

    fn line(&self, bad: usize) -> String {
        let bad = if bad == 0 { String::new() } else { format!(", {bad} bad") };
        format!(
            "{:.1} MB/s, decode-wait {:.0} %, compute {:.0} %{bad}",
            self.a_second(self.bytes) / 1e6,
            100.0 * self.share(self.waited),
            100.0 * self.share(self.computed)
        )
    }
}

/// What the shards of one process are computed with.
pub(super) struct Computation<'a> {
    pub(super) images: &'a ImageRows,
    pub(super) encoder: &'a Encoder,
    pub(super) space: &'a Space,
    pub(super) batch: usize,
    pub(super) earlier: Option<&'a Earlier>,
    pub(super) signal: &'a StopSignal,
}

impl Computation<'_> {
    /// Computes `shards` in order; `finished` is told of each.
    pub(super) fn run(
        &self,
        work: &Work,
        shards: &[usize],
        finished: impl FnMut(usize, Done) -> Result<()>,
    ) -> Result<Speed> {
        let ranges: Vec<(usize, Range<usize>)> = shards.iter().map(|&s| (s, work.rows_of(s))).collect();
        let (images, batch, contract) = (self.images, self.batch, self.encoder.pixels().clone());
        let places = self.earlier.map(|earlier| &earlier.places);
        std::thread::scope(|scope| {
            let (read, lines) = sync_channel::<Chunk>(AHEAD);
            let (decoded, loaded) = sync_channel::<Result<Loaded>>(AHEAD);
            let own = ranges.clone();
            // whoever finds the other end gone has nothing left to do: the error is at that end
            scope.spawn(move || own.iter().try_for_each(|(_, rows)| read_rows(images, rows, &read)));
            let own = ranges.clone();
            scope.spawn(move || Loader { contract: &contract, places, batch, lines, to: decoded }.run(&own));
            self.encode(work, &ranges, (loaded, finished))
        })
    }

    fn encode(
        &self,
        work: &Work,
        ranges: &[(usize, Range<usize>)],
        (loaded, mut finished): (Receiver<Result<Loaded>>, impl FnMut(usize, Done) -> Result<()>),
    ) -> Result<Speed> {
        let total: usize = ranges.iter().map(|(_, rows)| rows.len()).sum();
        let bar = Progress::new("embed", total as u64, "images");
        let (mut speed, started) = (Speed::default(), Instant::now());
        let mut bad_rows = 0;
        let mut features = Vec::new();
        // a GPU computes it while this thread prepares the next one
        let mut begun: Option<Encoding> = None;
        std::thread::scope(|scope| {
            let (ready, to_send) = sync_channel::<(usize, u64, Vec<BadRow>)>(AHEAD);
            let (sent, in_store) = std::sync::mpsc::channel::<(usize, Done)>();
            let sender = scope.spawn(move || {
                to_send.iter().try_for_each(|(shard, reused, bad)| {
                    let done = work.publish(shard, (reused, bad))?;
                    sent.send((shard, done)).ok();
                    Ok(())
                })
            });
            let mut left = ranges.len();
            let outcome = (|| -> Result<()> {
                while left > 0 {
                    stopped(self.signal)?;
                    if sender.is_finished() {
                        // it has failed, and says why below
                        return Ok(());
                    }
                    in_store.try_iter().try_for_each(|(shard, done)| finished(shard, done))?;
                    let asked = Instant::now();
                    let next =
                        loaded.recv().map_err(|_| Error::internal("the thread that decodes images has ended"))?;
                    speed.waited += asked.elapsed();
                    match next? {
                        Loaded::Batch(pixels) => {
                            let began = Instant::now();
                            let count = pixels.len() / self.encoder.pixels().tensor_len();
                            let next = self.encoder.begin(&pixels)?;
                            self.finish(begun.replace(next), &mut features)?;
                            speed.computed += began.elapsed();
                            speed.images += count as u64;
                            speed.elapsed = started.elapsed();
                            bar.advance(count as u64, &speed.line(bad_rows));
                        }
                        Loaded::Shard { shard, items, bytes } => {
                            let began = Instant::now();
                            self.finish(begun.take(), &mut features)?;
                            speed.computed += began.elapsed();
                            let others = items.iter().filter(|item| !item.is_for_the_model()).count();
                            let (part, reused, bad) = self.part(items, &std::mem::take(&mut features))?;
                            part.write(&work.path(shard), self.space)?;
                            bad_rows += bad.len();
                            speed.images += others as u64;
                            speed.bytes += bytes;
                            speed.elapsed = started.elapsed();
                            bar.advance(others as u64, &speed.line(bad_rows));
                            if ready.send((shard, reused, bad)).is_err() {
                                // it has failed, and says why below
                                return Ok(());
                            }
                            left -= 1;
                        }
                    }
                }
                Ok(())
            })();
            drop(ready);
            let sent =
                sender.join().unwrap_or_else(|_| Err(Error::internal("the thread that writes shards has ended")));
            outcome?;
            sent?;
            in_store.try_iter().try_for_each(|(shard, done)| finished(shard, done))
        })?;
        speed.elapsed = started.elapsed();
        Ok(speed)
    }

    fn finish(&self, begun: Option<Encoding>, features: &mut Vec<f32>) -> Result<()> {
        if let Some(begun) = begun {
            features.extend(self.encoder.finish(begun)?);
        }
        Ok(())
    }

    /// The rows of a shard with their vectors, of which `features` are those that the model has made; how many were taken over; the
    /// bad ones.
    fn part(&self, items: Vec<Item>, features: &[f32]) -> Result<(Part, u64, Vec<BadRow>)> {
        let mut made = features.chunks_exact(self.space.dim);
        let taken: Vec<&str> = items.iter().filter_map(Item::known_hash).collect();
        let taken = self.earlier.map_or_else(|| Ok(Vec::new()), |earlier| earlier.vectors(&taken))?;
        let mut taken = taken.into_iter();
        let (mut part, mut reused, mut bad) = (Part::default(), 0, Vec::new());
        for item in items {
            let Vector { row, key, hash, known } = match item {
                Item::Bad(row) => {
                    bad.push(row);
                    continue;
                }
                Item::Vector(vector) => vector,
            };
            let lost = || Error::internal("an image has no vector");
            if known {
                part.push(row, (&key, &hash), &taken.next().ok_or_else(lost)?)?;
                reused += 1;
            } else {
                part.push(row, (&key, &hash), made.next().ok_or_else(lost)?)?;
            }
        }
        Ok((part, reused, bad))
    }
}
