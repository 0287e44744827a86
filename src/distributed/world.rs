//! The processes of a job, as one of them sees the others.
//!
//! Guarantees:
//! - Every wait for another process ends: with what it waited for, or within the time limit with an error that says which
//!   process is to blame, if that can be known, and why.
//! - What all processes decide together (to stop, to go on) they decide alike.

use super::membership::Membership;
use super::post::Post;
use super::ticker::Ticker;
use super::watchdog;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::sha256_hex;
use medtune_native::{Meeting, ProcessGroup};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// How often a process looks whether another has left something.
const POLL: Duration = Duration::from_millis(20);
/// How long processes have to say why they end, before the others look for themselves.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How long leaving may take.
const LEAVING: Duration = Duration::from_secs(1);

/// All processes of a job; just this one, or a group.
#[derive(Debug)]
pub struct World(Option<Group>);

#[derive(Debug)]
struct Group {
    processes: Arc<ProcessGroup>,
    post: Arc<Post>,
    rank: usize,
    size: usize,
    timeout: Duration,
    // how many times all have waited for what one says; the same in every process
    turns: AtomicUsize,
    // the sign of life, and the watchdog
    tickers: Vec<Ticker>,
}

impl World {
    /// A process by itself.
    #[must_use]
    pub fn alone() -> World {
        World(None)
    }

    /// Waits for the other processes.
    ///
    /// # Errors
    /// [`ErrorKind::Peer`] when they do not come within the time limit; the message says where they were waited for.
    pub fn join(membership: &Membership) -> Result<World> {
        let Membership { rank, size, host, port, .. } = membership;
        let meeting = Meeting {
            host: host.clone(),
            port: *port,
            serves: membership.serves,
            rank: *rank,
            size: *size,
            prefix: membership.prefix.clone(),
            interface: membership.interface.clone(),
            timeout: membership.timeout,
            join_timeout: membership.join_timeout,
            listener: membership.listener,
            gpu: membership.gpu,
        };
        let processes = ProcessGroup::join(&meeting).map_err(|text| {
            let (seconds, text) = (membership.join_timeout.as_secs(), one_line(&text));
            if text.starts_with("unlike processes") {
                return Error::config(text);
            }
            Error::peer(format!(
                "rank {rank} of {size} did not meet the others at {host}:{port} within {seconds} s: see that all are started, that the port is open, and that GLOO_SOCKET_IFNAME is right ({text})"
            ))
        })?;
        if processes.shares_gpu() {
            tracing::warn!(
                "several processes compute on the same GPU: they share its memory, and send slowly; start one a GPU"
            );
        }
        let processes = Arc::new(processes);
        let post = Arc::new(Post::open(Arc::clone(&processes), membership.timeout));
        let tickers = vec![
            beat::start(Arc::clone(&post), *rank, membership.timeout),
            watchdog::start(Arc::clone(&post), (*rank, *size), membership.timeout),
        ];
        tracing::info!(rank, of = size, at = %format!("{host}:{port}"), "joined the other processes");
        Ok(World(Some(Group {
            processes,
            post,
            rank: *rank,
            size: *size,
            timeout: membership.timeout,
            turns: AtomicUsize::new(0),
            tickers,
        })))
    }

