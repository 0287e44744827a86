//! The libtorch calls that `tch` does not expose, each a safe function over `cpp/`.

mod checkpoint;
mod gpu;
mod group;
mod inference;
mod ops;

pub use checkpoint::checkpoint;
pub use gpu::{Download, GpuKernels, upload};
pub use group::{Meeting, ProcessGroup, Reducer, load_nccl};
pub use inference::{FixedLinear, has_bfloat16_products};
pub use ops::{channel_attention, gelu_linear, has_kernels, linear, residual_depthwise, window_attention};

use std::ffi::{CStr, c_char, c_double, c_int, c_void};
use tch::Tensor;

unsafe extern "C" {
    fn mt_free(text: *mut c_char);
    fn mt_fused_adamw(
        params: *const *const c_void,
        grads: *const *const c_void,
        exp_avgs: *const *const c_void,
        exp_avg_sqs: *const *const c_void,
        steps: *const *const c_void,
        count: usize,
        lr: c_double,
        beta1: c_double,
        beta2: c_double,
        weight_decay: c_double,
        eps: c_double,
    ) -> *mut c_char;
    fn mt_clip_grad_norm(
        grads: *const *const c_void,
        count: usize,
        max_norm: c_double,
        norm: *mut c_double,
    ) -> *mut c_char;
    fn mt_scale(list: *const *const c_void, count: usize, factor: c_double) -> *mut c_char;
    fn mt_drop_gradients(list: *const *const c_void, count: usize) -> *mut c_char;
    fn mt_lerp(from: *const *const c_void, to: *const *const c_void, count: usize, weight: c_double) -> *mut c_char;
    fn mt_autocast_enter(cuda: c_int, bfloat16: c_int, enabled: *mut c_int, was_bfloat16: *mut c_int) -> *mut c_char;
    fn mt_autocast_exit(cuda: c_int, enabled: c_int, bfloat16: c_int);
    fn mt_tune_allocator();
    fn mt_load_cuda() -> c_int;
}

fn pointers(tensors: &[Tensor]) -> Vec<*const c_void> {
    tensors.iter().map(|t| t.as_ptr() as *const c_void).collect()
}

fn check(error: *mut c_char) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null return is a NUL-terminated text from strdup, freed exactly once here.
    unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        mt_free(error);
        Err(text)
    }
}

/// Hyper-parameters of one AdamW step.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the denominator.
    pub eps: f64,
}

/// One group of parameters with its optimizer state; all five lists have the same length and order.
#[derive(Debug)]
pub struct AdamWGroup<'a> {
    /// Parameters, updated in place.
    pub params: &'a [Tensor],
    /// Their gradients.
    pub grads: &'a [Tensor],
    /// First moments, updated in place.
    pub exp_avgs: &'a [Tensor],
    /// Second moments, updated in place.
    pub exp_avg_sqs: &'a [Tensor],
    /// Step counts as f32 scalars on the parameters' device, incremented by the call.
    pub steps: &'a [Tensor],
}

/// PyTorch's fused AdamW step over one group.
///
/// # Errors
/// The text of libtorch's error: lists of different shapes, devices or types.
pub fn fused_adamw(group: &AdamWGroup<'_>, h: AdamW) -> Result<(), String> {
    let count = group.params.len();
    let lists = [group.grads.len(), group.exp_avgs.len(), group.exp_avg_sqs.len(), group.steps.len()];
    if lists.iter().any(|&n| n != count) {
        return Err(format!("fused_adamw: {count} parameters, but lists of {lists:?}"));
    }
    if count == 0 {
        return Ok(());
    }
    let (p, g) = (pointers(group.params), pointers(group.grads));
    let (m, v, s) = (pointers(group.exp_avgs), pointers(group.exp_avg_sqs), pointers(group.steps));
    // SAFETY: each list holds `count` pointers to live at::Tensor objects, borrowed for the length of the call.
    check(unsafe {
        mt_fused_adamw(
            p.as_ptr(),
            g.as_ptr(),
            m.as_ptr(),
            v.as_ptr(),
            s.as_ptr(),
            count,
            h.lr,
            h.beta1,
            h.beta2,
            h.weight_decay,
            h.eps,
        )
    })
}

