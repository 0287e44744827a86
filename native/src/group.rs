//! A group of processes that compute together, on torch's own c10d.
//!
//! All processes of a group call the same functions in the same order; each call ends with an error when another process
//! is gone, or after the group's time limit. None of them returns half a result.

use crate::{check, pointers};
use std::ffi::{CString, c_char, c_int, c_void};
use std::time::Duration;
use tch::Tensor;

unsafe extern "C" {
    fn mt_free(text: *mut c_char);
    fn mt_group_join(
        host: *const c_char,
        port: c_int,
        serves: c_int,
        listener: c_int,
        rank: c_int,
        size: c_int,
        prefix: *const c_char,
        interface: *const c_char,
        join_timeout_ms: i64,
        timeout_ms: i64,
        device: c_int,
        shared: *mut c_int,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    #[cfg(has_nccl)]
    fn mt_nccl_load(library: *const u8, length: usize) -> *mut c_char;
    fn mt_group_close(group: *mut c_void) -> *mut c_char;
    fn mt_group_leave(group: *mut c_void);
    fn mt_group_gather(group: *mut c_void, input: *const c_void, output: *const c_void) -> *mut c_char;
    fn mt_group_sum(group: *mut c_void, list: *const *const c_void, count: usize) -> *mut c_char;
    fn mt_group_broadcast(group: *mut c_void, list: *const *const c_void, count: usize) -> *mut c_char;
    fn mt_group_put(group: *mut c_void, key: *const c_char, bytes: *const u8, length: usize) -> *mut c_char;
    fn mt_group_get(group: *mut c_void, key: *const c_char, bytes: *mut *mut c_char, length: *mut usize)
    -> *mut c_char;
    fn mt_reducer_new(
        group: *mut c_void,
        list: *const *const c_void,
        count: usize,
        bucket_bytes: usize,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn mt_reducer_expect(reducer: *mut c_void) -> *mut c_char;
    fn mt_reducer_free(reducer: *mut c_void);
}

/// Where and how processes meet.
#[derive(Debug, Clone)]
pub struct Meeting {
    /// Where the store listens: a name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether this process runs the store.
    pub serves: bool,
    /// A socket that listens at the port already, for the process that runs the store.
    pub listener: Option<i32>,
    /// This process's number, from 0.
    pub rank: usize,
    /// How many processes there are.
    pub size: usize,
    /// Put before every key of the store: another one for each attempt.
    pub prefix: String,
    /// The network interface for collectives; empty: the one that the machine's name leads to.
    pub interface: String,
    /// How long any call waits for the others.
    pub timeout: Duration,
    /// How long [`ProcessGroup::join`] waits for them to come.
    pub join_timeout: Duration,
    /// The GPU, by its number here, whose tensors the collectives take; without one they take tensors on the CPU alone.
    pub gpu: Option<usize>,
}

/// What was compiled from nccl.cpp.
#[cfg(has_nccl)]
static NCCL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libmedtune_nccl.so"));

/// Makes NCCL ready for [`ProcessGroup::join`]; does nothing when it is.
///
/// # Errors
/// A text when this program was built without NCCL, or CUDA's libraries are not beside libtorch.
pub fn load_nccl() -> Result<(), String> {
    if !crate::load_cuda() {
        return Err("libtorch_cuda.so cannot be loaded".to_owned());
    }
    load()
}

#[cfg(has_nccl)]
fn load() -> Result<(), String> {
    // SAFETY: the library's bytes live for ever.
    check(unsafe { mt_nccl_load(NCCL.as_ptr(), NCCL.len()) })
}

#[cfg(not(has_nccl))]
fn load() -> Result<(), String> {
    Err("this program was built without NCCL: build it where scripts/setup has installed libtorch".to_owned())
}

/// A group that was joined; left when it is dropped.
#[derive(Debug)]
pub struct ProcessGroup {
    raw: *mut c_void,
    size: usize,
    shares_gpu: bool,
}

// SAFETY: c10d's store and process group lock what they share; collectives are called by one thread at a time.
unsafe impl Send for ProcessGroup {}
// SAFETY: as above; the store may be used from any thread.
unsafe impl Sync for ProcessGroup {}

impl ProcessGroup {
    /// Waits for all processes and joins them.
    ///
    /// # Errors
    /// c10d's text: nobody answers, an interface that is not there, a name that has no address.
    pub fn join(meeting: &Meeting) -> Result<ProcessGroup, String> {
        let text = |value: &str| CString::new(value).map_err(|_| format!("'{}' holds a NUL", value.escape_default()));
        let (host, prefix, interface) = (text(&meeting.host)?, text(&meeting.prefix)?, text(&meeting.interface)?);
        let number = |value: usize| c_int::try_from(value).map_err(|e| e.to_string());
        let (rank, size) = (number(meeting.rank)?, number(meeting.size)?);
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let device = match meeting.gpu {
            Some(gpu) => {
                load_nccl()?;
                number(gpu)?
            }
            None => -1,
        };
        let (mut raw, mut shared) = (std::ptr::null_mut(), 0);
        // SAFETY: the texts, `shared` and `raw` outlive the call.
        check(unsafe {
            mt_group_join(
                host.as_ptr(),
                meeting.port.into(),
                meeting.serves.into(),
                meeting.listener.unwrap_or(-1),
                rank,
                size,
                prefix.as_ptr(),
                interface.as_ptr(),
                milliseconds(meeting.join_timeout),
                milliseconds(meeting.timeout),
                device,
                &mut shared,
                &mut raw,
            )
        })?;
        Ok(ProcessGroup { raw, size: meeting.size, shares_gpu: shared != 0 })
    }

    /// Whether two processes of the group have the same GPU. Their tensors go through Gloo then, which is much slower than NCCL.
    #[must_use]
    pub fn shares_gpu(&self) -> bool {
        self.shares_gpu
    }

    /// The tensors of all ranks, stacked: `[size, ...]`. All have the same shape and type.
    ///
    /// # Errors
    /// c10d's text.
    pub fn gather(&self, tensor: &Tensor) -> Result<Tensor, String> {
        let mut shape = tensor.size();
        shape.insert(0, self.size as i64);
        let out = Tensor::f_empty(&shape, (tensor.kind(), tensor.device())).map_err(|e| e.to_string())?;
        // SAFETY: both tensors live for the length of the call.
        check(unsafe { mt_group_gather(self.raw, tensor.as_ptr() as *const c_void, out.as_ptr() as *const c_void) })?;
        Ok(out)
    }

    /// Every tensor becomes the sum of those of all ranks, outside the graph.
    ///
    /// # Errors
    /// c10d's text.
    pub fn sum(&self, tensors: &[Tensor]) -> Result<(), String> {
        let pointers = pointers(tensors);
        // SAFETY: the pointers are to live at::Tensor objects, borrowed for the length of the call.
        check(unsafe { mt_group_sum(self.raw, pointers.as_ptr(), pointers.len()) })
    }

    /// Every tensor becomes that of rank 0, outside the graph.
    ///
    /// # Errors
    /// c10d's text.
    pub fn broadcast(&self, tensors: &[Tensor]) -> Result<(), String> {
        let pointers = pointers(tensors);
        // SAFETY: as above.
        check(unsafe { mt_group_broadcast(self.raw, pointers.as_ptr(), pointers.len()) })
    }

    /// Closes the connections of collectives, so that whoever waits in one ends with an error. What was left under keys stays. No
    /// collective may be running in this process, nor a [`Reducer`] be alive for it to take effect.
    ///
    /// # Errors
    /// c10d's text.
    pub fn close(&self) -> Result<(), String> {
        // SAFETY: made by mt_group_join and alive; collectives check that the group is still open.
        check(unsafe { mt_group_close(self.raw) })
    }

    /// Leaves something for the others under a key.
    ///
    /// # Errors
    /// c10d's text: the process that runs the store is gone.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<(), String> {
        let key = CString::new(key).map_err(|e| e.to_string())?;
        // SAFETY: key and bytes outlive the call.
        check(unsafe { mt_group_put(self.raw, key.as_ptr(), bytes.as_ptr(), bytes.len()) })
    }

    /// What somebody has left under a key, if anybody has; does not wait.
    ///
    /// # Errors
    /// As [`ProcessGroup::put`].
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, String> {
        let key = CString::new(key).map_err(|e| e.to_string())?;
        let (mut bytes, mut length) = (std::ptr::null_mut(), 0);
        // SAFETY: all pointers outlive the call; a non-null answer is `length` bytes that are freed once, here.
        unsafe {
            check(mt_group_get(self.raw, key.as_ptr(), &mut bytes, &mut length))?;
            if bytes.is_null() {
                return Ok(None);
            }
            let found = std::slice::from_raw_parts(bytes.cast::<u8>(), length).to_vec();
            mt_free(bytes);
            Ok(Some(found))
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: made by mt_group_join, freed once.
        unsafe { mt_group_leave(self.raw) }
    }
}

/// The Reducer of PyTorch's DistributedDataParallel: averages gradients over the group, in buckets and while the backward
/// pass still runs.
#[derive(Debug)]
pub struct Reducer<'a> {
    raw: *mut c_void,
    _group: &'a ProcessGroup,
    // it reads and writes their gradients
    _params: Vec<Tensor>,
}

impl<'a> Reducer<'a> {
    /// Watches the gradients of these parameters: all that are trained, in the same order on every rank. Each must take part
    /// exactly once in every backward pass that is expected. A bucket is sent as soon as it has about `bucket_bytes`.
    ///
    /// # Errors
    /// c10d's text: other parameters on another rank.
    pub fn new(group: &'a ProcessGroup, params: Vec<Tensor>, bucket_bytes: usize) -> Result<Reducer<'a>, String> {
        let pointers = pointers(&params);
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointers are to live tensors, of which the reducer keeps handles of its own.
        check(unsafe { mt_reducer_new(group.raw, pointers.as_ptr(), pointers.len(), bucket_bytes, &mut raw) })?;
        Ok(Reducer { raw, _group: group, _params: params })
    }

    /// Announces the backward pass after which the gradients, with what was added up before it, are averaged.
    ///
    /// # Errors
    /// c10d's text: the pass announced before has not reached every parameter.
    pub fn expect(&self) -> Result<(), String> {
        // SAFETY: made by mt_reducer_new and alive.
        check(unsafe { mt_reducer_expect(self.raw) })
    }
}

impl Drop for Reducer<'_> {
    fn drop(&mut self) {
        // SAFETY: made by mt_reducer_new, freed once.
        unsafe { mt_reducer_free(self.raw) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(gpu: Option<usize>) -> Result<ProcessGroup, String> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let (host, interface) = ("127.0.0.1".to_owned(), "lo".to_owned());
        let timeout = Duration::from_secs(30);
        ProcessGroup::join(&Meeting {
            host,
            port,
            serves: true,
            listener: None,
            rank: 0,
            size: 1,
            prefix: "test".to_owned(),
            interface,
            timeout,
            join_timeout: timeout,
            gpu,
        })
    }

    #[test]
    fn a_group_of_one_sums_and_gathers() {
        let group = alone(None).unwrap();
        let tensor = Tensor::from_slice(&[1.5f32, -2.0]);
        group.sum(&[tensor.shallow_clone()]).unwrap();
        assert_eq!(group.gather(&tensor).unwrap(), tensor.unsqueeze(0));
        assert!(!group.shares_gpu());
    }

    // all symbols of NCCL's half are found, with a GPU and without; what it does needs one
    #[test]
    #[cfg(has_nccl)]
    fn nccl_loads_and_asks_for_a_gpu() {
        use tch::{Cuda, Device, Kind};

        load_nccl().unwrap();
        load_nccl().unwrap();
        let joined = alone(Some(0));
        if Cuda::device_count() == 0 {
            let error = joined.unwrap_err();
            assert!(error.contains("CUDA") || error.contains("NVIDIA"), "{error}");
            return;
        }
        let group = joined.unwrap();
        let tensor = Tensor::ones([3], (Kind::Float, Device::Cuda(0)));
        group.sum(&[tensor.shallow_clone()]).unwrap();
        assert_eq!(group.gather(&tensor).unwrap(), tensor.unsqueeze(0));
        assert!(!group.shares_gpu());
    }
}
