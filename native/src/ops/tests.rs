//! Each operation against the plain ones that define it, in value and in gradients.

use super::*;
use tch::{Device, Kind};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, F32)
}

/// Runs `fast` on inputs of `kind` and `plain` on the same in f64, and compares values and all gradients.
fn compare(shapes: &[&[i64]], kind: Kind, fast: impl Fn(&[Tensor]) -> Tensor, plain: impl Fn(&[Tensor]) -> Tensor) {
    tch::manual_seed(11);
    let inputs: Vec<Tensor> = shapes.iter().map(|s| random(s)).collect();
    // the first is an activation of the given kind, the others are parameters
    let typed = |i: usize, t: &Tensor| if i == 0 { t.to_kind(kind) } else { t.shallow_clone() };
    let run = |double: bool, f: &dyn Fn(&[Tensor]) -> Tensor| {
        let leaves: Vec<Tensor> = inputs
            .iter()
            .enumerate()
            .map(|(i, t)| typed(i, t).detach().copy().to_kind(if double { Kind::Double } else { typed(i, t).kind() }))
            .map(|t| t.set_requires_grad(true))
            .collect();
        let y = f(&leaves);
        let weights = Tensor::arange(y.numel() as i64, F32).sin().view_as(&y);
        (y.to_kind(Kind::Double) * weights.to_kind(Kind::Double)).sum(Kind::Double).backward();
        let mut out = vec![y.detach()];
        out.extend(leaves.iter().map(|t| t.grad()));
        out
    };
    let (got, expected) = (run(false, &fast), run(true, &plain));
    let tolerance = if kind == Kind::Float { 5e-6 } else { 3e-2 };
    for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
        if !a.defined() {
            assert_eq!(b.abs().max().double_value(&[]), 0.0, "output {i} has no gradient");
            continue;
        }
        assert_eq!(a.size(), b.size());
        let scale = b.abs().max().double_value(&[]).max(1.0);
        let worst = (a.to_kind(Kind::Double) - b).abs().max().double_value(&[]) / scale;
        assert!(worst < tolerance, "{kind:?}, {shapes:?}: output {i} differs by {worst}");
        assert!(b.abs().max().double_value(&[]) > 1e-3, "output {i} is all but zero: nothing is compared");
    }
}

#[test]
fn linear_equals_its_definition() {
    // more rows than the limit from which weight gradients are computed the other way, and fewer
    for rows in [5000, 37] {
        compare(
            &[&[2, rows / 2, 24], &[40, 24], &[40]],
            Kind::Float,
            |t| linear(&t[0], &t[1], &t[2]).unwrap(),
            |t| t[0].matmul(&t[1].tr()) + &t[2],
        );
    }
}

#[test]
fn linear_of_gelu_equals_its_definition() {
    let plain = |t: &[Tensor]| t[0].gelu("none").matmul(&t[1].tr()) + &t[2];
    let fast = |t: &[Tensor]| gelu_linear(&t[0], &t[1], &t[2]).unwrap();
    compare(&[&[2, 40, 24], &[40, 24], &[40]], Kind::Float, fast, plain);
    let autocast = |t: &[Tensor]| {
        let _autocast = crate::Autocast::enter(false, true).unwrap();
        fast(t)
    };
    compare(&[&[2, 40, 24], &[40, 24], &[40]], Kind::BFloat16, autocast, plain);
}

#[test]
fn dropped_gradients_are_made_anew() {
    let x = random(&[3]).set_requires_grad(true);
    for _ in 0..2 {
        crate::drop_gradients(std::slice::from_ref(&x)).unwrap();
        assert!(!x.grad().defined());
        x.sum(Kind::Float).backward();
        assert!(x.grad().equal(&Tensor::ones([3], F32)));
    }
}

#[test]
fn a_frozen_weight_gets_no_gradient() {
    let (x, w, b) = (random(&[3, 8]).set_requires_grad(true), random(&[4, 8]), random(&[4]).set_requires_grad(true));
    linear(&x, &w, &b).unwrap().sum(Kind::Float).backward();
    assert!(!w.grad().defined());
    assert!(x.grad().allclose(&w.sum_dim_intlist(&[0i64][..], false, Kind::Float).expand_as(&x), 1e-5, 1e-5, false));
    assert!(b.grad().equal(&Tensor::full([4], 3.0, F32)));
}

/// The definition: pads the grid of tokens with the bias, and attends in every window.
fn plain_windows(qkv: &Tensor, bias: &Tensor, heads: i64, size: i64) -> Tensor {
    let (b, h, w, c3) = qkv.size4().unwrap();
    let c = c3 / 3;
    let (rows, columns) = ((h + size - 1) / size, (w + size - 1) / size);
    let right = bias.expand([b, h, columns * size - w, c3], false);
    let wide = Tensor::cat(&[qkv.shallow_clone(), right], 2);
    let below = bias.expand([b, rows * size - h, columns * size, c3], false);
    let qkv = Tensor::cat(&[wide, below], 1)
        .view(&[b, rows, size, columns, size, 3, heads, c / heads][..])
        .permute(&[5, 0, 1, 3, 6, 2, 4, 7][..])
        .reshape([3, b * rows * columns, heads, size * size, c / heads]);
    let q = qkv.select(0, 0) * ((c / heads) as f64).powf(-0.5);
    let p = q.matmul(&qkv.select(0, 1).transpose(-2, -1)).softmax(-1, qkv.kind());
    p.matmul(&qkv.select(0, 2))
        .view(&[b, rows, columns, heads, size, size, c / heads][..])
        .permute(&[0, 1, 4, 2, 5, 3, 6][..])
        .reshape([b, rows * size, columns * size, c])
        .narrow(1, 0, h)
        .narrow(2, 0, w)
}

