//! Being asked to stop: SIGTERM and SIGINT, for work that wants to save before it ends.
//!
//! Guarantees:
//! - While a [`StopSignal`] is alive, the first signal is noted and nothing else happens; a second one, of either kind,
//!   ends the process at once, as it would without us.
//! - While none is alive, a signal ends the process at once, also after earlier ones were dropped.
//! - What has been asked once stays asked: later [`StopSignal`]s and [`requested`] say so from their start.
//! - A signal that the process was started with as ignored (a shell's `&`, `trap '' INT`) stays ignored.
//!
//! The handlers only store numbers; everything else happens where the number is read.
//!
//! They must not run on a thread that computes: a handler's frame goes below the stack pointer, and matrix kernels that are
//! compiled at run time keep other things there (oneDNN's f32 ones do: their buffers were overwritten). So a program that
//! computes calls [`keep_from_other_threads`] first.

use crate::error::{Error, ErrorKind, Result};
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The error of work that ends since it was asked to: `after` says where it stopped, `saved` whether there is a checkpoint for a later run, or
/// why none could be written.
pub fn stopped(after: &str, saved: Result<bool>) -> Error {
    let how = match saved {
        Ok(true) => ", with a checkpoint: run the same job again to go on there",
        Ok(false) => {
            ": the next run starts anew, since this one was not to be resumed (--rerun, or RESUME: false of a training)"
        }
        Err(error) => return error.context(format!("{after}, and no checkpoint could be saved")),
    };
    Error::new(ErrorKind::Preempted, format!("{after}{how}"))
}

const SIGNALS: [(i32, &str); 2] = [(SIGTERM, "SIGTERM"), (SIGINT, "SIGINT")];

/// What the handlers read and write; they are installed once and stay.
#[derive(Debug, Default)]
struct Handlers {
    /// The next signal ends the process.
    fatal: Arc<AtomicBool>,
    /// The signal that came while somebody listened; 0 for none.
    caught: Arc<AtomicUsize>,
    /// How many listen.
    listeners: Mutex<usize>,
}

static HANDLERS: OnceLock<Handlers> = OnceLock::new();
static INSTALLING: Mutex<()> = Mutex::new(());

/// Listens for SIGTERM and SIGINT while it is alive.
#[derive(Debug)]
pub struct StopSignal(());

impl StopSignal {
    /// Listens from now on.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] if the system refuses the handlers.
    pub fn listen() -> Result<StopSignal> {
        let handlers = installed()?;
        let mut listeners = handlers.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        *listeners += 1;
        handlers.fatal.store(false, Ordering::SeqCst);
        // once asked, the next signal stays the last; asked after the store above, since a signal may come right there
        if handlers.caught.load(Ordering::SeqCst) != 0 {
            handlers.fatal.store(true, Ordering::SeqCst);
        }
        Ok(StopSignal(()))
    }

    /// The name of the signal that asked to stop, `SIGTERM` or `SIGINT`; `None` while there was none.
    #[must_use]
    pub fn requested(&self) -> Option<&'static str> {
        requested()
    }
}

impl Drop for StopSignal {
    fn drop(&mut self) {
        let Some(handlers) = HANDLERS.get() else { return };
        let mut listeners = handlers.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        *listeners -= 1;
        if *listeners == 0 {
            handlers.fatal.store(true, Ordering::SeqCst);
        }
    }
}

/// Has SIGTERM and SIGINT delivered to a thread that does nothing else: they are blocked in the calling thread, and in all that
/// it starts from now on. To be called before any other thread is started.
///
/// # Errors
/// [`crate::ErrorKind::Internal`] if the thread cannot be started or the signals cannot be blocked.
pub fn keep_from_other_threads() -> Result<()> {
    let failed = "cannot give signals a thread of their own";
    // started first, since it inherits what is not blocked yet
    let set: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    let idle = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        // whoever started this program may have blocked them, and a mask is inherited
        let _ = set.thread_unblock();
        loop {
            std::thread::park();
        }
    });
    idle.map_err(|e| Error::internal(failed).with_source(e))?;
    set.thread_block().map_err(|e| Error::internal(failed).with_source(e))
}

/// The name of the signal that asked this process to stop while a [`StopSignal`] was alive; `None` while there was none.
#[must_use]
pub fn requested() -> Option<&'static str> {
    let caught = HANDLERS.get()?.caught.load(Ordering::SeqCst);
    SIGNALS.iter().find(|(number, _)| usize::try_from(*number) == Ok(caught)).map(|(_, name)| *name)
}

fn installed() -> Result<&'static Handlers> {
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handlers) = HANDLERS.get() {
        return Ok(handlers);
    }
    let handlers = Handlers::default();
    handlers.fatal.store(true, Ordering::SeqCst);
    let ignored = ignored();
    for (number, name) in SIGNALS {
        if ignored & (1 << (number - 1)) != 0 {
            continue;
        }
        // actions run in the order of their registration: the end is decided by what was before this signal
        let value = usize::try_from(number).unwrap_or_default();
        flag::register_conditional_default(number, Arc::clone(&handlers.fatal))
            .and_then(|_| flag::register_usize(number, Arc::clone(&handlers.caught), value))
            .and_then(|_| flag::register(number, Arc::clone(&handlers.fatal)))
            .map_err(|e| Error::internal(format!("cannot listen for {name}")).with_source(e))?;
    }
    Ok(HANDLERS.get_or_init(|| handlers))
}

