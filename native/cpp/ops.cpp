// Differentiable operations over the kernels of kernels.h and oneDNN's matrix products: what PyTorch does slowly on CPUs.
#include "cpu.h"
#include "guarded.h"
#include "kernels.h"
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What every body here runs under: autograd and autocast are dealt with by hand.
struct Bare {
    at::AutoDispatchBelowADInplaceOrView below;
    c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

const Kernels &kernels() {
#ifdef MT_X86
    static const Kernels *chosen = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
                                       ? kernels_avx512()
                                   : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? kernels_avx2()
                                                                                                     : kernels_generic();
    return *chosen;
#else
    return *kernels_generic();
#endif
}

// input [M, K] times weight [N, K] transposed, plus bias [N], by oneDNN; any strides.
Tensor product(const Tensor &input, const Tensor &weight, const std::optional<Tensor> &bias) {
    using Signature = Tensor(const Tensor &, const Tensor &, const std::optional<Tensor> &, c10::string_view,
                             c10::List<std::optional<at::Scalar>>, std::optional<c10::string_view>);
    static auto call =
        c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", "").typed<Signature>();
    return call.call(input, weight, bias, "none", c10::List<std::optional<at::Scalar>>(), "");
}

// Rows from which the gradient of a weight is computed transposed: the other way oneDNN first turns the long operand.
constexpr int64_t MANY_ROWS = 4096;

// In training bf16 is left to libtorch, which takes oneDNN by itself.
bool by_onednn(at::ScalarType type) { return type == at::kFloat && prefers_onednn(type); }

// g [M, N] transposed times x [M, K].
Tensor weight_gradient(const Tensor &g, const Tensor &x) {
    if (!by_onednn(x.scalar_type())) return g.t().mm(x);
    return g.size(0) >= MANY_ROWS ? product(x.t(), g.t(), std::nullopt).t().contiguous() : product(g.t(), x.t(), std::nullopt);
}

struct Linear : torch::autograd::Function<Linear> {
    static Tensor forward(AutogradContext *ctx, const Tensor &x, const Tensor &weight, const Tensor &bias) {
        Bare bare;
        ctx->save_for_backward({x, weight});
        auto shape = x.sizes().vec();
        shape.back() = weight.size(0);
        return product(x.reshape({-1, x.size(-1)}), weight, bias).view(shape);
    }

    static variable_list backward(AutogradContext *ctx, const variable_list &grads) {
        Bare bare;
        auto saved = ctx->get_saved_variables();
        auto x = saved[0].reshape({-1, saved[0].size(-1)});
        auto g = grads[0].reshape({-1, grads[0].size(-1)});
        Tensor dx, dw, db;
        if (ctx->needs_input_grad(0)) dx = product(g, saved[1].t(), std::nullopt).view(saved[0].sizes());
        if (ctx->needs_input_grad(1)) dw = weight_gradient(g, x);
        if (ctx->needs_input_grad(2)) db = g.sum(0);
        return {dx, dw, db};
    }
};

// A linear layer behind GELU, of which only what goes into GELU is kept: a quarter of a block's activations less, for running
// GELU once more in the backward pass. Under autocast the product is in its type, as everywhere.
struct GeluLinear : torch::autograd::Function<GeluLinear> {
    static Tensor forward(AutogradContext *ctx, const Tensor &h, const Tensor &weight, const Tensor &bias) {
        auto device = h.device().type();
        auto type = at::autocast::is_autocast_enabled(device) ? at::autocast::get_autocast_dtype(device) : h.scalar_type();
        Bare bare;
        auto before = h.to(type), w = weight.to(type);
        ctx->save_for_backward({before, w});
        auto x = at::gelu(before).reshape({-1, h.size(-1)});
        auto shape = h.sizes().vec();
        shape.back() = weight.size(0);
        return (by_onednn(type) ? product(x, w, bias) : at::linear(x, w, bias.to(type))).view(shape);
    }

    static variable_list backward(AutogradContext *ctx, const variable_list &grads) {
        Bare bare;
        auto saved = ctx->get_saved_variables();
        auto h = saved[0].reshape({-1, saved[0].size(-1)});
        auto g = grads[0].to(h.scalar_type()).reshape({-1, grads[0].size(-1)});
        Tensor dh, dw, db;
        // gradients of other types than their inputs are cast by the engine
        if (ctx->needs_input_grad(1)) dw = weight_gradient(g, at::gelu(h));
        if (ctx->needs_input_grad(2)) db = g.sum(0, false, at::kFloat);
        if (ctx->needs_input_grad(0)) {
            auto dx = by_onednn(h.scalar_type()) ? product(g, saved[1].t(), std::nullopt) : g.mm(saved[1]);
            dh = at::gelu_backward(dx, h).view(saved[0].sizes());
        }
        return {dh, dw, db};
    }
};

template <typename F> void each(int64_t tasks, size_t scratch, F body) {
    at::parallel_for(0, tasks, 1, [&](int64_t from, int64_t to) {
        std::unique_ptr<float[]> place(new float[scratch]);
        for (int64_t task = from; task < to; ++task) body(task, place.get());
    });
}

bool is_bfloat16(const Tensor &t) { return t.scalar_type() == at::kBFloat16; }

struct Window : torch::autograd::Function<Window> {
    static WindowAttention describe(const Tensor &qkv, const Tensor &bias, int64_t heads, int64_t size) {
        WindowAttention a{};
        a.batch = qkv.size(0), a.height = qkv.size(1), a.width = qkv.size(2), a.channels = qkv.size(3) / 3;
        a.heads = heads, a.size = size, a.bfloat16 = is_bfloat16(qkv);
        a.qkv = qkv.const_data_ptr(), a.bias = bias.const_data_ptr<float>();
        return a;
    }
    static int64_t windows(const WindowAttention &a) {
        return a.batch * ((a.height + a.size - 1) / a.size) * ((a.width + a.size - 1) / a.size);
    }