#[test]
fn window_attention_equals_its_definition() {
    for kind in [Kind::Float, Kind::BFloat16] {
        // (height, width, channels, heads, size): no padding, padding both ways, narrower than a window, odd head widths
        for (h, w, c, heads, size) in
            [(12, 24, 64, 2, 12), (15, 9, 96, 3, 6), (3, 2, 8, 2, 5), (7, 7, 60, 3, 3), (24, 13, 34, 1, 12)]
        {
            compare(
                &[&[2, h, w, 3 * c], &[3 * c]],
                kind,
                |t| window_attention(&t[0], &t[1], heads, size).unwrap(),
                |t| plain_windows(&t[0], &t[1], heads, size),
            );
        }
    }
}

fn plain_channels(qkv: &Tensor, groups: i64) -> Tensor {
    let (b, n, c3) = qkv.size3().unwrap();
    let c = c3 / 3;
    let qkv = qkv.view([b, n, 3, groups, c / groups]).permute([2, 0, 3, 1, 4]);
    let q = qkv.select(0, 0) * (n as f64).powf(-0.5);
    let p = q.transpose(-1, -2).matmul(&qkv.select(0, 1)).softmax(-1, qkv.kind());
    qkv.select(0, 2).matmul(&p.transpose(-1, -2)).transpose(1, 2).reshape([b, n, c])
}

#[test]
fn channel_attention_equals_its_definition() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for (n, c, groups) in [(144, 64, 2), (300, 96, 2), (5, 8, 4), (129, 34, 1)] {
            compare(
                &[&[2, n, 3 * c]],
                kind,
                |t| channel_attention(&t[0], groups).unwrap(),
                |t| plain_channels(&t[0], groups),
            );
        }
    }
}

#[test]
fn residual_depthwise_equals_its_definition() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for (h, w, c) in [(7, 9, 32), (1, 5, 19), (3, 1, 8)] {
            compare(
                &[&[2, h, w, c], &[c, 1, 3, 3], &[c]],
                kind,
                |t| residual_depthwise(&t[0], &t[1], &t[2]).unwrap(),
                |t| {
                    let x = t[0].permute([0, 3, 1, 2]);
                    let y = x.conv2d(&t[1], Some(&t[2]), [1, 1], [1, 1], [1, 1], c) + x;
                    y.permute([0, 2, 3, 1])
                },
            );
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let qkv = random(&[1, 24, 24, 192]).set_requires_grad(true);
    let bias = random(&[192]).set_requires_grad(true);
    let run = |threads| {
        tch::set_num_threads(threads);
        let y = window_attention(&qkv, &bias, 2, 7).unwrap();
        let y = channel_attention(&Tensor::cat(&[&y, &y, &y], -1).view([1, 576, 192]), 2).unwrap();
        let grads = Tensor::run_backward(&[y.square().sum(Kind::Float)], &[&qkv, &bias], false, false);
        (y.detach(), grads[0].copy(), grads[1].copy())
    };
    let before = tch::get_num_threads();
    let (one, three) = (run(1), run(3));
    tch::set_num_threads(before);
    assert!(one.0.equal(&three.0) && one.1.equal(&three.1) && one.2.equal(&three.2));
}

#[test]
fn not_a_number_stays_one_in_bfloat16() {
    let x = Tensor::full([1, 3, 3, 16], f64::NAN, (Kind::BFloat16, Device::Cpu));
    let y = residual_depthwise(&x, &random(&[16, 1, 3, 3]), &random(&[16])).unwrap();
    assert!(bool::try_from(y.isnan().all()).unwrap());
    let y = window_attention(&Tensor::full([1, 3, 3, 48], f64::NAN, F32), &random(&[48]), 1, 2).unwrap();
    assert!(bool::try_from(y.isnan().all()).unwrap());
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let qkv = random(&[1, 4, 4, 30]);
    assert!(window_attention(&qkv, &random(&[30]), 4, 2).unwrap_err().contains("4 heads"));
    for none in [0, -1] {
        assert!(window_attention(&qkv, &random(&[30]), none, 2).is_err());
        assert!(channel_attention(&random(&[1, 4, 12]), none).is_err());
    }
    assert!(!has_kernels(&Tensor::new()));
    assert!(window_attention(&qkv, &random(&[29]), 2, 2).unwrap_err().contains("29"));
    assert!(channel_attention(&random(&[1, 4, 10]), 2).unwrap_err().contains("2 groups"));
    assert!(residual_depthwise(&qkv, &random(&[3, 1, 3, 3]), &random(&[30])).unwrap_err().contains("weights"));
}
