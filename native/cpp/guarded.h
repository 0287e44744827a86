// What every function of the C ABI that can fail is wrapped in: an exception becomes a text, and null means that all went well.
#pragma once
#include <ATen/ATen.h>

#include <cstring>
#include <exception>

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
