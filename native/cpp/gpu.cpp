// The kernels of kernels.cu on the GPU at hand: compiled by NVRTC, started through the driver, on the stream that libtorch computes in.
// Neither library is linked, nor are their headers needed: what is taken of them has had the same form since CUDA 11.
#include "guarded.h"
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <dlfcn.h>

#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>

using at::Tensor;

namespace {

// Of cuda.h and nvrtc.h.
constexpr int COMPUTE_CAPABILITY_MAJOR = 75, COMPUTE_CAPABILITY_MINOR = 76;
using Handle = void *;

template <typename F> void find(void *library, const char *name, F &function) {
    function = library ? reinterpret_cast<F>(dlsym(library, name)) : nullptr;
    TORCH_CHECK(function, name, " cannot be loaded: ", library ? "the library is too old" : dlerror());
}

struct Driver {
    int (*begin)(unsigned);
    int (*device)(int *, int);
    int (*attribute)(int *, int, int);
    int (*retain)(Handle *, int);
    int (*push)(Handle);
    int (*pop)(Handle *);
    int (*load)(Handle *, const void *);
    int (*function)(Handle *, Handle, const char *);
    int (*launch)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void **, void **);
    int (*explain)(int, const char **);

    Driver() {
        void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
        find(library, "cuInit", begin);
        find(library, "cuDeviceGet", device);
        find(library, "cuDeviceGetAttribute", attribute);
        find(library, "cuDevicePrimaryCtxRetain", retain);
        find(library, "cuCtxPushCurrent_v2", push);
        find(library, "cuCtxPopCurrent_v2", pop);
        find(library, "cuModuleLoadData", load);
        find(library, "cuModuleGetFunction", function);
        find(library, "cuLaunchKernel", launch);
        find(library, "cuGetErrorString", explain);
        check(begin(0), "cuInit");
    }

    void check(int result, const char *what) const {
        if (result == 0) return;
        const char *text = nullptr;
        explain(result, &text);
        TORCH_CHECK(false, what, ": ", text ? text : "an error of CUDA without a text");
    }
};

const Driver &driver() {
    static const Driver loaded;
    return loaded;
}

// Machine code of `source` for an architecture such as sm_90.
std::string compile(const std::string &source, const std::vector<std::string> &options) {
    int (*create)(Handle *, const char *, const char *, int, const char *const *, const char *const *), (*build)(Handle, int, const char *const *);
    int (*log_size)(Handle, size_t *), (*log)(Handle, char *), (*code_size)(Handle, size_t *), (*code)(Handle, char *), (*destroy)(Handle *);
    // libtorch's own door to NVRTC, which is found wherever libtorch's libraries are
    void *library = dlopen("libcaffe2_nvrtc.so", RTLD_LAZY | RTLD_LOCAL);
    find(library, "nvrtcCreateProgram", create);
    find(library, "nvrtcCompileProgram", build);
    find(library, "nvrtcGetProgramLogSize", log_size);
    find(library, "nvrtcGetProgramLog", log);
    find(library, "nvrtcGetCUBINSize", code_size);
    find(library, "nvrtcGetCUBIN", code);
    find(library, "nvrtcDestroyProgram", destroy);
    Handle program = nullptr;
    TORCH_CHECK(create(&program, source.c_str(), "kernels.cu", 0, nullptr, nullptr) == 0, "NVRTC takes no program");
    std::unique_ptr<Handle, int (*)(Handle *)> guard(&program, destroy);
    std::vector<const char *> given;
    for (auto &option : options) given.push_back(option.c_str());
    size_t size = 0;
    if (build(program, static_cast<int>(given.size()), given.data()) != 0) {
        std::string text;
        if (log_size(program, &size) == 0 && size > 0) text.resize(size), log(program, &text[0]);
        TORCH_CHECK(false, "NVRTC refuses the kernels: ", text.c_str());
    }
    TORCH_CHECK(code_size(program, &size) == 0 && size > 0, "NVRTC has made no machine code");
    std::string out(size, '\0');
    TORCH_CHECK(code(program, &out[0]) == 0, "NVRTC gives no machine code");
    return out;
}

// The kernels for windows of `window` x `window` tokens, `head` channels a head and `group` channels a group, on one device.
struct Program {
    int64_t window, head, group;
    Handle context = nullptr, depthwise = nullptr, depthwise_of_sum = nullptr, layer_norm = nullptr, window_attention = nullptr;
    Handle channel_products = nullptr, channel_weights = nullptr, channel_mix = nullptr;

