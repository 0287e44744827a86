//! The last resort: ends this process when another one is gone, and what this one waits for does not notice.
//!
//! Collectives on a CPU end by themselves when a connection is lost. On a GPU, what was begun may wait for ever inside the driver,
//! where no error can reach it.

use super::post::Post;
use super::ticker::Ticker;
use super::world::{Watched, beat, parse_error, silent};
use crate::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long this process has to end by itself.
const GRACE: Duration = Duration::from_secs(30);

/// Watches the other processes.
pub(super) fn start(post: Arc<Post>, (rank, size): (usize, usize), timeout: Duration) -> Ticker {
    let mut others: Vec<Other> = (0..size).filter(|&r| r != rank).map(Other::new).collect();
    Ticker::start(beat::period(timeout), move || {
        if let Some(error) = others.iter_mut().find_map(|other| other.look(&post, timeout)) {
            give_up(&error);
        }
        true
    })
}

/// What is known of another process.
struct Other {
    rank: usize,
    watched: Watched,
    /// Since when it is known that it ended badly, or that nothing can be known.
    bad: Option<Instant>,
}

impl Other {
    fn new(rank: usize) -> Other {
        Other { rank, watched: Watched::default(), bad: None }
    }

    /// Why this process can no longer go on with that one, long after it should have noticed by itself.
    fn look(&mut self, post: &Post, timeout: Duration) -> Option<Error> {
        let rank = self.rank;
        let words = match post.get(&format!("failed/{rank}")) {
            Ok(words) => words,
            Err(text) => {
                let error = Error::peer(format!("rank 0 is gone or cut off: {text}"));
                return self.overdue().then_some(error);
            }
        };
        if let Some(words) = words {
            return self.overdue().then(|| parse_error(rank, &words));
        }
        self.bad = None;
        if post.get(&format!("bye/{rank}")).is_ok_and(|said| said.is_some()) {
            return None;
        }
        let beat = post.get(&beat::key(rank)).ok()?;
        (self.watched.silent_for(beat) > timeout + GRACE).then(|| silent(rank, timeout))
    }

    fn overdue(&mut self) -> bool {
        self.bad.get_or_insert_with(Instant::now).elapsed() > GRACE
    }
}

fn give_up(error: &Error) -> ! {
    tracing::error!(kind = error.kind().name(), "{error}; this process does not come to an end by itself");
    // SAFETY: ends the process at once: destructors would wait for what hangs, and nothing half-written is ever published.
    unsafe { nix::libc::_exit(error.kind().exit_code().into()) }
}
