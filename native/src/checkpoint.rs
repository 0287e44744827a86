//! Activation checkpointing.
//!
//! Guarantees: the gradients are bit for bit those of running the segment as it is, if the segment gives the same output for
//! the same input; of a segment only its input is kept until the backward pass; neither a panic nor an exception crosses the
//! boundary between the languages.

use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::{TchError, Tensor};

type Run = unsafe extern "C" fn(*mut c_void, *const c_void, *mut *mut c_void) -> *mut c_char;
type Free = unsafe extern "C" fn(*mut c_void);
type Segment = Box<dyn Fn(&Tensor) -> Result<Tensor, TchError> + Send>;

unsafe extern "C" {
    fn strdup(text: *const c_char) -> *mut c_char;
    fn mt_checkpoint(
        input: *const c_void,
        run: Run,
        free: Free,
        data: *mut c_void,
        output: *mut *mut c_void,
    ) -> *mut c_char;
}

/// `segment(input)`, of which only `input` is kept for the backward pass: there the segment runs a second time, under the
/// autocast of the first, and its parameters' gradients are accumulated as usual. Works also where `input` asks for no
/// gradient. Without gradients (`no_grad`) it simply runs the segment.
///
/// The backward pass may run `segment` in another thread (on CUDA), while the thread that called for it waits.
///
/// # Errors
/// The text of the segment's or libtorch's error, or of the segment's panic. One in the second run is an error of the
/// backward pass.
pub fn checkpoint(
    input: &Tensor,
    segment: impl Fn(&Tensor) -> Result<Tensor, TchError> + Send + 'static,
) -> Result<Tensor, String> {
    let boxed: Box<Segment> = Box::new(Box::new(segment));
    let mut output = std::ptr::null_mut();
    // SAFETY: `input` is a live tensor for the length of the call; the shim takes over the box and frees it once, by `drop_it`;
    // `run_it` and `drop_it` take what they are given here and let no panic out.
    let error = unsafe {
        mt_checkpoint(input.as_ptr() as *const c_void, run_it, drop_it, Box::into_raw(boxed).cast(), &mut output)
    };
    crate::check(error)?;
    // SAFETY: without an error `output` is a tensor that is now ours.
    Ok(unsafe { Tensor::from_ptr(output.cast()) })
}

/// Runs the boxed segment on a borrowed tensor and hands over the output, or returns a text for the caller to free.
unsafe extern "C" fn run_it(data: *mut c_void, input: *const c_void, output: *mut *mut c_void) -> *mut c_char {
    // SAFETY: `data` is the box of `checkpoint`, alive until `drop_it`; `input` is a live tensor, cloned before use.
    let result = catch_unwind(AssertUnwindSafe(|| unsafe {
        let segment = &*data.cast::<Segment>();
        segment(&Tensor::clone_from_ptr(input.cast_mut().cast()))
    }));
    let message = match result {
        Ok(Ok(mut tensor)) => {
            // SAFETY: `output` is valid for the call; the caller owns the tensor from here on, so it is not dropped.
            unsafe { *output = tensor.as_mut_ptr().cast() };
            std::mem::forget(tensor);
            return std::ptr::null_mut();
        }
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            format!("a checkpointed segment panicked: {text}")
        }
    };
    let text = CString::new(message.replace('\0', " ")).unwrap_or_default();
    // SAFETY: a NUL-terminated text, copied.
    unsafe { strdup(text.as_ptr()) }
}

unsafe extern "C" fn drop_it(data: *mut c_void) {
    // SAFETY: called once, for the box of `checkpoint`. A panic in a destructor must not leave this function.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(data.cast::<Segment>()) })));
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// Fixed values: tests in other threads draw from the same generator.
    fn values(shape: &[i64], phase: f64) -> Tensor {
        let count: i64 = shape.iter().product();
        (Tensor::arange(count, (Kind::Float, Device::Cpu)) * 1.7 + phase).sin().view(shape)
    }

    /// Gradients and output of two layers with a residual, with and without checkpointing.
    fn gradients(checkpointed: bool, bfloat16: bool, input_trains: bool) -> Vec<Tensor> {
        let x = values(&[5, 7], 0.1).set_requires_grad(input_trains);
        // each weight is used once: autocast's cache would add up the gradients of two uses in bf16
        let [v, w] = [0.5, 1.3].map(|phase| values(&[7, 7], phase).set_requires_grad(true));
        let (first, second) = (v.shallow_clone(), w.shallow_clone());
        let segment = move |x: &Tensor| {
            let y = x.f_linear(&first, None::<&Tensor>)?.f_gelu("none")?;
            x.f_add(&y.f_linear(&second, None::<&Tensor>)?.f_softmax(-1, Kind::Float)?)
        };
        let y = {
            let _autocast = bfloat16.then(|| crate::Autocast::enter(false, true).unwrap());
            if checkpointed { checkpoint(&x, segment).unwrap() } else { segment(&x).unwrap() }
        };
        (&y * &y).sum(Kind::Float).backward();
        let grads = [(&x, input_trains), (&v, true), (&w, true)];
        let mut out: Vec<Tensor> = grads.into_iter().filter(|g| g.1).map(|g| g.0.grad()).collect();
        out.push(y.detach());
        out
    }

    #[test]
    fn gradients_are_bit_equal() {
        for bfloat16 in [false, true] {
            for input_trains in [false, true] {
                let plain = gradients(false, bfloat16, input_trains);
                let recomputed = gradients(true, bfloat16, input_trains);
                assert_eq!(plain.len(), recomputed.len());
                for (a, b) in plain.iter().zip(&recomputed) {
                    assert!(a.defined() && a.equal(b), "bf16 {bfloat16}, input trains {input_trains}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn errors_and_panics_are_texts() {
        let x = values(&[2, 3], 0.0);
        let error = checkpoint(&x, |x| x.f_matmul(&x.f_ones_like()?)).unwrap_err();
        assert!(error.contains("mat1 and mat2"), "{error}");
        let error = checkpoint(&x, |_| panic!("over")).unwrap_err();
        assert_eq!(error, "a checkpointed segment panicked: over");
    }

    #[test]
    fn a_failing_second_run_is_an_error_of_the_backward_pass() {
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let x = values(&[2, 3], 0.0).set_requires_grad(true);
        let y = checkpoint(&x, move |x| {
            assert_eq!(calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed), 0, "second run");
            x.f_exp()
        });
        let error = y.unwrap().sum(Kind::Float).f_backward().unwrap_err().to_string();
        assert!(error.contains("second run"), "{error}");
    }

    #[test]
    fn the_segment_is_freed_with_the_graph() {
        let token = std::sync::Arc::new(());
        let held = token.clone();
        let x = values(&[2, 3], 0.0).set_requires_grad(true);
        let y = checkpoint(&x, move |x| {
            let _ = &held;
            x.f_exp()
        });
        assert_eq!(std::sync::Arc::strong_count(&token), 2);
        drop(y);
        assert_eq!(std::sync::Arc::strong_count(&token), 1);
    }
}