    /// This process's number, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |g| g.rank)
    }

    /// How many processes there are.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |g| g.size)
    }

    /// Whether this process is the one that writes and publishes.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// The group, when there is one.
    #[must_use]
    pub fn processes(&self) -> Option<&ProcessGroup> {
        self.0.as_ref().map(|g| &*g.processes)
    }

    /// The tensors of all processes, stacked: `[size, ...]`. All have the same shape and type.
    ///
    /// # Errors
    /// [`ErrorKind::Peer`], or the error that another process ended with.
    pub fn gather(&self, tensor: &Tensor) -> Result<Tensor> {
        match &self.0 {
            None => tensor.f_unsqueeze(0).map_err(|e| Error::engine("cannot stack").with_source(e)),
            Some(group) => group.processes.gather(tensor).map_err(|text| group.explain(&text)),
        }
    }

    /// Every tensor becomes the sum of those of all processes, outside the graph.
    ///
    /// # Errors
    /// As [`World::gather`].
    pub fn sum(&self, tensors: &[Tensor]) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |g| g.processes.sum(tensors).map_err(|text| g.explain(&text)))
    }

    /// Every tensor becomes that of rank 0, outside the graph.
    ///
    /// # Errors
    /// As [`World::gather`].
    pub fn broadcast(&self, tensors: &[Tensor]) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |g| g.processes.broadcast(tensors).map_err(|text| g.explain(&text)))
    }

    /// Waits, within the time limit, until what was begun about tensors on this device has arrived. What a reducer begins on a GPU is
    /// otherwise waited for by the GPU alone, for ever.
    ///
    /// # Errors
    /// As [`World::gather`].
    pub fn settle(&self, device: Device) -> Result<()> {
        if self.size() == 1 || !device.is_cuda() {
            return Ok(());
        }
        let mark = Tensor::f_zeros([1], (Kind::Float, device));
        self.sum(&[mark.map_err(|e| Error::engine("cannot make a tensor").with_source(e))?])
    }

    /// The error of a call that was made past this type, such as a backward pass with a reducer: another process's, if it is to
    /// blame.
    #[must_use]
    pub fn blame(&self, error: Error) -> Error {
        let text = error.to_string();
        let of_group = ["gloo", "c10d", "NCCL", "Connection", "Timed out"].iter().any(|word| text.contains(word));
        match &self.0 {
            Some(group) if error.kind() == ErrorKind::Engine && of_group => group.explain(&text),
            _ => error,
        }
    }

    /// These numbers of every process, by rank.
    ///
    /// # Errors
    /// As [`World::gather`].
    pub fn numbers(&self, own: &[f64]) -> Result<Vec<Vec<f64>>> {
        let all = self.gather(&Tensor::from_slice(own))?;
        let flat = Vec::<f64>::try_from(all.view([-1])).map_err(|e| Error::internal("numbers").with_source(e))?;
        Ok(flat.chunks(own.len().max(1)).map(<[f64]>::to_vec).collect())
    }

    /// Whether any process wants something that all must do together, such as to stop; its rank.
    ///
    /// # Errors
    /// As [`World::gather`].
    pub fn any(&self, own: bool) -> Result<Option<usize>> {
        let wants = self.numbers(&[f64::from(u8::from(own))])?;
        Ok(wants.iter().position(|w| w[0] > 0.0))
    }

    /// Why all stop when `rank` was asked to, in this process's words: the name of its own signal, or whose it is.
    #[must_use]
    pub fn stop_reason(&self, rank: usize, own: Option<&str>) -> String {
        match own {
            Some(signal) if rank == self.rank() => signal.to_owned(),
            _ => format!("a signal to rank {rank}"),
        }
    }

    /// Checks that these tensors are the same bits in every process; returns the SHA-256 of this one's.
    ///
    /// # Errors
    /// [`ErrorKind::Peer`] naming the rank that has others; those of [`World::gather`].
    pub fn verify_equal(&self, tensors: &[Tensor]) -> Result<String> {
        let hashes = tensors.iter().map(|t| Ok(sha256_hex(&bits(t)?))).collect::<Result<Vec<_>>>()?;
        let own = sha256_hex(hashes.concat().as_bytes());
        let all = self.gather(&Tensor::from_slice(own.as_bytes()))?;
        let all = Vec::<u8>::try_from(all.view([-1])).map_err(|e| Error::internal("hashes").with_source(e))?;
        match all.chunks(own.len()).position(|other| *other != all[..own.len()]) {
            None => Ok(own),
            Some(rank) => Err(Error::peer(format!(
                "rank {rank} has computed other weights than rank 0: are the machines and their settings alike?"
            ))),
        }
    }

    /// Rank 0 does something that takes its time; the others wait for it as long as it is alive.
    ///
    /// # Errors
    /// Those of `work`, which the others get too; [`ErrorKind::Peer`] if rank 0 is gone.
    pub fn first<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        let mut value = None;
        self.from_first(|| {
            value = Some(work()?);
            Ok(Vec::new())
        })?;
        Ok(value)
    }

    /// What rank 0 alone finds out, for everybody.
    ///
    /// # Errors
    /// As [`World::first`].
    pub fn from_first(&self, work: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let Some(group) = &self.0 else { return work() };
        let key = format!("turn/{}", group.turns.fetch_add(1, Ordering::SeqCst));
        if group.rank > 0 {
            let said = group.hear_from(0, &key)?;
            return match said.split_first() {
                Some((b'+', found)) => Ok(found.to_vec()),
                _ => Err(parse_error(0, said.get(1..).unwrap_or_default())),
            };
        }
        let result = work();
        let said = match &result {
            Ok(found) => [b"+", found.as_slice()].concat(),
            Err(error) => [b"-", error_bytes(error).as_slice()].concat(),
        };
        let told = group.post.put(&key, &said).map_err(|text| group.explain(&text));
        let value = result?;
        told.map(|()| value)
    }

    /// Waits for all processes, however long what they do takes, as long as they are alive.
    ///
    /// # Errors
    /// [`ErrorKind::Peer`], or the error that another process ended with.
    pub fn meet(&self) -> Result<()> {
        let Some(group) = &self.0 else { return Ok(()) };
        let turn = group.turns.fetch_add(1, Ordering::SeqCst);
        let key = |rank: usize| format!("met/{turn}/{rank}");
        group.post.put(&key(group.rank), b"here").map_err(|text| group.explain(&text))?;
        (0..group.size).try_for_each(|rank| group.hear_from(rank, &key(rank)).map(drop))
    }

    /// Waits until nobody needs rank 0 any more, which keeps what is told.
    ///
    /// # Errors
    /// [`ErrorKind::Peer`] when another process ends badly meanwhile.
    pub fn part(&self) -> Result<()> {
        let Some(group) = &self.0 else { return Ok(()) };
        if group.rank > 0 {
            // the last thing that it asks of rank 0
            drop(group.post.put(&format!("bye/{}", group.rank), b"bye"));
            return Ok(());
        }
        (1..group.size).try_for_each(|rank| group.hear_from(rank, &format!("bye/{rank}")).map(drop))
    }

    /// Tells the others why this process ends, and lets those that wait for it go on; rank 0 stays until they have heard it.
    pub fn give_up(&self, error: &Error) {
        let Some(group) = &self.0 else { return };
        group.post.hurry(LAST_WORDS);
        if error.kind() != ErrorKind::Peer {
            // it may be the reason why the post does not work
            let _ = group.post.put(&format!("failed/{}", group.rank), &error_bytes(error));
        }
        let _ = group.post.put(&format!("bye/{}", group.rank), b"bye");
        let _ = group.processes.close();
        let begun = Instant::now();
        let gone = |rank: usize| group.post.get(&format!("bye/{rank}")).is_ok_and(|said| said.is_some());
        while group.rank == 0 && begun.elapsed() < LAST_WORDS && !(1..group.size).all(gone) {
            std::thread::sleep(POLL);
        }
    }
}

