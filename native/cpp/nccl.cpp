// c10d's NCCL, for collectives between GPUs. A library of its own: it needs libtorch_cuda, and is loaded only where that is.
#define USE_C10D_NCCL
#include "guarded.h"
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <chrono>
#include <cstdlib>
#include <string>

extern "C" {

// Takes this GPU for the calling thread, and writes the 16 bytes that no other one has.
char *mt_nccl_take(int device, char *out) {
    return guarded([&] {
        c10::cuda::set_device(static_cast<c10::DeviceIndex>(device));
        memcpy(out, at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(device))->uuid.bytes, 16);
    });
}

// Lets a group talk through NCCL about tensors on this GPU, which no other of its processes uses. `group` is a
// c10::intrusive_ptr<c10d::ProcessGroup>, `store` one of c10d::Store.
char *mt_nccl_add(void *group, void *store, int device, int64_t timeout_ms) {
    return guarded([&] {
        // waiting for a collective ends with an exception when a process is gone or late; the default is to end this process
        setenv("TORCH_NCCL_BLOCKING_WAIT", "1", 0);
        setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", 0);
        auto &processes = *static_cast<c10::intrusive_ptr<c10d::ProcessGroup> *>(group);
        auto &meeting = *static_cast<c10::intrusive_ptr<c10d::Store> *>(store);
        auto options = c10d::ProcessGroupNCCL::Options::create();
        options->timeout = std::chrono::milliseconds(timeout_ms);
        auto nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(c10::make_intrusive<c10d::PrefixStore>("nccl", meeting),
                                                                processes->getRank(), processes->getSize(), options);
        processes->setBackend(c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL, nccl);
        nccl->setSequenceNumberForGroup();
    });
}

// Ends what mt_nccl_add began. What was begun has been waited for, or is given up: an orderly end has no time limit.
char *mt_nccl_end(void *group) {
    return guarded([&] {
        (*static_cast<c10::intrusive_ptr<c10d::ProcessGroup> *>(group))->getBackend(c10::DeviceType::CUDA)->abort();
    });
}
}