    // The context of the device that libtorch uses is current while this lives.
    struct Current {
        explicit Current(Handle context) { driver().check(driver().push(context), "cuCtxPushCurrent"); }
        ~Current() {
            Handle popped;
            driver().pop(&popped);
        }
    };

    Program(int index, int64_t window, int64_t head, int64_t group, const std::string &source) : window(window), head(head), group(group) {
        auto &cuda = driver();
        int device = 0, major = 0, minor = 0;
        cuda.check(cuda.device(&device, index), "cuDeviceGet");
        cuda.check(cuda.attribute(&major, COMPUTE_CAPABILITY_MAJOR, device), "cuDeviceGetAttribute");
        cuda.check(cuda.attribute(&minor, COMPUTE_CAPABILITY_MINOR, device), "cuDeviceGetAttribute");
        TORCH_CHECK(major >= 8, "a GPU of compute capability ", major, ".", minor, " has no products in bf16");
        auto code = compile(source, {"--gpu-architecture=sm_" + std::to_string(10 * major + minor), "--std=c++17",
                                     "-DWINDOW=" + std::to_string(window), "-DHEAD=" + std::to_string(head), "-DGROUP=" + std::to_string(group)});
        // for the life of the process, as libtorch keeps it
        cuda.check(cuda.retain(&context, device), "cuDevicePrimaryCtxRetain");
        Current current(context);
        Handle module = nullptr;
        cuda.check(cuda.load(&module, code.data()), "cuModuleLoadData");
        auto kernel = [&](const char *name, Handle &out) { cuda.check(cuda.function(&out, module, name), name); };
        kernel("depthwise", depthwise);
        kernel("depthwise_of_sum", depthwise_of_sum);
        kernel("layer_norm", layer_norm);
        kernel("window_attention", window_attention);
        kernel("channel_products", channel_products);
        kernel("channel_weights", channel_weights);
        kernel("channel_mix", channel_mix);
    }

    // `arguments` are of the types that the kernel has. The stream is the default one, in which all of this program computes.
    template <typename... Arguments>
    void launch(Handle kernel, const char *name, std::array<int64_t, 3> grid, int64_t threads, Arguments... arguments) const {
        for (auto blocks : grid) TORCH_CHECK(blocks > 0 && blocks < (int64_t(1) << 31), name, " of ", blocks, " blocks");
        TORCH_CHECK(grid[1] < 65536 && grid[2] < 65536, name, ": the batch or the image is too large");
        void *list[] = {static_cast<void *>(&arguments)...};
        Current current(context);
        auto size = [](int64_t n) { return static_cast<unsigned>(n); };
        auto result = driver().launch(kernel, size(grid[0]), size(grid[1]), size(grid[2]), size(threads), 1, 1, 0, nullptr, list, nullptr);
        driver().check(result, name);
    }
};

void check_input(const Tensor &x, at::ScalarType type, at::IntArrayRef shape, const char *name) {
    TORCH_CHECK(x.is_cuda() && x.is_contiguous() && x.scalar_type() == type && x.sizes() == shape, name, " is ", x.toString(), " ", x.sizes(), ", not ", shape);
}

int64_t parts(int64_t all, int64_t part) { return (all + part - 1) / part; }
// n^-0.5, times the logarithm of e to the base 2: the kernels take powers of two.
float scale_of(int64_t n) { return static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(n))); }
int number(int64_t value) {
    TORCH_CHECK(value >= 0 && value < (int64_t(1) << 31), value, " is too large");
    return static_cast<int>(value);
}

} // namespace