    static Tensor forward(AutogradContext *ctx, const Tensor &given, const Tensor &bias, int64_t heads, int64_t size) {
        Bare bare;
        auto qkv = given.contiguous();
        ctx->save_for_backward({qkv, bias});
        ctx->saved_data["heads"] = heads;
        ctx->saved_data["size"] = size;
        auto a = describe(qkv, bias, heads, size);
        auto out = at::empty({a.batch, a.height, a.width, a.channels}, qkv.options());
        a.out = out.mutable_data_ptr();
        each(windows(a) * heads, kernels().window_scratch(a), [&](int64_t t, float *s) { kernels().window_forward(a, t, s); });
        return out;
    }

    static variable_list backward(AutogradContext *ctx, const variable_list &grads) {
        Bare bare;
        auto saved = ctx->get_saved_variables();
        auto heads = ctx->saved_data["heads"].toInt(), size = ctx->saved_data["size"].toInt();
        auto a = describe(saved[0], saved[1], heads, size);
        auto g = grads[0].to(saved[0].scalar_type()).contiguous();
        auto grad_qkv = at::empty_like(saved[0]);
        bool pads = a.height % size != 0 || a.width % size != 0;
        Tensor by_window;
        if (pads) {
            by_window = at::zeros({windows(a), 3 * a.channels}, saved[1].options());
            a.grad_bias = by_window.mutable_data_ptr<float>();
        }
        a.grad_out = g.const_data_ptr();
        a.grad_qkv = grad_qkv.mutable_data_ptr();
        each(windows(a) * heads, kernels().window_scratch(a), [&](int64_t t, float *s) { kernels().window_backward(a, t, s); });
        return {grad_qkv, pads ? by_window.sum(0) : Tensor(), Tensor(), Tensor()};
    }
};

struct Channel : torch::autograd::Function<Channel> {
    static ChannelAttention describe(const Tensor &qkv, int64_t groups) {
        ChannelAttention a{};
        a.batch = qkv.size(0), a.tokens = qkv.size(1), a.channels = qkv.size(2) / 3, a.groups = groups;
        a.bfloat16 = is_bfloat16(qkv), a.qkv = qkv.const_data_ptr();
        return a;
    }

    static Tensor forward(AutogradContext *ctx, const Tensor &given, int64_t groups) {
        Bare bare;
        auto qkv = given.contiguous();
        ctx->save_for_backward({qkv});
        ctx->saved_data["groups"] = groups;
        auto a = describe(qkv, groups);
        auto out = at::empty({a.batch, a.tokens, a.channels}, qkv.options());
        a.out = out.mutable_data_ptr();
        each(a.batch * groups, kernels().channel_scratch(a), [&](int64_t t, float *s) { kernels().channel_forward(a, t, s); });
        return out;
    }

    static variable_list backward(AutogradContext *ctx, const variable_list &grads) {
        Bare bare;
        auto qkv = ctx->get_saved_variables()[0];
        auto a = describe(qkv, ctx->saved_data["groups"].toInt());
        auto g = grads[0].to(qkv.scalar_type()).contiguous();
        auto grad_qkv = at::empty_like(qkv);
        a.grad_out = g.const_data_ptr();
        a.grad_qkv = grad_qkv.mutable_data_ptr();
        each(a.batch * a.groups, kernels().channel_scratch(a), [&](int64_t t, float *s) { kernels().channel_backward(a, t, s); });
        return {grad_qkv, Tensor()};
    }
};

struct ResidualDepthwise : torch::autograd::Function<ResidualDepthwise> {
    static Depthwise describe(const Tensor &x) {
        Depthwise a{};
        a.batch = x.size(0), a.height = x.size(1), a.width = x.size(2), a.channels = x.size(3);
        a.bfloat16 = is_bfloat16(x);
        return a;
    }
    static Tensor convolved(const Tensor &x, const Tensor &weight, const float *bias) {
        auto a = describe(x);
        auto out = at::empty_like(x);
        a.x = x.const_data_ptr(), a.out = out.mutable_data_ptr();
        a.weight = weight.const_data_ptr<float>(), a.bias = bias;
        each(a.batch * a.height, 0, [&](int64_t t, float *) { kernels().depthwise(a, t); });
        return out;
    }

