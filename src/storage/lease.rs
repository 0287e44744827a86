//! A lock in a store that several machines use: a lease with a heartbeat, made of create-if-absent and plain writes alone.
//!
//! Each holder has a number of its own, the epoch, which it takes by creating `leases/ID/EPOCH.json`. It shows that it lives by
//! writing that object anew, five times in the lease's time. Others take the next epoch when the highest one is released, or
//! has not changed for the lease's time on their own clock: no two clocks are compared. A holder that could not write for the
//! lease's time, or sees a higher epoch, has lost.
//!
//! A lease saves work and nothing else: a holder that was stopped for long may go on for a moment beside its successor. What
//! is committed is decided by create-if-absent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

use super::{Created, Store, lock};

const FORMAT_VERSION: u32 = 1;

/// What an epoch's object says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Beat {
    format_version: u32,
    /// Who holds it: unique to the holder.
    holder: String,
    /// What it is for, for people.
    name: String,
    /// Rises with each sign of life.
    beat: u64,
    /// Whether the holder has given it back.
    released: bool,
}

/// A lease that is held until it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    state: Arc<State>,
    stop: Option<Sender<()>>,
    heart: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    ttl: Duration,
    lost: AtomicBool,
    renewed: Mutex<Instant>,
}

impl State {
    fn alive(&self) -> bool {
        let renewed = *self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        !self.lost.load(Ordering::SeqCst) && renewed.elapsed() < self.ttl
    }
}

impl Lease {
    /// Waits for the lease and takes it.
    pub(super) fn take(store: &Store, id: &str, name: &str, ttl: Duration) -> Result<Lease> {
        let holder = format!("{}/{}", std::process::id(), uuid::Uuid::new_v4().simple());
        let mut told = false;
        // the newest sign of life of somebody else, and when this process first saw it
        let mut seen: Option<(u64, Vec<u8>, Instant)> = None;
        loop {
            let newest = newest(store, id)?;
            let free = match &newest {
                None => true,
                Some((_, body)) if is_released(body) => true,
                Some((epoch, body)) => match &seen {
                    Some((e, b, since)) if e == epoch && b == body => since.elapsed() >= ttl,
                    _ => {
                        seen = Some((*epoch, body.clone(), Instant::now()));
                        false
                    }
                },
            };
            if free {
                let epoch = newest.map_or(1, |(epoch, _)| epoch + 1);
                let beat = Beat {
                    format_version: FORMAT_VERSION,
                    holder: holder.clone(),
                    name: name.to_owned(),
                    beat: 0,
                    released: false,
                };
                let taken = Instant::now();
                if store.create_exact(&key(id, epoch), body(&beat)?)? == Created::Won {
                    return Ok(Lease::start(store, id, epoch, beat, (ttl, taken)));
                }
                continue;
            }
            lock::waiting(name, &mut told)?;
            std::thread::sleep((ttl / 20).clamp(Duration::from_millis(50), Duration::from_secs(2)));
        }
    }

    fn start(store: &Store, id: &str, epoch: u64, beat: Beat, (ttl, taken): (Duration, Instant)) -> Lease {
        let state = Arc::new(State { ttl, lost: AtomicBool::new(false), renewed: Mutex::new(taken) });
        let (stop, stopped) = channel::<()>();
        let (store, id, shared) = (store.clone(), id.to_owned(), state.clone());
        let beating = move || {
            let mut beat = beat;
            clear(&store, &id, epoch);
            while stopped.recv_timeout(shared.ttl / 5) == Err(RecvTimeoutError::Timeout) {
                beat.beat += 1;
                let started = Instant::now();
                match renew(&store, &id, epoch, &beat) {
                    Ok(true) => *shared.renewed.lock().unwrap_or_else(PoisonError::into_inner) = started,
                    Ok(false) => {
                        tracing::warn!(
                            lock = beat.name,
                            "another process has taken over: this one was silent for too long"
                        );
                        shared.lost.store(true, Ordering::SeqCst);
                        return;
                    }
                    Err(error) => tracing::debug!(lock = beat.name, %error, "no sign of life could be given"),
                }
            }
            beat.released = true;
            if let Err(error) = body(&beat).and_then(|body| store.put(&key(&id, epoch), body)) {
                tracing::debug!(lock = beat.name, %error, "a lock could not be given back; it ends by itself");
            }
        };
        let heart = std::thread::Builder::new().name("medtune-lease".to_owned()).spawn(beating);
        if let Err(error) = &heart {
            tracing::warn!(%error, "no thread for signs of life: the lock ends after its time");
        }
        Lease { state, stop: Some(stop), heart: heart.ok() }
    }

