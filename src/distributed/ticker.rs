//! Something that is done again and again while others compute.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

/// A thread of its own, until it is dropped.
#[derive(Debug)]
pub(super) struct Ticker {
    ended: Arc<AtomicBool>,
    thread: Thread,
}

impl Ticker {
    /// Calls `tick` at once and then every `period`, as long as it says that it wants to go on.
    pub(super) fn start(period: Duration, mut tick: impl FnMut() -> bool + Send + 'static) -> Ticker {
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::SeqCst) && tick() {
                std::thread::park_timeout(period);
            }
        });
        Ticker { ended, thread: thread.thread().clone() }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}
