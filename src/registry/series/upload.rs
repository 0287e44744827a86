//! The thread that keeps a series in the store up to date.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::storage::Store;

use super::SeriesFolder;

/// The least time between two writes of the same object: after the first one, and the longest. It doubles in between, since
/// the start is looked at most.
pub(super) type Pace = (Duration, Duration);

/// What [`super::Series::open`] takes.
pub(super) const PACE: Pace = (Duration::from_secs(1), Duration::from_secs(10));

/// How long the end of a series waits for a store that does not answer.
const END: Duration = Duration::from_secs(30);

/// An object that only grows.
#[derive(Debug)]
pub(super) struct Target {
    key: String,
    bytes: Vec<u8>,
    /// How many of them are in the store.
    stored: usize,
}

impl Target {
    /// An object that shall hold `bytes`, and what is added to them.
    pub(super) fn new(key: String, bytes: Vec<u8>) -> Self {
        Target { key, bytes, stored: 0 }
    }

    fn is_stored(&self) -> bool {
        self.stored == self.bytes.len()
    }

    fn put(&mut self, store: &Store) -> Result<()> {
        if self.is_stored() {
            return Ok(());
        }
        // after a failure nobody knows how much is there
        let known = std::mem::take(&mut self.stored);
        store.grow(&self.key, &self.bytes, known)?;
        self.stored = self.bytes.len();
        Ok(())
    }
}

enum Message {
    Line {
        line: Vec<u8>,
        event: Vec<u8>,
    },
    Note {
        name: String,
        bytes: Vec<u8>,
    },
    /// Everything now; the sender hears when it is done.
    End(Sender<()>),
}

/// The end of the thread that the work talks to; none of its calls waits, but for the drop.
#[derive(Debug)]
pub(super) struct Uploader {
    messages: Sender<Message>,
    folder: String,
}

impl Uploader {
    /// Starts the thread; `None`, with a warning, if the system has none left.
    pub(super) fn start(place: SeriesFolder, lines: Target, events: Target, pace: Pace) -> Option<Uploader> {
        let (messages, receiver) = channel();
        let folder = place.uri();
        let mut work = Work {
            place,
            lines,
            events,
            notes: BTreeMap::new(),
            pause: pace.0,
            longest: pace.1,
            attempted: None,
            state: State::Good,
        };
        let thread = std::thread::Builder::new().name("medtune-series".to_owned());
        match thread.spawn(move || work.run(&receiver)) {
            Ok(_) => Some(Uploader { messages, folder }),
            Err(error) => {
                tracing::warn!(folder, %error, "there is no thread for the series, so the store does not get it");
                None
            }
        }
    }

    pub(super) fn add(&self, line: Vec<u8>, event: Vec<u8>) {
        self.send(Message::Line { line, event });
    }

    pub(super) fn note(&self, name: &str, bytes: Vec<u8>) {
        self.send(Message::Note { name: name.to_owned(), bytes });
    }

    fn send(&self, message: Message) {
        // the thread ends after this, unless it panicked; then the series is over and the work is not
        drop(self.messages.send(message));
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        let (done, wait) = channel();
        self.send(Message::End(done));
        if let Err(RecvTimeoutError::Timeout) = wait.recv_timeout(END) {
            tracing::error!(folder = self.folder, "the store does not answer: the end of the series is missing there");
        }
    }
}

/// How the last attempt went.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Good,
    /// It failed, and that was said.
    Failing,
}

struct Work {
    place: SeriesFolder,
    lines: Target,
    events: Target,
    /// Other small files by name, until they are in the store.
    notes: BTreeMap<String, Vec<u8>>,
    /// How long to wait for the next write.
    pause: Duration,
    longest: Duration,
    /// When writing was last tried.
    attempted: Option<Instant>,
    state: State,
}

impl Work {
    fn run(&mut self, messages: &Receiver<Message>) {
        loop {
            let message = match self.due() {
                Some(due) => messages.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(Message::Line { line, event }) => {
                    self.lines.bytes.extend(line);
                    self.events.bytes.extend(event);
                }
                Ok(Message::Note { name, bytes }) => {
                    self.notes.insert(name, bytes);
                    self.attempt(Work::put_notes);
                }
                Ok(Message::End(done)) => {
                    self.attempt(Work::put_all);
                    if self.state == State::Failing {
                        tracing::error!(folder = self.place.uri(), "the end of the series is missing in the store");
                    }
                    // an error: whoever waited has given up
                    done.send(()).ok();
                }
                Err(RecvTimeoutError::Timeout) => self.attempt(Work::put_all),
                // the drop has asked for everything before
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// When to write next; `None` while there is nothing to write.
    fn due(&self) -> Option<Instant> {
        let nothing = self.lines.is_stored() && self.events.is_stored() && self.notes.is_empty();
        if nothing {
            return None;
        }
        Some(self.attempted.map_or_else(Instant::now, |last| last + self.pause))
    }

    fn put_all(&mut self) -> Result<()> {
        // the events first: whoever sees a line finds it in the events too
        let store = &self.place.store;
        let put = self.events.put(store).and_then(|()| self.lines.put(store)).and_then(|()| self.put_notes());
        if self.attempted.replace(Instant::now()).is_some() {
            self.pause = (2 * self.pause).min(self.longest);
        }
        put
    }

    fn put_notes(&mut self) -> Result<()> {
        while let Some(note) = self.notes.first_entry() {
            self.place.store.put(&format!("{}/{}", self.place.key, note.key()), note.get().clone())?;
            note.remove();
        }
        Ok(())
    }

    fn attempt(&mut self, put: impl FnOnce(&mut Work) -> Result<()>) {
        match put(self) {
            Ok(()) if self.state == State::Failing => {
                self.state = State::Good;
                tracing::info!(folder = self.place.uri(), "the series is in the store again");
            }
            Ok(()) => {}
            Err(error) => {
                if self.state == State::Good {
                    tracing::warn!(folder = self.place.uri(), %error, "the series is not in the store for now; the work goes on");
                }
                self.state = State::Failing;
                tracing::debug!(%error, "the series was not written");
            }
        }
    }
}
