// What the functions of the C ABI share.
#pragma once
#include <ATen/ATen.h>

#include <cstring>
#include <exception>
#include <vector>

// Around every function that can fail: an exception becomes a text, and null means that all went well.
template <typename F> char *guarded(F body) {
    try {
        body();
        return nullptr;
    } catch (const c10::Error &e) {
        return strdup(e.what_without_backtrace());
    } catch (const std::exception &e) {
        return strdup(e.what());
    } catch (...) {
        return strdup("an exception of an unknown type");
    }
}

// Handles of the tensors in a list.
inline std::vector<at::Tensor> tensors(at::Tensor *const *list, size_t count) {
    std::vector<at::Tensor> out;
    out.reserve(count);
    for (size_t i = 0; i < count; ++i) out.push_back(*list[i]);
    return out;
}
