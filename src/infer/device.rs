//! Which device computes, and with how many threads.

use crate::config::job::Compute;
use crate::error::{Error, Result};
use crate::registry::ComputeRecord;
use tch::{Cuda, Device};

/// The device that a job's `compute` section asks for; sets the number of CPU threads of libtorch.
///
/// # Errors
/// [`crate::ErrorKind::Config`] for an unknown word, [`crate::ErrorKind::Engine`] when the GPU asked for is not there.
pub fn select(compute: &Compute) -> Result<Device> {
    medtune_native::tune_allocator();
    if compute.threads > 0 {
        tch::set_num_threads(i32::try_from(compute.threads).unwrap_or(i32::MAX));
    }
    let word = compute.device.as_str();
    let index = match word {
        "cpu" => return Ok(Device::Cpu),
        "auto" | "cuda" => 0,
        _ => word.strip_prefix("cuda:").and_then(|n| n.parse().ok()).ok_or_else(|| {
            Error::config(format!("compute.device: '{word}' is not known; write auto, cpu, cuda or cuda:N"))
        })?,
    };
    // the CUDA half must be there before the first question about it
    let count = if medtune_native::load_cuda() { Cuda::device_count() } else { 0 };
    if (index as i64) < count {
        return Ok(Device::Cuda(index));
    }
    if word == "auto" {
        return Ok(Device::Cpu);
    }
    Err(Error::engine(format!(
        "compute.device: {word} asks for a GPU, and this machine shows {count}; use auto or cpu"
    )))
}

/// What a run on `device` computes with, for its record; asked after [`select`], which sets the threads.
#[must_use]
pub fn record(device: Device) -> ComputeRecord {
    ComputeRecord {
        device: name(device),
        libtorch: env!("MEDTUNE_LIBTORCH_VERSION").to_owned(),
        threads: usize::try_from(tch::get_num_threads()).unwrap_or(0),
    }
}

/// The device's name in records.
#[must_use]
pub fn name(device: Device) -> String {
    match device {
        Device::Cuda(n) => format!("cuda:{n}"),
        _ => "cpu".to_owned(),
    }
}
