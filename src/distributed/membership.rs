//! Which of a job's processes this one is, as the environment says: in the words of torchrun, or of a Kubernetes Indexed Job.

use crate::config::Environment;
use crate::config::compute::Compute;
use crate::error::{Error, Result};
use std::time::Duration;

/// The port when there is no `MASTER_PORT`: PyTorch's.
const PORT: u16 = 29_500;
/// Names the socket that a process has been handed down.
pub(super) const LISTENER: &str = "MEDTUNE_LISTENER";

/// One process among several that compute a job together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// This process's number, from 0.
    pub rank: usize,
    /// How many processes there are, at least two.
    pub size: usize,
    /// How many of them are on this machine.
    pub local_size: usize,
    /// This process's number among those, from 0.
    pub local_rank: usize,
    /// Where they meet: a name or address of rank 0's machine.
    pub host: String,
    /// The port there.
    pub port: u16,
    /// Whether this process opens that port. Under torchrun its agent does.
    pub serves: bool,
    /// A socket that listens there already, handed down by the process that started this one.
    pub listener: Option<i32>,
    /// Whether this is a pod of an Indexed Job, which may start several processes in its place.
    pub pod: bool,
    /// Keeps what this attempt says apart from what earlier ones said at the same place.
    pub prefix: String,
    /// Network interface of the collectives; empty for the one that the machine's name leads to.
    pub interface: String,
    /// How long a process waits for another that shows no progress.
    pub timeout: Duration,
    /// How long it waits for the others to be started.
    pub join_timeout: Duration,
    /// The GPU that this process computes on, by its number on this machine.
    pub gpu: Option<usize>,
}

impl Membership {
    /// What `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`, `LOCAL_RANK` and `LOCAL_WORLD_SIZE` say; `None` for a process
    /// alone. `GLOO_SOCKET_IFNAME` is the interface. In an Indexed Job `JOB_COMPLETION_INDEX` stands for the rank, and
    /// `WORLD_SIZE` counts pods.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] naming the variable that is missing or makes no sense.
    pub fn from_environment(environment: &Environment, compute: &Compute) -> Result<Option<Membership>> {
        let value = |name: &str| environment.get(name).map(|v| v.trim()).filter(|v| !v.is_empty());
        let index = value("JOB_COMPLETION_INDEX");
        let (rank, size) = match (value("RANK"), index, value("WORLD_SIZE")) {
            (Some(rank), _, Some(size)) => (number("RANK", rank)?, number("WORLD_SIZE", size)?),
            (None, Some(rank), Some(size)) => (number("JOB_COMPLETION_INDEX", rank)?, number("WORLD_SIZE", size)?),
            (None, None, Some(size)) if number::<usize>("WORLD_SIZE", size)? > 1 => {
                return Err(Error::config(
                    "WORLD_SIZE is set, but neither RANK nor JOB_COMPLETION_INDEX: this process cannot tell which one it is",
                ));
            }
            (Some(_), _, None) => return Err(Error::config("RANK is set, but WORLD_SIZE is not: set both or neither")),
            _ => return Ok(None),
        };
        if rank >= size {
            return Err(Error::config(format!("the rank is {rank} of a WORLD_SIZE of {size}: ranks count from 0")));
        }
        if size == 1 {
            return Ok(None);
        }
        let host = value("MASTER_ADDR")
            .ok_or_else(|| Error::config("WORLD_SIZE is set, but MASTER_ADDR is not: the name of rank 0's machine"))?;
        let port = value("MASTER_PORT")
            .map_or(Ok(PORT), |v| number::<std::num::NonZeroU16>("MASTER_PORT", v).map(u16::from))?;
        let local_size = value("LOCAL_WORLD_SIZE").map_or(Ok(1), |v| number("LOCAL_WORLD_SIZE", v))?.clamp(1, size);
        let local_rank = value("LOCAL_RANK").map_or(Ok(rank % local_size), |v| number("LOCAL_RANK", v))?;
        let agent = value("TORCHELASTIC_USE_AGENT_STORE") == Some("True");
        Ok(Some(Membership {
            rank,
            size,
            local_size,
            local_rank,
            host: host.to_owned(),
            port,
            serves: rank == 0 && !agent,
            listener: value(LISTENER).map(|v| number(LISTENER, v)).transpose()?,
            pod: value("RANK").is_none() && index.is_some(),
            prefix: format!("medtune/{}", value("TORCHELASTIC_RESTART_COUNT").unwrap_or("0")),
            interface: value("GLOO_SOCKET_IFNAME").unwrap_or_default().to_owned(),
            timeout: Duration::from_secs(compute.peer_timeout_seconds),
            join_timeout: Duration::from_secs(compute.join_timeout_seconds),
            gpu: None,
        }))
    }
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::config(format!("{name}: '{}' is no such number", text.escape_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Membership>> {
        let environment: Environment = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Membership::from_environment(&environment, &Compute::default())
    }

    const MEETING: [(&str, &str); 2] = [("MASTER_ADDR", "head"), ("WORLD_SIZE", "4")];

    #[test]
    fn ranks_come_from_torchrun_or_an_indexed_job() {
        let torchrun =
            [("RANK", "0"), ("LOCAL_WORLD_SIZE", "2"), ("MASTER_PORT", "1234"), ("GLOO_SOCKET_IFNAME", "eth1")];
        let found = read(&[&torchrun[..], &MEETING].concat()).unwrap().unwrap();
        assert_eq!((found.rank, found.size, found.local_size, found.port, found.serves), (0, 4, 2, 1234, true));
        assert_eq!((found.local_rank, found.pod), (0, false));
        assert_eq!((found.host.as_str(), found.interface.as_str()), ("head", "eth1"));
        let agent = [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "2")];
        let found = read(&[&torchrun[..], &agent, &MEETING].concat()).unwrap().unwrap();
        assert_eq!((found.serves, found.prefix.as_str()), (false, "medtune/2"));
        let indexed = read(&[&[("JOB_COMPLETION_INDEX", "3")][..], &MEETING].concat()).unwrap().unwrap();
        assert_eq!((indexed.rank, indexed.size, indexed.port, indexed.serves), (3, 4, PORT, false));
        assert!(indexed.pod);
    }

    #[test]
    fn alone_without_a_world() {
        for alone in
            [&[][..], &[("JOB_COMPLETION_INDEX", "3")], &[("RANK", "0"), ("WORLD_SIZE", "1")], &[("WORLD_SIZE", "1")]]
        {
            assert_eq!(read(alone).unwrap(), None);
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (bad, named) in [
            (&[("RANK", "0")][..], "WORLD_SIZE"),
            (&[("RANK", "4"), MEETING[0], MEETING[1]], "rank"),
            (&[("RANK", "x"), MEETING[0], MEETING[1]], "RANK"),
            (&[("RANK", "1"), MEETING[1]], "MASTER_ADDR"),
            (&[("RANK", "1"), ("MASTER_PORT", "0"), MEETING[0], MEETING[1]], "MASTER_PORT"),
            (&MEETING, "RANK"),
            (&[("RANK", "1"), ("MASTER_PORT", "99999"), MEETING[0], MEETING[1]], "MASTER_PORT"),
        ] {
            assert!(read(bad).unwrap_err().to_string().contains(named), "{bad:?}");
        }
    }
}
