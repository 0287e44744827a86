//! What processes tell one another, through the store that rank 0 keeps.
//!
//! Guarantee: no call takes longer than its time limit, also when the network is cut: c10d's own wait for an answer would have
//! no end then.

use medtune_native::ProcessGroup;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

type Answer = Result<Option<Vec<u8>>, String>;

/// A key, what to leave there or `None` to look, and where the answer goes.
type Request = (String, Option<Vec<u8>>, Sender<Answer>);

/// The way to the store.
#[derive(Debug)]
pub(super) struct Post {
    requests: Mutex<Sender<Request>>,
    /// Whether a call was not answered: none after it will be.
    lost: AtomicBool,
    /// Milliseconds.
    patience: AtomicU64,
}

impl Post {
    /// Calls that have no answer after `patience` fail.
    pub(super) fn open(processes: Arc<ProcessGroup>, patience: Duration) -> Post {
        let (sender, receiver) = channel::<Request>();
        // it may wait for ever for an answer; it ends with the process then
        std::thread::spawn(move || {
            for (key, bytes, answer) in receiver {
                let found = match bytes {
                    Some(bytes) => processes.put(&key, &bytes).map(|()| None),
                    None => processes.get(&key),
                };
                // whoever asked may have stopped waiting
                let _ = answer.send(found);
            }
        });
        Post {
            requests: Mutex::new(sender),
            lost: AtomicBool::new(false),
            patience: AtomicU64::new(milliseconds(patience)),
        }
    }

    /// No way at all, in the place of one that is given up.
    pub(super) fn closed() -> Post {
        Post { requests: Mutex::new(channel().0), lost: AtomicBool::new(true), patience: AtomicU64::new(0) }
    }

    /// From now on no call waits for longer than this.
    pub(super) fn hurry(&self, patience: Duration) {
        self.patience.fetch_min(milliseconds(patience), Ordering::SeqCst);
    }

    /// Leaves something under a key.
    pub(super) fn put(&self, key: &str, bytes: &[u8]) -> Result<(), String> {
        self.ask(key, Some(bytes.to_vec())).map(drop)
    }

    /// What was left under a key, if there is anything.
    pub(super) fn get(&self, key: &str) -> Answer {
        self.ask(key, None)
    }

    fn ask(&self, key: &str, bytes: Option<Vec<u8>>) -> Answer {
        let patience = Duration::from_millis(self.patience.load(Ordering::SeqCst));
        let unanswered = || format!("no answer from rank 0 for {} s", patience.as_secs());
        if self.lost.load(Ordering::SeqCst) {
            return Err(unanswered());
        }
        let (sender, receiver) = channel();
        let sent = self.requests.lock().unwrap_or_else(PoisonError::into_inner).send((key.to_owned(), bytes, sender));
        sent.map_err(|_| unanswered())?;
        receiver.recv_timeout(patience).unwrap_or_else(|_| {
            self.lost.store(true, Ordering::SeqCst);
            Err(unanswered())
        })
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
