// Calls of libtorch that tch 0.24 does not expose, behind a C ABI. Every function that can fail returns null, or an error text that the
// caller frees with mt_free; no C++ exception crosses the boundary.
#include "guarded.h"
#include <ATen/autocast_mode.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <c10/core/GradMode.h>
#include <dlfcn.h>
#include <malloc.h>

#include <optional>
#include <vector>

extern "C" {

void mt_free(char *text) { free(text); }

// One AdamW step over a group; `steps` are f32 scalars, incremented here (the kernel gives NaN for a step of 0).
char *mt_fused_adamw(at::Tensor *const *params, at::Tensor *const *grads, at::Tensor *const *exp_avgs,
                     at::Tensor *const *exp_avg_sqs, at::Tensor *const *steps, size_t count, double lr, double beta1,
                     double beta2, double weight_decay, double eps) {
    return guarded([&] {
        c10::NoGradGuard no_grad;
        auto p = tensors(params, count);
        auto g = tensors(grads, count);
        auto m = tensors(exp_avgs, count);
        auto v = tensors(exp_avg_sqs, count);
        auto s = tensors(steps, count);
        std::vector<at::Tensor> none;
        at::_foreach_add_(s, at::Scalar(1.0));
        at::_fused_adamw_(p, g, m, v, none, s, lr, beta1, beta2, weight_decay, eps, /*amsgrad=*/false,
                          /*maximize=*/false, std::nullopt, std::nullopt);
    });
}

// Scales the gradients in place so that their global L2 norm is at most max_norm; writes the norm before clipping.
char *mt_clip_grad_norm(at::Tensor *const *grads, size_t count, double max_norm, double *norm_out) {
    return guarded([&] {
        c10::NoGradGuard no_grad;
        auto g = tensors(grads, count);
        auto norms = at::_foreach_norm(g, 2.0);
        double norm = at::stack(norms).norm(2.0).item<double>();
        *norm_out = norm;
        double scale = max_norm / (norm + 1e-6);
        if (scale < 1.0) at::_foreach_mul_(g, at::Scalar(scale));
    });
}

// Multiplies every tensor in place.
char *mt_scale(at::Tensor *const *list, size_t count, double factor) {
    return guarded([&] {
        c10::NoGradGuard no_grad;
        auto t = tensors(list, count);
        at::_foreach_mul_(t, at::Scalar(factor));
    });
}

// Lets go of the gradients; the next backward pass makes new ones.
char *mt_drop_gradients(at::Tensor *const *list, size_t count) {
    return guarded([&] {
        for (size_t i = 0; i < count; ++i) list[i]->mutable_grad().reset();
    });
}

// from += weight * (to - from), in place.
char *mt_lerp(at::Tensor *const *from, at::Tensor *const *to, size_t count, double weight) {
    return guarded([&] {
        c10::NoGradGuard no_grad;
        auto f = tensors(from, count);
        auto t = tensors(to, count);
        at::_foreach_lerp_(f, t, at::Scalar(weight));
    });
}

// Autocast of this thread on CPU (cuda = 0) or CUDA, in bfloat16 or float16; writes what was set before.
char *mt_autocast_enter(int cuda, int bfloat16, int *was_enabled, int *was_bfloat16) {
    return guarded([&] {
        auto device = cuda ? at::kCUDA : at::kCPU;
        *was_enabled = at::autocast::is_autocast_enabled(device);
        *was_bfloat16 = at::autocast::get_autocast_dtype(device) == at::kBFloat16;
        at::autocast::set_autocast_dtype(device, bfloat16 ? at::kBFloat16 : at::kHalf);
        at::autocast::set_autocast_enabled(device, true);
        at::autocast::increment_nesting();
    });
}

// Undoes mt_autocast_enter; the cast weights are dropped with the outermost level.
void mt_autocast_exit(int cuda, int enabled, int bfloat16) {
    auto device = cuda ? at::kCUDA : at::kCPU;
    free(guarded([&] {
        if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
        at::autocast::set_autocast_enabled(device, enabled != 0);
        at::autocast::set_autocast_dtype(device, bfloat16 ? at::kBFloat16 : at::kHalf);
    }));
}

// Keeps large buffers in the heap between steps instead of returning them to the kernel each time.
void mt_tune_allocator() {
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    // of the other arenas none holds a block of more than 64 MB: a training in a thread of its own would map and unmap those
    mallopt(M_ARENA_MAX, 1);
}

// Loads the CUDA half of libtorch; must run before any other CUDA query. Returns 1 when it is there.
int mt_load_cuda() { return dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_GLOBAL) != nullptr; }
}