/// The signals that this process ignores, one bit each; none where there is no /proc.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{SigHandler, kill, signal};
    use nix::unistd::Pid;
    use signal_hook::low_level::raise;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Output};

    const MODE: &str = "MEDTUNE_TEST_STOP";

    /// Signals are for a whole process, so each case runs in one of its own: this test again, told what to do.
    #[test]
    fn child() {
        let say = |what: &str| println!("said {what}");
        let mode = std::env::var(MODE);
        if mode.as_deref().is_ok_and(|mode| mode != "ignored") {
            // whoever runs the tests in the background of a shell may ignore SIGINT, and so would this process
            for default in [Signal::SIGINT, Signal::SIGTERM] {
                // SAFETY: no handler of this process is lost, it has none yet
                unsafe { signal(default, SigHandler::SigDfl) }.unwrap();
            }
        }
        match mode.as_deref() {
            Ok("twice") => {
                let stop = StopSignal::listen().unwrap();
                assert_eq!(stop.requested(), None);
                raise(SIGTERM).unwrap();
                say(stop.requested().unwrap());
                raise(SIGINT).unwrap();
                say("too much");
            }
            Ok("dropped") => {
                let (first, second) = (StopSignal::listen().unwrap(), StopSignal::listen().unwrap());
                drop(first);
                raise(SIGINT).unwrap();
                say(second.requested().unwrap());
                drop(second);
                say(StopSignal::listen().unwrap().requested().unwrap());
                raise(SIGTERM).unwrap();
                say("too much");
            }
            Ok("unheard") => {
                drop(StopSignal::listen().unwrap());
                say("nobody listens");
                raise(SIGTERM).unwrap();
                say("too much");
            }
            Ok("ignored") => {
                let stop = StopSignal::listen().unwrap();
                raise(SIGINT).unwrap();
                raise(SIGINT).unwrap();
                say(stop.requested().unwrap_or("nothing"));
                raise(SIGTERM).unwrap();
                say(stop.requested().unwrap_or("nothing"));
            }
            Ok("kept") => {
                keep_from_other_threads().unwrap();
                // to the process, as schedulers send it
                let send = || kill(Pid::this(), Signal::SIGTERM).unwrap();
                let stop = StopSignal::listen().unwrap();
                send();
                while stop.requested().is_none() {
                    std::thread::yield_now();
                }
                let blocked = SigSet::thread_get_mask().unwrap();
                say(&format!("{} {}", stop.requested().unwrap(), blocked.contains(Signal::SIGTERM)));
                drop(stop);
                send();
                std::thread::sleep(std::time::Duration::from_secs(10));
                say("too much");
            }
            _ => {}
        }
    }

    fn run(mode: &str, before: &str) -> (Output, Vec<String>) {
        let own = std::env::current_exe().unwrap();
        let output = Command::new("sh")
            .args(["-c", &format!("{before} exec \"$0\" \"$@\"")])
            .arg(own)
            .args(["telemetry::stop::tests::child", "--exact", "--nocapture"])
            .env(MODE, mode)
            .output()
            .unwrap();
        // the harness's own words may stand on the same line
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let said = text.lines().filter_map(|l| Some(l.split_once("said ")?.1.to_owned())).collect();
        (output, said)
    }

    #[test]
    fn the_first_signal_is_noted_and_the_second_ends_the_process() {
        let (output, said) = run("twice", "");
        assert_eq!((output.status.signal(), said), (Some(SIGINT), vec!["SIGTERM".to_owned()]));
    }

    #[test]
    fn a_request_outlives_its_listener_and_another_listener() {
        let (output, said) = run("dropped", "");
        assert_eq!((output.status.signal(), said), (Some(SIGTERM), vec!["SIGINT".to_owned(), "SIGINT".to_owned()]));
    }

    #[test]
    fn without_a_listener_a_signal_ends_the_process() {
        let (output, said) = run("unheard", "");
        assert_eq!((output.status.signal(), said), (Some(SIGTERM), vec!["nobody listens".to_owned()]));
    }

    #[test]
    fn a_thread_of_their_own_hears_signals_that_the_others_block() {
        let (output, said) = run("kept", "");
        assert_eq!((output.status.signal(), said), (Some(SIGTERM), vec!["SIGTERM true".to_owned()]));
    }

    #[test]
    fn an_ignored_signal_stays_ignored_and_the_other_is_heard() {
        let (output, said) = run("ignored", "trap '' INT;");
        assert_eq!((output.status.code(), said), (Some(0), vec!["nothing".to_owned(), "SIGTERM".to_owned()]));
    }
}
