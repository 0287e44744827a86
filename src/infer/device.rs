//! Which device computes, and with how many threads.

use crate::config::compute::{Compute, Processes};
use crate::distributed::Membership;
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
    let count = cuda_devices();
    if index < count {
        return Ok(Device::Cuda(index));
    }
    if word == "auto" {
        return Ok(Device::Cpu);
    }
    Err(Error::engine(format!(
        "compute.device: {word} asks for a GPU, and this machine shows {count}; use auto or cpu"
    )))
}

/// GPUs that this process sees.
fn cuda_devices() -> usize {
    // the CUDA half must be there before the first question about it
    if medtune_native::load_cuda() { usize::try_from(Cuda::device_count()).unwrap_or(0) } else { 0 }
}

/// How many processes a job starts on this machine: `auto` is one for each GPU that it may use.
#[must_use]
pub fn processes(compute: &Compute) -> usize {
    match compute.device.as_str() {
        "auto" | "cuda" if compute.processes == Processes::Auto => compute.processes.or(cuda_devices()),
        _ => compute.processes.or(1),
    }
}

/// Gives one of several processes its part of the machine: threads, and a GPU unless the job names one or wants none.
pub fn share(compute: &mut Compute, membership: &mut Membership) {
    compute.processes = Processes::Count(membership.size);
    if compute.threads == 0 {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        compute.threads = (cores / membership.local_size).max(1);
    }
    let word = compute.device.as_str();
    membership.gpu = match word.strip_prefix("cuda:") {
        Some(number) => number.parse().ok(),
        None if word == "cpu" => None,
        None => match cuda_devices() {
            0 => None,
            count => Some(membership.local_rank % count),
        },
    };
    if let Some(gpu) = membership.gpu {
        compute.device = format!("cuda:{gpu}");
    }
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
