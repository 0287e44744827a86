//! Operations of inference in bfloat16 on a GPU, which libtorch has only in several steps or not at all, and the way of bytes
//! and tensors to it and back.
//!
//! Guarantees: each equals the plain operations that it stands for up to rounding; sums are taken in f32. Nothing here has
//! gradients. Work goes to the device's default stream, where libtorch's does, so that all of it is in order; bytes go to the device
//! beside it, and what computes with them waits.

use super::ops::{raw, result};
use std::ffi::{c_char, c_int, c_void};
use tch::{Device, Tensor};

unsafe extern "C" {
    fn mt_gpu_program(
        device: c_int,
        window: i64,
        head: i64,
        group: i64,
        source: *const u8,
        length: usize,
        out: *mut *const c_void,
    ) -> *mut c_char;
    fn mt_gpu_layer_norm(
        program: *const c_void,
        x: *const c_void,
        weight: *const c_void,
        bias: *const c_void,
        eps: f64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn mt_gpu_depthwise(
        program: *const c_void,
        x: *const c_void,
        y: *const c_void,
        weight: *const c_void,
        bias: *const c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn mt_gpu_window_attention(
        program: *const c_void,
        qkv: *const c_void,
        bias: *const c_void,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn mt_gpu_channel_attention(program: *const c_void, qkv: *const c_void, out: *mut *mut c_void) -> *mut c_char;
    fn mt_gpu_download(tensor: *const c_void, out: *mut *mut c_void, event: *mut *mut c_void) -> *mut c_char;
    fn mt_gpu_wait(event: *mut c_void) -> *mut c_char;
    fn mt_gpu_upload(
        device: c_int,
        bytes: *const u8,
        shape: *const i64,
        dims: usize,
        out: *mut *mut c_void,
    ) -> *mut c_char;
}

/// What NVRTC compiles.
static SOURCE: &str = include_str!("../cpp/kernels.cu");

/// The kernels for one size of windows, heads and groups, on one GPU.
#[derive(Debug, Clone, Copy)]
pub struct GpuKernels {
    /// Lives as long as the process.
    program: *const c_void,
}

// SAFETY: what it points to is never changed, and its functions may be called by any thread.
unsafe impl Send for GpuKernels {}

impl GpuKernels {
    /// The most channels that [`GpuKernels::layer_norm`] takes.
    pub const MOST_CHANNELS: i64 = 2048;

    /// Compiles the kernels for windows of `window` x `window` tokens, `head` channels a head and `group` channels a group, unless this
    /// process has them.
    ///
    /// # Errors
    /// A text: there are none for these sizes or this GPU, or NVRTC is not beside libtorch.
    pub fn new(device: Device, window: i64, head: i64, group: i64) -> Result<GpuKernels, String> {
        let Device::Cuda(index) = device else { return Err(format!("{device:?} is no GPU")) };
        let index = c_int::try_from(index).map_err(|e| e.to_string())?;
        let mut program = std::ptr::null();
        // SAFETY: the source and `program` outlive the call.
        crate::check(unsafe {
            mt_gpu_program(index, window, head, group, SOURCE.as_ptr(), SOURCE.len(), &mut program)
        })?;
        Ok(GpuKernels { program })
    }

    /// Layer normalisation of x [..., C], C a multiple of 8 up to 2048; weight and bias `[C]` in f32.
    ///
    /// # Errors
    /// A text naming shapes or types that do not fit, or what CUDA says.
    pub fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor, String> {
        // SAFETY: live tensors, borrowed for the call; the program lives for ever.
        result(|out| unsafe { mt_gpu_layer_norm(self.program, raw(x), raw(weight), raw(bias), eps, out) })
    }

    /// `s` plus its 3x3 depthwise convolution with zero padding, where `s` is `x + y`, or `x` alone: [B, H, W, C], C even; weight
    /// [9, C] and bias `[C]` in f32.
    ///
    /// # Errors
    /// As [`GpuKernels::layer_norm`].
    pub fn depthwise(&self, x: &Tensor, y: Option<&Tensor>, weight: &Tensor, bias: &Tensor) -> Result<Tensor, String> {
        let y = y.map_or(std::ptr::null(), raw);
        // SAFETY: as above; `y` may be null.
        result(|out| unsafe { mt_gpu_depthwise(self.program, raw(x), y, raw(weight), raw(bias), out) })
    }

    /// Attention inside windows, as [`crate::window_attention`]; the bias `[3C]` is in bfloat16.
    ///
    /// # Errors
    /// As [`GpuKernels::layer_norm`].
    pub fn window_attention(&self, qkv: &Tensor, bias: &Tensor) -> Result<Tensor, String> {
        // SAFETY: as above.
        result(|out| unsafe { mt_gpu_window_attention(self.program, raw(qkv), raw(bias), out) })
    }

    /// Attention over the channels of each group, scaled by the number of tokens: qkv [B, H, W, 3C], where q, k and v are each
    /// `[groups, group]`, to [B, H, W, C].
    ///
    /// # Errors
    /// As [`GpuKernels::layer_norm`].
    pub fn channel_attention(&self, qkv: &Tensor) -> Result<Tensor, String> {
        // SAFETY: as above.
        result(|out| unsafe { mt_gpu_channel_attention(self.program, raw(qkv), out) })
    }
}

/// Bytes of this shape as a tensor on a GPU. The copy goes on after the call, the bytes may be thrown away at once.
///
/// # Errors
/// libtorch's text, or one when the bytes do not fit the shape.
pub fn upload(device: Device, bytes: &[u8], shape: &[i64]) -> Result<Tensor, String> {
    let Device::Cuda(index) = device else { return Err(format!("{device:?} is no GPU")) };
    let index = c_int::try_from(index).map_err(|e| e.to_string())?;
    if shape.iter().any(|side| *side < 0) || shape.iter().product::<i64>() as usize != bytes.len() {
        return Err(format!("{} bytes for {shape:?}", bytes.len()));
    }
    // SAFETY: the bytes are as many as the shape says, and outlive the call.
    result(|out| unsafe { mt_gpu_upload(index, bytes.as_ptr(), shape.as_ptr(), shape.len(), out) })
}

/// A tensor on its way from a GPU. What the device is asked for later does not delay it.
#[derive(Debug)]
pub struct Download {
    host: Tensor,
    event: *mut c_void,
}

// SAFETY: an event may be waited for by any thread.
unsafe impl Send for Download {}

impl Download {
    /// Begins to fetch the tensor.
    ///
    /// # Errors
    /// libtorch's text: it is on no GPU, or memory does not suffice.
    pub fn begin(tensor: &Tensor) -> Result<Download, String> {
        let mut event = std::ptr::null_mut();
        // SAFETY: a live tensor, borrowed for the call; `event` outlives it.
        let host = result(|out| unsafe { mt_gpu_download(raw(tensor), out, &mut event) })?;
        Ok(Download { host, event })
    }

    /// Waits for it.
    ///
    /// # Errors
    /// What CUDA says, also of what was computed before.
    pub fn wait(mut self) -> Result<Tensor, String> {
        self.arrive()?;
        Ok(self.host.shallow_clone())
    }

    fn arrive(&mut self) -> Result<(), String> {
        match std::mem::replace(&mut self.event, std::ptr::null_mut()) {
            event if event.is_null() => Ok(()),
            // SAFETY: made by mt_gpu_download, and given away once.
            event => crate::check(unsafe { mt_gpu_wait(event) }),
        }
    }
}

impl Drop for Download {
    /// The memory that is being written to must not go before.
    fn drop(&mut self) {
        self.arrive().ok();
    }
}

#[cfg(test)]
mod tests;
