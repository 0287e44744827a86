// Layers of inference: weights laid out once for oneDNN, and what follows a product computed while its tiles are in the cache.
#include "cpu.h"
#include "guarded.h"
#include <ATen/core/dispatch/Dispatcher.h>

#ifdef MT_X86
#include <cpuid.h>
#endif

using at::Tensor;

namespace {

using Scalars = c10::List<std::optional<at::Scalar>>;
using Text = std::optional<c10::string_view>;

template <typename Signature> auto operation(const char *name, const char *overload) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Signature>();
}

bool onednn() {
    static const bool answer = at::globalContext().userEnabledMkldnn() &&
                               c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""}).has_value() &&
                               c10::Dispatcher::singleton().findSchema({"mkldnn::_reorder_linear_weight", ""}).has_value();
    return answer;
}

bool intel() {
#ifdef MT_X86
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(0, &a, &b, &c, &d) && b == signature_INTEL_ebx && c == signature_INTEL_ecx && d == signature_INTEL_edx;
#else
    return false;
#endif
}

// With AVX-512 alone oneDNN makes f32 of bf16 first, which takes longer than products in f32; so do libtorch's own.
bool bfloat16_products() {
#ifdef MT_X86
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

} // namespace

// MKL, behind PyTorch's products in f32, is at its best on its maker's processors; on others oneDNN is faster. Asked of the
// processor and not of the clock: a resumed run must take the same way to be the same to the bit.
bool prefers_onednn(at::ScalarType type) {
#ifdef MT_X86
    static const bool f32 = onednn() && !intel(), bf16 = onednn() && bfloat16_products();
    return (type == at::kFloat && f32) || (type == at::kBFloat16 && bf16);
#else
    return false;
#endif
}

extern "C" {

int mt_has_bfloat16_products() { return prefers_onednn(at::kBFloat16); }

// The weight [out, in] in oneDNN's layout, or null where libtorch's own product is taken.
char *mt_pack_linear(const Tensor *weight, Tensor **out) {
    return guarded([&] {
        *out = nullptr;
        if (!weight->device().is_cpu() || !prefers_onednn(weight->scalar_type())) return;
        static auto pack = operation<Tensor(const Tensor &, std::optional<c10::SymInt>)>("mkldnn::_reorder_linear_weight", "");
        *out = new Tensor(pack.call(*weight, std::nullopt));
    });
}

// x [..., in] W^t + b, then GELU or the sum with `residual` [..., out] if there is one. `packed` is of mt_pack_linear.
char *mt_inference_linear(const Tensor *x, const Tensor *weight, int packed, const Tensor *bias, int gelu, const Tensor *residual, Tensor **out) {
    return guarded([&] {
        if (gelu && !residual && x->is_cuda() && x->scalar_type() == at::kBFloat16) {
            // inside the product, by the approximation with tanh: 5e-4 away at most; the sum before it is not rounded, which makes up to
            // 8e-3 between 2 and 4
            auto y = at::_addmm_activation(*bias, x->reshape({-1, x->size(-1)}), weight->t(), 1, 1, /*use_gelu=*/true);
            auto shape = x->sizes().vec();
            shape.back() = y.size(-1);
            *out = new Tensor(y.view(shape));
            return;
        }
        if (!packed) {
            auto y = at::linear(*x, *weight, *bias);
            if (gelu) at::gelu_(y);
            if (residual) y.add_(*residual);
            *out = new Tensor(y);
            return;
        }
        using Unary = Tensor(const Tensor &, const Tensor &, const std::optional<Tensor> &, c10::string_view, Scalars, Text);
        using Binary = Tensor(const Tensor &, const Tensor &, const Tensor &, const std::optional<Tensor> &, c10::string_view);
        static auto unary = operation<Unary>("mkldnn::_linear_pointwise", "");
        static auto binary = operation<Binary>("mkldnn::_linear_pointwise", "binary");
        auto y = residual ? binary.call(*x, *residual, *weight, *bias, "add")
                          : unary.call(*x, *weight, *bias, gelu ? "gelu" : "none", Scalars(), gelu ? "none" : "");
        *out = new Tensor(y);
    });
}
}
