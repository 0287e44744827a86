//! Starts a job's processes on this machine, watches them, and ends them together.
//!
//! Guarantees:
//! - None of them outlives the one that was started by the user, in whatever way that one ends.
//! - The exit code is that of rank 0, or in a pod of the first rank there; `peer` when that one was killed, or did its part although
//!   another one failed.

use super::membership::{LISTENER, Membership};
use crate::error::{Error, Result};
use crate::telemetry::stop::StopSignal;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Says to a process that it was started here, and by whom.
pub const PARENT: &str = "MEDTUNE_PARENT_PROCESS";
/// Names the file that a process's standard error goes to.
pub const LOG: &str = "MEDTUNE_RANK_LOG";

const POLL: Duration = Duration::from_millis(50);
/// How long the others have when one was ended by a signal: to notice it, and to find out which it was.
const SILENT_DEATH: Duration = Duration::from_secs(30);

/// How the processes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All did what they were to do.
    Well,
    /// Not well; what is to be said was said, and this is the exit code.
    Said(u8),
}

struct Worker {
    rank: usize,
    child: Child,
    ended: Option<ExitStatus>,
}

/// Runs this program `count` times with its own arguments; the first of them speaks for all, the log of the others goes to files
/// that end with them. These are all ranks, or those of a `pod`: of as many as all pods start. When the first has ended, the rest have
/// `patience` to end by themselves, or half a minute when it ended badly; somewhat more than `patience` when another one has ended badly,
/// and half a minute when that one could not say why, but for the first, which writes the record.
///
/// # Errors
/// [`crate::ErrorKind::Peer`] when the first was killed, or another one failed although the first did not.
pub fn supervise(count: usize, pod: Option<&Membership>, patience: Duration) -> Result<Ended> {
    let stop = StopSignal::listen()?;
    let logs = tempfile::tempdir().map_err(|e| Error::storage("cannot make a folder for logs").with_source(e))?;
    let mut workers = Vec::new();
    let rendezvous = Rendezvous::new(pod)?;
    for local in 0..count {
        match start((local, count), &rendezvous, logs.path()) {
            Ok(child) => workers.push(Worker { rank: rendezvous.rank(local, count), child, ended: None }),
            Err(error) => {
                end(&mut workers, Signal::SIGKILL);
                return Err(error);
            }
        }
    }
    // the one that needs it has it
    drop(rendezvous);
    let (mut first, mut deadline, mut last, mut forwarded) = (None, None, None, None);
    while workers.iter().any(|w| w.ended.is_none()) {
        for (local, worker) in workers.iter_mut().enumerate().filter(|(_, w)| w.ended.is_none()) {
            worker.ended =
                worker.child.try_wait().map_err(|e| Error::internal("cannot watch a process").with_source(e))?;
            let Some(status) = worker.ended else { continue };
            if !status.success() && first.is_none() {
                first = Some(local);
            }
            // the others hear from one that ends with an error, unless it had not met them yet; nobody is needed after rank 0
            let until = match status.signal() {
                Some(_) if forwarded.is_none() => Some(SILENT_DEATH),
                // a hung one is not waited for twice
                _ if local == 0 && !status.success() => Some(patience.min(SILENT_DEATH)),
                _ if local == 0 => Some(patience),
                _ if !status.success() => Some(patience + SILENT_DEATH),
                _ => None,
            };
            let until = until.map(|wait| Instant::now() + wait);
            deadline = deadline.into_iter().chain(until).min();
        }
        if let (Some(signal), None) = (stop.requested(), forwarded) {
            let signal = if signal == "SIGINT" { Signal::SIGINT } else { Signal::SIGTERM };
            forwarded = Some(signal);
            end(&mut workers, signal);
        }
        if deadline.is_some_and(|d| Instant::now() > d) {
            end(&mut workers[1..], Signal::SIGKILL);
            // it finds out by itself, and then has a record to write
            last.get_or_insert(Instant::now() + patience + SILENT_DEATH);
        }
        if last.is_some_and(|d| Instant::now() > d) {
            end(&mut workers, Signal::SIGKILL);
        }
        std::thread::sleep(POLL);
    }
    let Some(first) = first else { return Ok(Ended::Well) };
    let status = workers[0].ended;
    if let (Some(signal), Some(forwarded)) = (status.and_then(|s| s.signal()), forwarded)
        && signal == forwarded as i32
    {
        // as a shell says of a process by itself that this signal ended
        return Ok(Ended::Said(if forwarded == Signal::SIGINT { 130 } else { 143 }));
    }
    match status.and_then(|s| s.code()).map(u8::try_from) {
        Some(Ok(0)) => Err(why(&workers[first], logs.path())),
        Some(Ok(code)) => {
            if first > 0 {
                tracing::warn!("{}", why(&workers[first], logs.path()));
            }
            Ok(Ended::Said(code))
        }
        _ => Err(why(&workers[first], logs.path())),
    }
}

