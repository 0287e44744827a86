//! How fast this machine multiplies matrices, and what share of that a training reaches.

use crate::error::Result;
use crate::model::{TchResult, engine};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// How long is measured, after a first product that warms up.
const MEASURED: Duration = Duration::from_millis(150);

/// Operations a second of products of large matrices: the faster of a plain product and a 1 x 1 convolution, which take
/// different libraries on a CPU. Takes about a third of a second.
pub(super) fn measure(device: Device, half: bool) -> Result<f64> {
    let _guard = tch::no_grad_guard();
    rate(device, half).map_err(engine)
}

fn rate(device: Device, half: bool) -> TchResult<f64> {
    let kind = match (half, device.is_cuda()) {
        (false, _) => Kind::Float,
        (true, false) => Kind::BFloat16,
        (true, true) => Kind::Half,
    };
    let n: i64 = if device.is_cuda() { 8192 } else { 1024 };
    let a = Tensor::f_randn([n, n], (Kind::Float, device))?.f_to_kind(kind)?;
    let (b, pixels, kernel) = (a.f_transpose(0, 1)?, a.f_view([1, n, 32, n / 32])?, a.f_view([n, n, 1, 1])?);
    let wait = |t: &Tensor| t.f_select(0, 0)?.f_reshape([-1])?.f_select(0, 0)?.f_double_value(&[]);
    let mut best: f64 = 0.0;
    for convolution in [false, true] {
        let product = || -> TchResult<Tensor> {
            if convolution {
                pixels.f_conv2d(&kernel, None::<&Tensor>, [1, 1], [0, 0], [1, 1], 1)
            } else {
                a.f_matmul(&b)
            }
        };
        wait(&product()?)?;
        let (started, mut count) = (Instant::now(), 0.0);
        while started.elapsed() < MEASURED {
            wait(&product()?)?;
            count += 1.0;
        }
        best = best.max(2.0 * (n * n * n) as f64 * count / started.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// The share of the rate of large products that a training reaches, norms, softmax and optimizer included: what
/// `scripts/bench` measured on a CPU at half the real width, rounded down (f32 161 of 221, bf16 261 of 428 GFLOP/s). That of
/// GPUs is a guess.
pub(super) fn efficiency(device: Device, half: bool) -> f64 {
    match (device.is_cuda(), half) {
        (true, _) => 0.4,
        (false, false) => 0.7,
        (false, true) => 0.6,
    }
}
