//! Each kernel against the plain operations that define it. What computes needs a GPU, and is run on one by
//! `cargo test --workspace -- --ignored gpu`; that the kernels compile is tested everywhere, by tests/python/test_gpu_kernels.py.

use super::*;
use tch::Kind;

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);
const GPU: Device = Device::Cuda(0);

/// The relative distance that rounding a result to bfloat16 makes, and a little more.
const CLOSE: f64 = 3e-3;

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, F32)
}

/// What a kernel is given: in bfloat16.
fn there(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::BFloat16).to_device(GPU)
}

/// What the definition is given: the same values, in f64.
fn rounded(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::BFloat16).to_kind(Kind::Double)
}

fn check(found: Result<Tensor, String>, expected: &Tensor, what: &str) {
    let found = found.unwrap().to_device(Device::Cpu).to_kind(Kind::Double);
    assert_eq!(found.size(), expected.size());
    let distance = (&found - expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
    assert!(distance < CLOSE, "{what}: {distance}");
}

#[test]
#[ignore = "needs a GPU"]
fn norms_and_convolutions_equal_their_definitions() {
    assert!(crate::load_cuda());
    let kernels = GpuKernels::new(GPU, 12, 32, 32).unwrap();
    for (b, h, w, c) in [(2, 24, 24, 64), (3, 30, 17, 96), (1, 1, 1, 8), (2, 9, 70, 2048), (1, 5, 31, 520)] {
        let (x, y) = (random(&[b, h, w, c]), random(&[b, h, w, c]));
        let (weight, bias) = (random(&[9, c]), random(&[c]));
        let there_f32 = |t: &Tensor| t.to_device(GPU);
        for added in [None, Some(&y)] {
            let sum = match added {
                // the sum is rounded as if it had been a step of its own
                Some(y) => rounded(&(x.to_kind(Kind::BFloat16) + y.to_kind(Kind::BFloat16))),
                None => rounded(&x),
            };
            let taps = weight.to_kind(Kind::Double).transpose(0, 1).reshape([c, 1, 3, 3]);
            let doubles = bias.to_kind(Kind::Double);
            let convolved = sum.permute([0, 3, 1, 2]).conv2d(&taps, Some(&doubles), [1, 1], [1, 1], [1, 1], c);
            let found =
                kernels.depthwise(&there(&x), added.map(there).as_ref(), &there_f32(&weight), &there_f32(&bias));
            check(found, &(sum + convolved.permute([0, 2, 3, 1])), "depthwise");
        }
        let scaled = &x * 3 + 1;
        let expected = rounded(&scaled).layer_norm(
            [c],
            Some(&bias.to_kind(Kind::Double)),
            Some(&bias.to_kind(Kind::Double)),
            1e-5,
            false,
        );
        let found = kernels.layer_norm(&there(&scaled), &there_f32(&bias), &there_f32(&bias), 1e-5);
        check(found, &expected, "layer_norm");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn window_attention_equals_the_cpu() {
    assert!(crate::load_cuda());
    for (b, h, w, c, size, head) in [
        (2, 24, 24, 64, 12, 32),
        (3, 30, 17, 96, 12, 32),
        (2, 15, 9, 128, 7, 64),
        (2, 5, 3, 64, 4, 32),
        (1, 3, 2, 64, 1, 64),
        // windows of one row or column of the grid, of all but one, and of as many tokens as are multiplied at once
        (2, 13, 25, 64, 12, 32),
        (2, 11, 12, 64, 12, 32),
        (1, 1, 3, 32, 2, 32),
        (2, 20, 28, 64, 12, 32),
        (1, 8, 12, 128, 12, 64),
        (1, 13, 11, 64, 10, 32),
    ] {
        let kernels = GpuKernels::new(GPU, size, head, 32).unwrap();
        let (qkv, bias) = (random(&[b, h, w, 3 * c]) * 1.5, random(&[3 * c]));
        let (qkv, bias) = (qkv.to_kind(Kind::BFloat16), bias.to_kind(Kind::BFloat16));
        let on_cpu =
            crate::window_attention(&qkv.to_kind(Kind::Float), &bias.to_kind(Kind::Float), c / head, size).unwrap();
        check(
            kernels.window_attention(&qkv.to_device(GPU), &bias.to_device(GPU)),
            &on_cpu.to_kind(Kind::Double),
            "window_attention",
        );
    }
}

#[test]
#[ignore = "needs a GPU"]
fn channel_attention_equals_the_cpu() {
    assert!(crate::load_cuda());
    // fewer tokens than a warp takes at once, several blocks of which the last is shorter, groups that are no multiple of four
    for (b, h, w, c, group) in
        [(2, 24, 24, 64, 32), (3, 30, 17, 192, 32), (2, 15, 9, 192, 64), (40, 1, 1, 64, 32), (2, 41, 39, 320, 64)]
    {
        let kernels = GpuKernels::new(GPU, 12, 32, group).unwrap();
        let qkv = (random(&[b, h, w, 3 * c]) * 1.5).to_kind(Kind::BFloat16);
        let on_cpu = crate::channel_attention(&qkv.to_kind(Kind::Float).view([b, h * w, 3 * c]), c / group).unwrap();
        let found = kernels.channel_attention(&qkv.to_device(GPU));
        check(found, &on_cpu.to_kind(Kind::Double).view([b, h, w, c]), "channel_attention");
        let alone = kernels.channel_attention(&qkv.narrow(0, b - 1, 1).to_device(GPU)).unwrap();
        let together = kernels.channel_attention(&qkv.to_device(GPU)).unwrap();
        assert!(alone.equal(&together.narrow(0, b - 1, 1)), "an image depends on its batch");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn what_is_sent_there_and_back_is_the_same() {
    assert!(crate::load_cuda());
    let bytes: Vec<u8> = (0..=255).cycle().take(6000).collect();
    let there = upload(GPU, &bytes, &[10, 200, 3]).unwrap();
    let expected = Tensor::from_slice(&bytes).view([10, 200, 3]);
    assert!(there.to_device(Device::Cpu).equal(&expected));
    let (one, two) = (Download::begin(&there).unwrap(), Download::begin(&(&there + 1)).unwrap());
    drop(there);
    assert!(one.wait().unwrap().equal(&expected));
    assert!(two.wait().unwrap().equal(&(expected + 1)));
    assert!(upload(GPU, &bytes, &[10, 200, 4]).is_err());
}

#[test]
#[ignore = "needs a GPU"]
fn bytes_are_there_when_used_and_stay_until_then() {
    assert!(crate::load_cuda());
    let side = 2048;
    let sent: Vec<Vec<u8>> = (1..=20).map(|n| vec![n; side * side]).collect();
    let busy = Tensor::randn([8192, 8192], (Kind::BFloat16, GPU));
    // a device that is idle must wait for the bytes; of one that is behind none may be overwritten by those sent later
    for products in [0, 40] {
        for _ in 0..products {
            let _product = busy.matmul(&busy);
        }
        let sum = |bytes: &Vec<u8>| upload(GPU, bytes, &[side as i64, side as i64]).unwrap().sum(Kind::Int64);
        let sums: Vec<Tensor> = sent.iter().map(sum).collect();
        for (n, sum) in (1..).zip(sums) {
            assert_eq!(sum.int64_value(&[]), n * (side * side) as i64);
        }
    }
}

#[test]
fn sizes_without_kernels_are_refused() {
    for (window, head, group, named) in
        [(13, 32, 32, "13 x 13"), (0, 32, 32, "0 x 0"), (12, 48, 32, "heads of 48"), (12, 32, 16, "groups of 16")]
    {
        let error = GpuKernels::new(GPU, window, head, group).unwrap_err();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn what_is_no_gpu_is_refused() {
    assert!(GpuKernels::new(Device::Cpu, 12, 32, 32).unwrap_err().contains("no GPU"));
    assert!(Download::begin(&random(&[2])).unwrap_err().contains("no GPU"));
    assert!(upload(Device::Cpu, &[1], &[1]).unwrap_err().contains("no GPU"));
}