impl Group {
    /// Waits for what a rank says under a key, as long as it is alive.
    fn hear_from(&self, rank: usize, key: &str) -> Result<Vec<u8>> {
        let (mut watched, mut turn) = (Watched::default(), 0u32);
        loop {
            match self.post.get(key) {
                Ok(Some(said)) => return Ok(said),
                Ok(None) => {}
                Err(text) => return Err(self.explain(&text)),
            }
            // of the others not each time: they may be many
            turn += 1;
            let of_all = if turn % 50 == 0 { 0..self.size } else { rank..rank + 1 };
            if let Some(error) = of_all.filter(|r| *r != self.rank).find_map(|r| self.last_words(r)) {
                return Err(error);
            }
            if watched.silent_for(self.post.get(&beat::key(rank)).ok().flatten()) > self.timeout {
                return Err(silent(rank, self.timeout));
            }
            std::thread::sleep(POLL);
        }
    }

    /// What a rank said before it ended.
    fn last_words(&self, rank: usize) -> Option<Error> {
        let said = self.post.get(&format!("failed/{rank}")).ok()??;
        Some(parse_error(rank, &said))
    }

    /// Who is to blame for a call that failed.
    fn explain(&self, text: &str) -> Error {
        // of this process's own doing
        if ["out of memory", "CUDA error"].iter().any(|own| text.contains(own)) {
            return Error::engine(one_line(text));
        }
        let others = || (0..self.size).filter(|r| *r != self.rank);
        let mut watched: Vec<Watched> = (0..self.size).map(|_| Watched::default()).collect();
        let begun = Instant::now();
        self.post.hurry(LAST_WORDS);
        // long enough for a beat of everybody who is alive
        let patience = LAST_WORDS.max(beat::period(self.timeout) * 3);
        let mut quiet = Vec::new();
        while begun.elapsed() < patience {
            if let Some(error) = others().find_map(|rank| self.last_words(rank)) {
                return error;
            }
            quiet.clear();
            for rank in others() {
                match self.post.get(&beat::key(rank)) {
                    Ok(beat) => {
                        let silence = watched[rank].silent_for(beat);
                        if silence > beat::period(self.timeout) * 2 {
                            quiet.push(rank);
                        }
                    }
                    // the store went with the process that kept it
                    Err(_) => return Error::peer(format!("rank 0 is gone or cut off: {}", one_line(text))),
                }
            }
            std::thread::sleep(POLL * 5);
        }
        match quiet.first() {
            Some(rank) => {
                Error::peer(format!("rank {rank} is gone or cut off, it shows no sign of life: {}", one_line(text)))
            }
            None => Error::peer(format!("the processes lost one another: {}", one_line(text))),
        }
    }
}