extern "C" {

// The kernels for a device, compiled once a process. Kept for ever.
char *mt_gpu_program(int device, int64_t window, int64_t head, int64_t group, const char *source, size_t length, const void **out) {
    return guarded([&] {
        TORCH_CHECK(window > 0 && window <= 12, "there are kernels for windows of up to 12 x 12 tokens, not of ", window, " x ", window);
        auto check = [](const char *what, int64_t width) { TORCH_CHECK(width == 32 || width == 64, "there are kernels for ", what, " of 32 or 64 channels, not for ", what, " of ", width); };
        check("heads", head);
        check("groups", group);
        static std::mutex lock;
        static std::map<std::tuple<int, int64_t, int64_t, int64_t>, std::unique_ptr<Program>> programs;
        std::lock_guard<std::mutex> guard(lock);
        auto &program = programs[{device, window, head, group}];
        if (!program) program = std::make_unique<Program>(device, window, head, group, std::string(source, length));
        *out = program.get();
    });
}

// Layer normalisation of x [..., C] in bfloat16, C a multiple of 8 and at most 2048, with weight and bias [C] in f32.
char *mt_gpu_layer_norm(const void *program, const Tensor *x, const Tensor *weight, const Tensor *bias, double eps, Tensor **out) {
    return guarded([&] {
        auto c = x->size(-1), rows = x->numel() / c;
        TORCH_CHECK(c % 8 == 0 && c <= 2048, "layer normalisation of ", c, " channels");
        check_input(*x, at::kBFloat16, x->sizes(), "the input");
        check_input(*weight, at::kFloat, {c}, "the weight");
        check_input(*bias, at::kFloat, {c}, "the bias");
        auto y = at::empty_like(*x);
        auto &kernels = *static_cast<const Program *>(program);
        // a block has 8 rows, as in kernels.cu
        kernels.launch(kernels.layer_norm, "layer_norm", {parts(rows, 8), 1, 1}, 256, x->const_data_ptr(), weight->const_data_ptr(), bias->const_data_ptr(),
                       y.mutable_data_ptr(), number(rows), number(c / 8), static_cast<float>(eps));
        *out = new Tensor(y);
    });
}

// s + bias + 3x3 depthwise convolution of s, where s = x + y, or x without y: [B, H, W, C] in bfloat16, C even; weight [9, C] and bias
// [C] in f32.
char *mt_gpu_depthwise(const void *program, const Tensor *x, const Tensor *y, const Tensor *weight, const Tensor *bias, Tensor **out) {
    return guarded([&] {
        TORCH_CHECK(x->dim() == 4 && x->size(3) % 2 == 0, "depthwise convolution of ", x->sizes());
        auto b = x->size(0), h = x->size(1), w = x->size(2), c = x->size(3);
        number(h * w * (c / 2)); // the kernel counts an image's pairs of channels in 32 bits
        check_input(*x, at::kBFloat16, x->sizes(), "the input");
        if (y) check_input(*y, at::kBFloat16, x->sizes(), "what is added");
        check_input(*weight, at::kFloat, {9, c}, "the weight");
        check_input(*bias, at::kFloat, {c}, "the bias");
        auto z = at::empty_like(*x);
        auto &kernels = *static_cast<const Program *>(program);
        // rows and columns of a strip, as in kernels.cu
        std::array<int64_t, 3> grid{parts(c / 2, 128), parts(h, 4), b * parts(w, 30)};
        auto run = [&](Handle kernel, const char *name, auto... inputs) {
            kernels.launch(kernel, name, grid, 128, inputs..., weight->const_data_ptr(), bias->const_data_ptr(), z.mutable_data_ptr(), number(h), number(w), number(c / 2));
        };
        if (y) run(kernels.depthwise_of_sum, "depthwise_of_sum", x->const_data_ptr(), y->const_data_ptr());
        else run(kernels.depthwise, "depthwise", x->const_data_ptr());
        *out = new Tensor(z);
    });
}

// Attention inside windows: qkv [B, H, W, 3C] in bfloat16, where q, k and v are each [C / head, head], to [B, H, W, C]. The grid counts
// as padded with tokens whose key and value are `bias` [3C] in bfloat16.
char *mt_gpu_window_attention(const void *program, const Tensor *qkv, const Tensor *bias, Tensor **out) {
    return guarded([&] {
        auto &kernels = *static_cast<const Program *>(program);
        TORCH_CHECK(qkv->dim() == 4 && qkv->size(3) % (3 * kernels.head) == 0, "window attention of ", qkv->sizes());
        auto b = qkv->size(0), h = qkv->size(1), w = qkv->size(2), c = qkv->size(3) / 3;
        check_input(*qkv, at::kBFloat16, qkv->sizes(), "the input");
        check_input(*bias, at::kBFloat16, {3 * c}, "the bias");
        auto y = at::empty({b, h, w, c}, qkv->options());
        // a block has WARPS of kernels.cu
        auto tiles = parts(kernels.window * kernels.window, 16);
        kernels.launch(kernels.window_attention, "window_attention", {c / kernels.head, parts(h, kernels.window) * parts(w, kernels.window), b},
                       32 * (tiles % 3 == 0 ? 3 : 4), qkv->const_data_ptr(), bias->const_data_ptr(), y.mutable_data_ptr(), number(h), number(w), scale_of(kernels.head));
        *out = new Tensor(y);
    });
}

// Attention over the channels of each group, scaled by the number of tokens: qkv [B, H, W, 3C] in bfloat16, where q, k and v are each
// [C / group, group], to [B, H, W, C].
char *mt_gpu_channel_attention(const void *program, const Tensor *qkv, Tensor **out) {
    return guarded([&] {
        auto &kernels = *static_cast<const Program *>(program);
        TORCH_CHECK(qkv->dim() == 4 && qkv->size(3) % (3 * kernels.group) == 0, "channel attention of ", qkv->sizes());
        auto b = qkv->size(0), h = qkv->size(1), w = qkv->size(2), c = qkv->size(3) / 3, tokens = h * w, groups = c / kernels.group;
        check_input(*qkv, at::kBFloat16, qkv->sizes(), "the input");
        // the tokens of a block depend on the image alone: its sums are the same in every batch
        auto share = 32 * parts(parts(tokens, parts(tokens, 512)), 32), blocks = parts(tokens, share);
        auto products = at::empty({b, groups, blocks, kernels.group, kernels.group}, qkv->options().dtype(at::kFloat));
        auto weights = at::empty({b, groups, kernels.group, kernels.group}, qkv->options());
        auto y = at::empty({b, h, w, c}, qkv->options());
        // a block has four groups, as in kernels.cu
        std::array<int64_t, 3> grid{parts(groups, 4), blocks, b};
        kernels.launch(kernels.channel_products, "channel_products", grid, 128, qkv->const_data_ptr(), products.mutable_data_ptr(), number(tokens), number(groups), number(share));
        kernels.launch(kernels.channel_weights, "channel_weights", {groups, b, 1}, 128, products.const_data_ptr(), weights.mutable_data_ptr(), number(blocks), scale_of(tokens));
        kernels.launch(kernels.channel_mix, "channel_mix", grid, 128, qkv->const_data_ptr(), weights.const_data_ptr(), y.mutable_data_ptr(), number(tokens), number(groups), number(share));
        *out = new Tensor(y);
    });
}

// Bytes [shape] to a device, by way of memory that it reads by itself: the copy goes on while this thread does, and while the device
// computes what it was asked for before. The bytes may be thrown away at once.
char *mt_gpu_upload(int index, const uint8_t *bytes, const int64_t *shape, size_t dims, Tensor **out) {
    return guarded([&] {
        const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
        auto pinned = at::empty(at::IntArrayRef(shape, dims), at::TensorOptions(at::kByte).pinned_memory(true));
        memcpy(pinned.mutable_data_ptr(), bytes, pinned.nbytes());
        const c10::impl::VirtualGuardImpl cuda(at::kCUDA);
        const auto computing = cuda.getStream(device);
        Tensor there;
        {
            // always the same stream of a device: libtorch keeps freed memory for the stream that it was allocated on
            static std::mutex lock;
            static std::map<int, c10::Stream> streams;
            std::lock_guard<std::mutex> held(lock);
            auto found = streams.find(index);
            if (found == streams.end()) found = streams.emplace(index, cuda.getStreamFromGlobalPool(device)).first;
            const c10::StreamGuard guard(found->second);
            there = pinned.to(device, at::kByte, /*non_blocking=*/true);
            c10::Event copied(at::kCUDA);
            copied.record(found->second);
            copied.block(computing);
        }
        // it must not be given away before what computes with it has been done
        there.record_stream(computing);
        *out = new Tensor(there);
    });
}

// A tensor on its way to the host, behind all that its device was asked for before. `event` is for mt_gpu_wait, once.
char *mt_gpu_download(const Tensor *tensor, Tensor **out, void **event) {
    return guarded([&] {
        TORCH_CHECK(tensor->is_cuda(), "a tensor on ", tensor->device(), " is no GPU's");
        auto host = at::empty(tensor->sizes(), tensor->options().device(at::kCPU).pinned_memory(true));
        host.copy_(*tensor, /*non_blocking=*/true);
        auto here = std::make_unique<c10::Event>(at::kCUDA);
        here->record(c10::impl::VirtualGuardImpl(at::kCUDA).getStream(tensor->device()));
        *out = new Tensor(host);
        *event = here.release();
    });
}

// Waits until the tensor of mt_gpu_download has come.
char *mt_gpu_wait(void *event) {
    return guarded([&] { std::unique_ptr<c10::Event>(static_cast<c10::Event *>(event))->synchronize(); });
}
}