/// Scales gradients in place so that their global L2 norm is at most `max_norm`; returns the norm before scaling.
///
/// # Errors
/// The text of libtorch's error.
pub fn clip_grad_norm(grads: &[Tensor], max_norm: f64) -> Result<f64, String> {
    if grads.is_empty() {
        return Ok(0.0);
    }
    let pointers = pointers(grads);
    let mut norm = 0.0;
    // SAFETY: as above; `norm` outlives the call.
    check(unsafe { mt_clip_grad_norm(pointers.as_ptr(), pointers.len(), max_norm, &mut norm) })?;
    Ok(norm)
}

/// Multiplies every tensor by `factor`, in place and outside the graph.
///
/// # Errors
/// The text of libtorch's error.
pub fn scale(tensors: &[Tensor], factor: f64) -> Result<(), String> {
    if tensors.is_empty() {
        return Ok(());
    }
    let pointers = pointers(tensors);
    // SAFETY: the pointers are to live at::Tensor objects, borrowed for the length of the call.
    check(unsafe { mt_scale(pointers.as_ptr(), pointers.len(), factor) })
}

/// Lets go of the gradients of leaf tensors: they take no memory until the next backward pass makes new ones.
///
/// # Errors
/// The text of libtorch's error.
pub fn drop_gradients(tensors: &[Tensor]) -> Result<(), String> {
    let pointers = pointers(tensors);
    // SAFETY: as above.
    check(unsafe { mt_drop_gradients(pointers.as_ptr(), pointers.len()) })
}

/// Moves every tensor of `from` towards its partner in `to`: `from += weight * (to - from)`, in place, outside the graph.
///
/// # Errors
/// The text of libtorch's error, or lists of different lengths.
pub fn lerp(from: &[Tensor], to: &[Tensor], weight: f64) -> Result<(), String> {
    if from.len() != to.len() {
        return Err(format!("lerp: {} tensors towards {}", from.len(), to.len()));
    }
    if from.is_empty() {
        return Ok(());
    }
    let (f, t) = (pointers(from), pointers(to));
    // SAFETY: as above; both lists have the same length.
    check(unsafe { mt_lerp(f.as_ptr(), t.as_ptr(), f.len(), weight) })
}

/// Autocast of this thread, from [`Autocast::enter`] until it is dropped. Run the forward pass inside, the backward outside.
#[derive(Debug)]
pub struct Autocast {
    cuda: bool,
    enabled: c_int,
    bfloat16: c_int,
    // autocast is thread-local, so the guard must be dropped where it was made
    _thread: std::marker::PhantomData<*const ()>,
}

impl Autocast {
    /// Turns autocast on for CUDA or CPU operations, in bfloat16 or else float16.
    ///
    /// # Errors
    /// The text of libtorch's error.
    pub fn enter(cuda: bool, bfloat16: bool) -> Result<Autocast, String> {
        let (mut enabled, mut was) = (0, 0);
        // SAFETY: both pointers outlive the call.
        check(unsafe { mt_autocast_enter(cuda.into(), bfloat16.into(), &mut enabled, &mut was) })?;
        Ok(Autocast { cuda, enabled, bfloat16: was, _thread: std::marker::PhantomData })
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: sets thread-local state of libtorch only.
        unsafe { mt_autocast_exit(self.cuda.into(), self.enabled, self.bfloat16) }
    }
}

/// Makes the C allocator keep large buffers between training steps (4-8 % on CPU).
pub fn tune_allocator() {
    // SAFETY: only sets allocator thresholds.
    unsafe { mt_tune_allocator() }
}

/// Loads the CUDA half of libtorch if this machine has it; call before any CUDA query of `tch`.
pub fn load_cuda() -> bool {
    // SAFETY: dlopen of a library by name.
    unsafe { mt_load_cuda() == 1 }
}