    static Tensor forward(AutogradContext *ctx, const Tensor &given, const Tensor &weight, const Tensor &bias) {
        Bare bare;
        auto x = given.contiguous();
        ctx->save_for_backward({x, weight});
        auto taps = weight.reshape({-1, 9}).t().contiguous();
        return convolved(x, taps, bias.const_data_ptr<float>());
    }

    static variable_list backward(AutogradContext *ctx, const variable_list &grads) {
        Bare bare;
        auto saved = ctx->get_saved_variables();
        auto x = saved[0];
        auto g = grads[0].to(x.scalar_type()).contiguous();
        Tensor dx, dw, db;
        if (ctx->needs_input_grad(0)) dx = convolved(g, saved[1].reshape({-1, 9}).t().flip(0).contiguous(), nullptr);
        if (ctx->needs_input_grad(1) || ctx->needs_input_grad(2)) {
            auto a = describe(x);
            auto partial = at::empty({a.batch * a.height, 10, a.channels}, saved[1].options());
            a.x = x.const_data_ptr(), a.grad_out = g.const_data_ptr(), a.partial = partial.mutable_data_ptr<float>();
            each(a.batch * a.height, 0, [&](int64_t t, float *) { kernels().depthwise_weights(a, t); });
            auto sums = partial.sum(0);
            dw = sums.narrow(0, 0, 9).t().reshape(saved[1].sizes());
            db = sums[9].clone();
        }
        return {dx, dw, db};
    }
};

bool autocast(const Tensor &t) { return at::autocast::is_autocast_enabled(t.device().type()); }

} // namespace

extern "C" {

// Whether the operations below take this tensor: f32 or bfloat16 on the CPU.
int mt_has_kernels(const Tensor *x) {
    return x->defined() && x->device().is_cpu() && (x->scalar_type() == at::kFloat || x->scalar_type() == at::kBFloat16);
}

char *mt_linear(const Tensor *x, const Tensor *weight, const Tensor *bias, Tensor **out) {
    return guarded([&] {
        bool ours = x->device().is_cpu() && !autocast(*x) && x->scalar_type() == at::kFloat && weight->scalar_type() == at::kFloat &&
                    x->dim() > 1 && x->numel() > 0 && by_onednn(at::kFloat);
        *out = new Tensor(ours ? Linear::apply(*x, *weight, *bias) : at::linear(*x, *weight, *bias));
    });
}

char *mt_gelu_linear(const Tensor *h, const Tensor *weight, const Tensor *bias, Tensor **out) {
    return guarded([&] {
        TORCH_CHECK(mt_has_kernels(h) && h->dim() > 1 && weight->dim() == 2 && weight->size(1) == h->size(-1), "a linear layer of ",
                    h->toString(), " ", h->sizes(), " with weights ", weight->sizes());
        *out = new Tensor(GeluLinear::apply(*h, *weight, *bias));
    });
}

char *mt_window_attention(const Tensor *qkv, const Tensor *bias, int64_t heads, int64_t size, Tensor **out) {
    return guarded([&] {
        TORCH_CHECK(mt_has_kernels(qkv) && qkv->dim() == 4 && heads > 0 && size > 0 && qkv->size(3) % (3 * heads) == 0, "window attention of ",
                    qkv->toString(), " ", qkv->sizes(), " with ", heads, " heads");
        TORCH_CHECK(bias->is_cpu() && bias->scalar_type() == at::kFloat && bias->is_contiguous() && bias->numel() == qkv->size(3),
                    "window attention with a bias of ", bias->toString(), " ", bias->sizes());
        *out = new Tensor(Window::apply(*qkv, *bias, heads, size));
    });
}

char *mt_channel_attention(const Tensor *qkv, int64_t groups, Tensor **out) {
    return guarded([&] {
        TORCH_CHECK(mt_has_kernels(qkv) && qkv->dim() == 3 && groups > 0 && qkv->size(2) % (3 * groups) == 0, "channel attention of ",
                    qkv->toString(), " ", qkv->sizes(), " in ", groups, " groups");
        *out = new Tensor(Channel::apply(*qkv, groups));
    });
}

char *mt_residual_depthwise(const Tensor *x, const Tensor *weight, const Tensor *bias, Tensor **out) {
    return guarded([&] {
        TORCH_CHECK(mt_has_kernels(x) && x->dim() == 4 && weight->is_cpu() && bias->is_cpu() && weight->scalar_type() == at::kFloat && bias->scalar_type() == at::kFloat &&
                        weight->numel() == 9 * x->size(3) && bias->is_contiguous() && bias->numel() == x->size(3),
                    "3x3 depthwise convolution of ", x->toString(), " ", x->sizes(), " with weights ", weight->sizes());
        *out = new Tensor(ResidualDepthwise::apply(*x, *weight, *bias));
    });
}
}