    /// # Errors
    /// [`crate::ErrorKind::Storage`] if it was lost.
    pub(super) fn check(&self) -> Result<()> {
        if self.state.alive() {
            return Ok(());
        }
        Err(Error::storage(
            "the lock on this work was lost: the store could not be reached for too long; run the job again",
        ))
    }

    /// Whether somebody gives signs of life; it takes up to the lease's time to tell that nobody does.
    pub(super) fn is_held(store: &Store, id: &str, ttl: Duration) -> Result<bool> {
        let started = Instant::now();
        let mut before: Option<(u64, Vec<u8>)> = None;
        loop {
            let Some((epoch, body)) = newest(store, id)? else { return Ok(false) };
            if is_released(&body) {
                return Ok(false);
            }
            let now = (epoch, body);
            match &before {
                Some(before) if *before != now => return Ok(true),
                _ => before = Some(now),
            }
            if started.elapsed() >= ttl {
                return Ok(false);
            }
            std::thread::sleep((ttl / 20).clamp(Duration::from_millis(20), Duration::from_secs(2)));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(heart) = self.heart.take() {
            // it only ends early by a panic, which the log has
            drop(heart.join());
        }
    }
}

fn key(id: &str, epoch: u64) -> String {
    format!("leases/{id}/{epoch:010}.json")
}

fn body(beat: &Beat) -> Result<Vec<u8>> {
    serde_json::to_vec(beat).map_err(|e| Error::internal("a lease cannot be written as JSON").with_source(e))
}

/// Whether the holder has given it back; what cannot be read is held until its time is over.
fn is_released(body: &[u8]) -> bool {
    serde_json::from_slice::<Beat>(body).is_ok_and(|beat| beat.released)
}

/// The highest epoch and what it says.
fn newest(store: &Store, id: &str) -> Result<Option<(u64, Vec<u8>)>> {
    loop {
        let Some(epoch) = epochs(store, id)?.into_iter().max() else { return Ok(None) };
        // gone: its successor has cleared it away
        if let Some(body) = store.get(&key(id, epoch))? {
            return Ok(Some((epoch, body)));
        }
    }
}

fn epochs(store: &Store, id: &str) -> Result<Vec<u64>> {
    let folder = format!("leases/{id}");
    let number = |key: &str| key.strip_prefix(&folder)?.strip_prefix('/')?.strip_suffix(".json")?.parse().ok();
    Ok(store.list(&folder)?.iter().filter_map(|o| number(&o.key)).collect())
}

/// Gives a sign of life, unless there is a successor.
fn renew(store: &Store, id: &str, epoch: u64, beat: &Beat) -> Result<bool> {
    if epochs(store, id)?.into_iter().any(|other| other > epoch) {
        return Ok(false);
    }
    store.put(&key(id, epoch), body(beat)?)?;
    Ok(true)
}

/// Removes earlier epochs: only the highest one counts.
fn clear(store: &Store, id: &str, epoch: u64) {
    let cleared = epochs(store, id).and_then(|all| {
        all.into_iter().filter(|other| *other < epoch).try_for_each(|other| store.delete(&key(id, other)))
    });
    if let Err(error) = cleared {
        tracing::debug!(%error, "earlier holders of a lock could not be cleared away");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_millis(400);

    #[test]
    fn a_holder_that_gives_no_sign_is_succeeded_and_knows_it() {
        let store = Store::in_memory();
        let first = Lease::take(&store, "x", "x", TTL).unwrap();
        std::thread::sleep(TTL * 2);
        first.check().unwrap();
        assert!(Lease::is_held(&store, "x", TTL).unwrap());
        // killed: its heart stops without a word
        let dead =
            Beat { format_version: 1, holder: "dead".to_owned(), name: "y".to_owned(), beat: 3, released: false };
        store.put(&key("y", 7), body(&dead).unwrap()).unwrap();
        let started = Instant::now();
        let second = Lease::take(&store, "y", "y", TTL).unwrap();
        assert!(started.elapsed() >= TTL);
        second.check().unwrap();
        // somebody took over
        store.put(&key("y", 9), body(&dead).unwrap()).unwrap();
        std::thread::sleep(TTL / 2);
        assert!(second.check().is_err());
        drop((first, second));
        assert!(!Lease::is_held(&store, "x", TTL).unwrap());
        assert_eq!(store.list("leases/x").unwrap().len(), 1);
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once() {
        let store = Store::in_memory();
        let long = Duration::from_secs(3600);
        let started = Instant::now();
        for _ in 0..3 {
            drop(Lease::take(&store, "x", "x", long).unwrap());
        }
        assert!(started.elapsed() < Duration::from_secs(60));
        assert!(!Lease::is_held(&store, "x", long).unwrap());
    }
}