fn why(worker: &Worker, logs: &Path) -> Error {
    let how = match worker.ended.map(|s| (s.code(), s.signal())) {
        Some((Some(code), _)) => format!("ended with exit code {code}"),
        Some((None, Some(signal))) => format!("was ended by signal {signal}"),
        _ => "ended".to_owned(),
    };
    let log = std::fs::read_to_string(log_path(logs, worker.rank)).unwrap_or_default();
    let last = log
        .lines()
        .rev()
        .find(|l| !l.trim().is_empty())
        .map_or_else(String::new, |l| format!("; it said last: {}", l.trim()));
    Error::peer(format!("rank {} {how}{last}", worker.rank))
}

/// Where the processes of one launch meet.
struct Rendezvous<'a> {
    pod: Option<&'a Membership>,
    /// Open until rank 0 has it, so that nobody else takes its port; on one machine only.
    listener: Option<TcpListener>,
}

impl Rendezvous<'_> {
    fn new(pod: Option<&Membership>) -> Result<Rendezvous<'_>> {
        let bind = || {
            TcpListener::bind("127.0.0.1:0")
                .map_err(|e| Error::engine("there is no free port on this machine").with_source(e))
        };
        Ok(Rendezvous { pod, listener: if pod.is_none() { Some(bind()?) } else { None } })
    }

    fn rank(&self, local: usize, count: usize) -> usize {
        self.pod.map_or(0, |pod| pod.rank) * count + local
    }

    fn pods(&self) -> usize {
        self.pod.map_or(1, |pod| pod.size)
    }
}

fn start((local, count): (usize, usize), rendezvous: &Rendezvous<'_>, logs: &Path) -> Result<Child> {
    let rank = rendezvous.rank(local, count);
    let failed = |e| Error::internal(format!("cannot start rank {rank}")).with_source(e);
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command
        .args(std::env::args_os().skip(1))
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", local.to_string())
        .env("WORLD_SIZE", (count * rendezvous.pods()).to_string())
        .env("LOCAL_WORLD_SIZE", count.to_string())
        // of a torchrun that started this one by itself
        .env_remove("TORCHELASTIC_USE_AGENT_STORE")
        .env_remove("TORCHELASTIC_RESTART_COUNT")
        .env(PARENT, std::process::id().to_string())
        // a Ctrl-C in the terminal comes to the one that forwards it
        .process_group(0)
        .stdin(Stdio::null());
    if let Some(listener) = &rendezvous.listener {
        let port = listener.local_addr().map_err(failed)?.port();
        command
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .env("GLOO_SOCKET_IFNAME", "lo")
            .env("NCCL_SOCKET_IFNAME", "lo");
        if rank == 0 {
            // a copy that stays open when the new program starts; closed here after the start
            let socket = nix::unistd::dup(listener).map_err(|e| failed(e.into()))?;
            command.env(LISTENER, socket.as_raw_fd().to_string());
            return spawn(command, (rank, local), logs);
        }
    }
    spawn(command, (rank, local), logs)
}

fn spawn(mut command: Command, (rank, local): (usize, usize), logs: &Path) -> Result<Child> {
    if local > 0 {
        let path = log_path(logs, rank);
        let log = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        command.stdout(Stdio::null()).stderr(log).env(LOG, &path);
    }
    command.spawn().map_err(|e| Error::internal(format!("cannot start rank {rank}")).with_source(e))
}

fn log_path(logs: &Path, rank: usize) -> PathBuf {
    logs.join(format!("rank-{rank}.log"))
}

fn end(workers: &mut [Worker], signal: Signal) {
    for worker in workers.iter_mut().filter(|w| w.ended.is_none()) {
        if let Ok(id) = i32::try_from(worker.child.id()) {
            // one that has just ended has not been waited for, so its number is not another's
            let _ = kill(Pid::from_raw(id), signal);
        }
    }
}

/// Ends this process when the one that started it is gone; for a process that [`supervise`] started, otherwise nothing.
pub fn follow_parent(membership: Option<&Membership>, parent: Option<&str>) {
    let (Some(_), Some(parent)) = (membership, parent.and_then(|p| p.parse::<u32>().ok())) else { return };
    std::thread::spawn(move || {
        while std::os::unix::process::parent_id() == parent {
            std::thread::sleep(Duration::from_millis(500));
        }
        // what it would be told to whom may be gone too
        let _ = writeln!(std::io::stderr(), "error: the process that started this one is gone");
        // not by `exit`: libraries may be computing
        let _ = kill(Pid::this(), Signal::SIGKILL);
    });
}