pub(super) fn silent(rank: usize, timeout: Duration) -> Error {
    let seconds = timeout.as_secs();
    Error::peer(format!("rank {rank} has shown no sign of life for {seconds} s"))
}

/// How long a beat has been the same.
#[derive(Debug)]
pub(super) struct Watched {
    beat: Option<Vec<u8>>,
    since: Instant,
}

impl Default for Watched {
    fn default() -> Self {
        Watched { beat: None, since: Instant::now() }
    }
}

impl Watched {
    pub(super) fn silent_for(&mut self, beat: Option<Vec<u8>>) -> Duration {
        if beat != self.beat {
            *self = Watched { beat, since: Instant::now() };
        }
        self.since.elapsed()
    }
}

/// The sign of life that every process gives again and again.
pub(super) mod beat {
    use super::{Duration, Post, Ticker};
    use std::sync::Arc;

    pub(in crate::distributed) fn period(timeout: Duration) -> Duration {
        (timeout / 20).clamp(Duration::from_millis(100), Duration::from_secs(5))
    }

    pub(in crate::distributed) fn key(rank: usize) -> String {
        format!("beat/{rank}")
    }

    pub(super) fn start(post: Arc<Post>, rank: usize, timeout: Duration) -> Ticker {
        let mut count = 0u64;
        Ticker::start(period(timeout), move || {
            count += 1;
            // whoever computes notices too when the store is gone
            post.put(&key(rank), &count.to_le_bytes()).is_ok()
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // what they hold of the post keeps the processes together
        self.tickers.clear();
        self.post = Arc::new(Post::closed());
        // c10d's threads are to end before the process does; those that wait for an answer that does not come cannot
        let begun = Instant::now();
        while Arc::strong_count(&self.processes) > 1 && begun.elapsed() < LEAVING {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn error_bytes(error: &Error) -> Vec<u8> {
    format!("{} {error}", error.kind().exit_code()).into_bytes()
}

/// The error that a rank ended with.
pub(super) fn parse_error(rank: usize, said: &[u8]) -> Error {
    let text = String::from_utf8_lossy(said);
    let (code, message) = text.split_once(' ').unwrap_or(("", &text));
    let kind = ErrorKind::ALL.into_iter().find(|k| k.exit_code().to_string() == code).unwrap_or(ErrorKind::Peer);
    Error::new(kind, format!("rank {rank}: {message}"))
}

/// c10d's messages have many lines: the first says what, the rest where in its sources; what NCCL found comes last.
fn one_line(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    let cause = text.split_once("Last error:").and_then(|(_, rest)| rest.lines().find(|l| !l.trim().is_empty()));
    let line = cause.map_or_else(|| first.to_owned(), |cause| format!("{first}: {}", cause.trim()));
    line.chars().take(300).collect()
}

/// The bytes of a tensor on any device.
fn bits(tensor: &Tensor) -> Result<Vec<u8>> {
    (|| {
        let flat = tensor.f_detach()?.f_to_device(tch::Device::Cpu)?.f_contiguous()?.f_view([-1])?;
        let count = flat.numel();
        let mut out = vec![0u8; count * flat.kind().elt_size_in_bytes()];
        flat.f_copy_data_u8(&mut out, count)?;
        Ok(out)
    })()
    .map_err(|e: tch::TchError| Error::engine("cannot read a tensor").with_source(e))
}
