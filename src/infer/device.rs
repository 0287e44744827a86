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
    let asks = compute.processes == Processes::Auto && compute.device != "cpu";
    processes_with(compute, if asks { cuda_devices() } else { 0 })
}

fn processes_with(compute: &Compute, gpus: usize) -> usize {
    // a GPU that is named is one
    let auto = if ["auto", "cuda"].contains(&compute.device.as_str()) { gpus } else { 1 };
    compute.processes.or(auto)
}

/// Gives one of several processes its part of the machine: threads, and a GPU unless the job names one or wants none.
///
/// # Errors
/// [`crate::ErrorKind::Engine`] when a GPU that is asked for is not there, or cannot be used by several processes here.
pub fn share(compute: &mut Compute, membership: &mut Membership) -> Result<()> {
    let gpus = if compute.device == "cpu" { 0 } else { cuda_devices() };
    share_with(compute, membership, gpus);
    if select(compute)?.is_cuda() {
        medtune_native::load_nccl()
            .map_err(|text| Error::engine(format!("several processes cannot use GPUs here: {text}")))?;
    }
    Ok(())
}

fn share_with(compute: &mut Compute, membership: &mut Membership, gpus: usize) {
    compute.processes = Processes::Count(membership.size);
    if compute.threads == 0 {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        compute.threads = (cores / membership.local_size).max(1);
    }
    let word = compute.device.as_str();
    membership.gpu = match word.strip_prefix("cuda:") {
        Some(number) => number.parse().ok(),
        None if word == "cpu" => None,
        None if gpus == 0 => None,
        None => Some(membership.local_rank % gpus),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    fn member(local_rank: usize) -> Membership {
        let rank = local_rank.to_string();
        let set = [
            ("RANK", rank.as_str()),
            ("WORLD_SIZE", "4"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("LOCAL_RANK", &rank),
            ("MASTER_ADDR", "h"),
        ];
        let environment: Environment = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Membership::from_environment(&environment, &Compute::default()).unwrap().unwrap()
    }

    #[test]
    fn one_process_a_gpu() {
        let count = |device: &str, processes, gpus| {
            processes_with(&Compute { device: device.to_owned(), processes, ..Compute::default() }, gpus)
        };
        assert_eq!(count("auto", Processes::Auto, 4), 4);
        assert_eq!(count("cuda", Processes::Auto, 2), 2);
        assert_eq!(count("auto", Processes::Auto, 0), 1);
        assert_eq!(count("cpu", Processes::Auto, 4), 1);
        assert_eq!(count("cuda:3", Processes::Auto, 4), 1);
        assert_eq!(count("auto", Processes::Count(3), 8), 3);
    }

    #[test]
    fn each_process_has_a_gpu_of_its_own_while_there_are_enough() {
        let given = |device: &str, local_rank, gpus| {
            let mut compute = Compute { device: device.to_owned(), threads: 2, ..Compute::default() };
            let mut membership = member(local_rank);
            share_with(&mut compute, &mut membership, gpus);
            (membership.gpu, compute.device, compute.processes)
        };
        let four = Processes::Count(4);
        assert_eq!(given("auto", 3, 4), (Some(3), "cuda:3".to_owned(), four));
        // one GPU is visible to each, or all share it
        assert_eq!(given("cuda", 3, 1), (Some(0), "cuda:0".to_owned(), four));
        assert_eq!(given("auto", 3, 2), (Some(1), "cuda:1".to_owned(), four));
        assert_eq!(given("cuda:1", 3, 4), (Some(1), "cuda:1".to_owned(), four));
        assert_eq!(given("auto", 3, 0), (None, "auto".to_owned(), four));
        assert_eq!(given("cpu", 3, 4), (None, "cpu".to_owned(), four));
    }
}
