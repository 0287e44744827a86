//! A job's `compute` section: device, threads, and the processes that share the computing.

use crate::error::{Error, Result};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;

/// Where the tensors are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Compute {
    /// `auto` (a GPU when there is one), `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// CPU threads of a process; 0 uses all cores.
    pub threads: usize,
    /// How many processes train and embed together on this machine, or `auto` for one a GPU; where torchrun has started them,
    /// it decides.
    pub processes: Processes,
    /// Seconds that a process waits for another that shows no progress.
    pub peer_timeout_seconds: u64,
    /// Seconds that processes wait for one another to be started.
    pub join_timeout_seconds: u64,
    /// Gradients are sent in buckets of about so many MiB, while the backward pass goes on.
    pub bucket_cap_mb: usize,
}

impl Compute {
    /// Most threads that a job may ask for.
    const MAX_THREADS: usize = 1024;
    /// Largest bucket, in MiB: more than the gradients of any model here.
    const MAX_BUCKET: usize = 65_536;

    pub(super) fn check(&self) -> Result<()> {
        let numbered = self.device.strip_prefix("cuda:").is_some_and(|n| n.parse::<u8>().is_ok());
        if !numbered && !["auto", "cpu", "cuda"].contains(&self.device.as_str()) {
            return Err(Error::config(format!(
                "compute.device: '{}' is not known; write auto, cpu, cuda or cuda:N",
                self.device
            )));
        }
        if self.threads > Self::MAX_THREADS {
            return Err(Error::config(format!("compute.threads: {} is more than {}", self.threads, Self::MAX_THREADS)));
        }
        if !(1..=Self::MAX_THREADS).contains(&self.processes.or(1)) {
            let (processes, most) = (self.processes, Self::MAX_THREADS);
            return Err(Error::config(format!("compute.processes: {processes} is not within 1 to {most}")));
        }
        for (key, seconds) in
            [("peer_timeout_seconds", self.peer_timeout_seconds), ("join_timeout_seconds", self.join_timeout_seconds)]
        {
            if !(5..=86_400).contains(&seconds) {
                return Err(Error::config(format!("compute.{key}: {seconds} is not within 5 to 86400")));
            }
        }
        if !(1..=Self::MAX_BUCKET).contains(&self.bucket_cap_mb) {
            let (value, most) = (self.bucket_cap_mb, Self::MAX_BUCKET);
            return Err(Error::config(format!("compute.bucket_cap_mb: {value} is not within 1 to {most}")));
        }
        Ok(())
    }
}

impl Default for Compute {
    fn default() -> Self {
        Compute {
            device: "auto".to_owned(),
            threads: 0,
            processes: Processes::Count(1),
            peer_timeout_seconds: 120,
            join_timeout_seconds: 600,
            // of PyTorch's DistributedDataParallel
            bucket_cap_mb: 25,
        }
    }
}

/// What `compute.processes` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processes {
    /// One for each GPU of the machine, and one where there is none.
    Auto,
    /// So many.
    Count(usize),
}

const AUTO: &str = "auto";

impl Processes {
    /// The number, where `auto` is this many.
    #[must_use]
    pub fn or(self, auto: usize) -> usize {
        match self {
            Processes::Auto => auto.max(1),
            Processes::Count(count) => count,
        }
    }
}

impl fmt::Display for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Processes::Auto => f.write_str(AUTO),
            Processes::Count(count) => count.fmt(f),
        }
    }
}

impl Serialize for Processes {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Processes::Auto => serializer.serialize_str(AUTO),
            Processes::Count(count) => serializer.serialize_u64(*count as u64),
        }
    }
}

impl<'de> Deserialize<'de> for Processes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Processes, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Processes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of processes, or auto")
            }
            fn visit_u64<E: de::Error>(self, count: u64) -> std::result::Result<Processes, E> {
                Ok(Processes::Count(usize::try_from(count).unwrap_or(usize::MAX)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Processes, E> {
                if text == AUTO {
                    return Ok(Processes::Auto);
                }
                Err(E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Processes {
    fn schema_name() -> Cow<'static, str> {
        "Processes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "anyOf": [{ "type": "integer", "minimum": 1 }, { "const": AUTO }] })
    }
}

#[cfg(test)]
mod tests {
    use super::Processes;

    #[test]
    fn a_number_or_auto() {
        let read = |text: &str| serde_yaml_ng::from_str::<Processes>(text);
        assert_eq!(read("3").unwrap(), Processes::Count(3));
        assert_eq!(read("auto").unwrap(), Processes::Auto);
        for wrong in ["all", "-1", "1.5", "[2]"] {
            assert!(read(wrong).unwrap_err().to_string().contains("auto"), "{wrong}");
        }
        assert_eq!((Processes::Auto.or(4), Processes::Auto.or(0), Processes::Count(2).or(4)), (4, 1, 2));
        for known in [Processes::Auto, Processes::Count(2)] {
            assert_eq!(serde_json::from_str::<Processes>(&serde_json::to_string(&known).unwrap()).unwrap(), known);
        }
    }
}
