//! Starts a job's processes on this machine, watches them, and ends them together.
//!
//! Guarantees:
//! - None of them outlives the one that was started by the user, in whatever way that one ends.
//! - The exit code is that of rank 0, or `peer` when another rank was the first to fail.

use super::membership::Membership;
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry::stop::StopSignal;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Says to a process that it was started here, and by whom.
pub const PARENT: &str = "MEDTUNE_PARENT_PROCESS";
/// Names the file that a process's standard error goes to.
pub const LOG: &str = "MEDTUNE_RANK_LOG";

const POLL: Duration = Duration::from_millis(50);

/// How the processes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All did what they were to do.
    Well,
    /// Rank 0 has said why not, and ended with this code.
    Said(u8),
}

struct Worker {
    rank: usize,
    child: Child,
    ended: Option<ExitStatus>,
}

/// Runs this program `count` times with its own arguments, as ranks 0 to `count` - 1; rank 0 speaks for all, the log of the
/// others goes to files that end with them. After the first failure the others have `patience` to end by themselves.
///
/// # Errors
/// [`ErrorKind::Peer`] when a process was killed, or another than rank 0 failed first.
pub fn supervise(count: usize, patience: Duration) -> Result<Ended> {
    let stop = StopSignal::listen()?;
    let logs = tempfile::tempdir().map_err(|e| Error::storage("cannot make a folder for logs").with_source(e))?;
    let mut workers = Vec::new();
    let port = free_port()?;
    for rank in 0..count {
        match start(rank, count, port, logs.path()) {
            Ok(child) => workers.push(Worker { rank, child, ended: None }),
            Err(error) => {
                end(&mut workers, Signal::SIGKILL);
                return Err(error);
            }
        }
    }
    let (mut first, mut deadline, mut forwarded) = (None, None, false);
    while workers.iter().any(|w| w.ended.is_none()) {
        for worker in workers.iter_mut().filter(|w| w.ended.is_none()) {
            worker.ended =
                worker.child.try_wait().map_err(|e| Error::internal("cannot watch a process").with_source(e))?;
            if worker.ended.is_some_and(|status| !status.success()) && first.is_none() {
                first = Some(worker.rank);
                // whoever was asked to stop may take its time to save
                let preempted = worker.ended.and_then(|s| s.code()) == Some(ErrorKind::Preempted.exit_code().into());
                deadline = (!preempted).then(|| Instant::now() + patience);
            }
        }
        if let Some(signal) = stop.requested()
            && !forwarded
        {
            forwarded = true;
            end(&mut workers, if signal == "SIGINT" { Signal::SIGINT } else { Signal::SIGTERM });
        }
        if deadline.is_some_and(|d| Instant::now() > d) {
            end(&mut workers, Signal::SIGKILL);
        }
        std::thread::sleep(POLL);
    }
    let Some(first) = first else { return Ok(Ended::Well) };
    match workers[0].ended.and_then(|s| s.code()).and_then(|c| u8::try_from(c).ok()) {
        Some(code) if code > 0 => Ok(Ended::Said(code)),
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
    Error::new(ErrorKind::Peer, format!("rank {} {how}{last}", worker.rank))
}

fn start(rank: usize, count: usize, port: u16, logs: &Path) -> Result<Child> {
    let failed = |e| Error::internal(format!("cannot start rank {rank}")).with_source(e);
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command
        .args(std::env::args_os().skip(1))
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("WORLD_SIZE", count.to_string())
        .env("LOCAL_WORLD_SIZE", count.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .env("GLOO_SOCKET_IFNAME", "lo")
        .env(PARENT, std::process::id().to_string())
        // a Ctrl-C in the terminal comes to the one that forwards it
        .process_group(0)
        .stdin(Stdio::null());
    if rank > 0 {
        let path = log_path(logs, rank);
        let log = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        command.stdout(Stdio::null()).stderr(log).env(LOG, &path);
    }
    command.spawn().map_err(failed)
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

/// A port that nobody uses at this moment.
fn free_port() -> Result<u16> {
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    Ok(address.map_err(|e| Error::engine("there is no free port on this machine").with_source(e))?.port())
}

/// Ends this process when the one that started it is gone; for a process that [`supervise`] started, otherwise nothing.
pub fn follow_parent(membership: Option<&Membership>, parent: Option<&str>) {
    let (Some(_), Some(parent)) = (membership, parent.and_then(|p| p.parse::<u32>().ok())) else { return };
    std::thread::spawn(move || {
        while std::os::unix::process::parent_id() == parent {
            std::thread::sleep(Duration::from_millis(500));
        }
        eprintln!("error: the process that started this one is gone");
        std::process::exit(i32::from(ErrorKind::Peer.exit_code()));
    });
}
