//! Starts a job's processes on this machine, watches them, and ends them together.
//!
//! Guarantees:
//! - None of them outlives the one that was started by the user, in whatever way that one ends.
//! - The exit code is that of rank 0; `peer` when rank 0 was killed, or did its part although another rank failed.

use super::membership::Membership;
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry::stop::StopSignal;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Write;
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
    /// Not well; what is to be said was said, and this is the exit code.
    Said(u8),
}

struct Worker {
    rank: usize,
    child: Child,
    ended: Option<ExitStatus>,
}

/// Runs this program `count` times with its own arguments, as ranks 0 to `count` - 1; rank 0 speaks for all, the log of the
/// others goes to files that end with them. When rank 0 has ended, or one has given up the others, these have `patience` to end
/// by themselves.
///
/// # Errors
/// [`ErrorKind::Peer`] when rank 0 was killed, or another rank failed although rank 0 did not.
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
    let (mut first, mut deadline, mut forwarded) = (None, None, None);
    while workers.iter().any(|w| w.ended.is_none()) {
        for worker in workers.iter_mut().filter(|w| w.ended.is_none()) {
            worker.ended =
                worker.child.try_wait().map_err(|e| Error::internal("cannot watch a process").with_source(e))?;
            let Some(status) = worker.ended else { continue };
            if !status.success() && first.is_none() {
                first = Some(worker.rank);
            }
            // nobody is needed after rank 0; and one that the others have given up does not come back
            let given_up = status.code() == Some(ErrorKind::Peer.exit_code().into());
            if worker.rank == 0 || given_up {
                deadline.get_or_insert(Instant::now() + patience);
            }
        }
        if let (Some(signal), None) = (stop.requested(), forwarded) {
            let signal = if signal == "SIGINT" { Signal::SIGINT } else { Signal::SIGTERM };
            forwarded = Some(signal);
            end(&mut workers, signal);
        }
        if deadline.is_some_and(|d| Instant::now() > d) {
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
            if workers[first].rank > 0 {
                tracing::warn!("{}", why(&workers[first], logs.path()));
            }
            Ok(Ended::Said(code))
        }
        _ => Err(why(&workers[0], logs.path())),
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
        // of a torchrun that started this one by itself
        .env_remove("TORCHELASTIC_USE_AGENT_STORE")
        .env_remove("TORCHELASTIC_RESTART_COUNT")
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
        // what it would be told to whom may be gone too
        let _ = writeln!(std::io::stderr(), "error: the process that started this one is gone");
        // not by `exit`: libraries may be computing
        let _ = kill(Pid::this(), Signal::SIGKILL);
    });
}
