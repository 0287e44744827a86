// A group of processes over torch's own c10d: a TCPStore for meeting and for short texts, Gloo for collectives on the CPU, and
// DistributedDataParallel's Reducer for gradients.
#define USE_C10D_GLOO
#include "guarded.h"
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <torch/csrc/distributed/c10d/logger.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace {

struct Group {
    c10::intrusive_ptr<c10d::Store> store;
    // empty once it was closed
    c10::intrusive_ptr<c10d::ProcessGroup> group;
};

struct Reduction {
    std::shared_ptr<c10d::Reducer> reducer;
    std::shared_ptr<c10d::Logger> logger;
};

// the sizes of DistributedDataParallel: the first bucket is small, so that sending begins early
constexpr int64_t FIRST_BUCKET = 1 << 20;
constexpr int64_t BUCKET = 25 << 20;

const c10::intrusive_ptr<c10d::ProcessGroup> &processes(void *group) {
    auto &found = static_cast<Group *>(group)->group;
    TORCH_CHECK(found, "the group was left");
    return found;
}

} // namespace

extern "C" {

// Meets the other processes: rank 0 (or whoever `serves`) listens at host:port, all others connect. Empty `interface`: the
// address that the machine's name has. Every wait ends after the timeout.
char *mt_group_join(const char *host, int port, int serves, int rank, int size, const char *prefix, const char *interface,
                    int64_t timeout_ms, void **out) {
    return guarded([&] {
        std::chrono::milliseconds timeout(timeout_ms);
        c10d::TCPStoreOptions options;
        options.port = static_cast<std::uint16_t>(port);
        options.isServer = serves != 0;
        // everybody meets below, where the time is limited for all alike
        options.waitWorkers = false;
        options.timeout = timeout;
        c10::intrusive_ptr<c10d::Store> tcp = c10::make_intrusive<c10d::TCPStore>(host, options);
        auto store = c10::make_intrusive<c10d::PrefixStore>(prefix, tcp);
        auto gloo_options = c10d::ProcessGroupGloo::Options::create(timeout);
        gloo_options->devices.push_back(*interface ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                                                   : c10d::ProcessGroupGloo::createDefaultDevice());
        auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>("gloo", store), rank,
                                                                size, gloo_options);
        auto group = c10::make_intrusive<c10d::ProcessGroup>(store, rank, size);
        group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
        group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, gloo);
        gloo->setSequenceNumberForGroup();
        *out = new Group{store, group};
    });
}

// Closes the connections of collectives, so that whoever waits in one ends; the store stays.
char *mt_group_close(void *group) {
    return guarded([&] { static_cast<Group *>(group)->group.reset(); });
}

void mt_group_leave(void *group) {
    free(guarded([&] { delete static_cast<Group *>(group); }));
}

// out[r] becomes the `in` of rank r; `out` has a first dimension of the group's size.
char *mt_group_gather(void *group, at::Tensor *in, at::Tensor *out) {
    return guarded([&] {
        c10::NoGradGuard no_grad;
        std::vector<std::vector<at::Tensor>> outputs(1);
        for (int64_t r = 0; r < out->size(0); ++r) outputs[0].push_back(out->select(0, r));
        std::vector<at::Tensor> inputs{in->contiguous()};
        processes(group)->allgather(outputs, inputs)->wait();
    });
}

// Every tensor becomes the sum of those of all ranks.
char *mt_group_sum(void *group, at::Tensor *const *list, size_t count) {
    return guarded([&] {
        c10::NoGradGuard no_grad;
        for (auto &tensor : tensors(list, count)) {
            std::vector<at::Tensor> one{tensor};
            processes(group)->allreduce(one)->wait();
        }
    });
}

// Every tensor becomes that of rank 0.
char *mt_group_broadcast(void *group, at::Tensor *const *list, size_t count) {
    return guarded([&] {
        c10::NoGradGuard no_grad;
        auto all = tensors(list, count);
        c10d::broadcast_coalesced(processes(group), all, BUCKET * 10, 0);
    });
}

char *mt_group_put(void *group, const char *key, const uint8_t *bytes, size_t length) {
    return guarded([&] { static_cast<Group *>(group)->store->set(key, std::vector<uint8_t>(bytes, bytes + length)); });
}

// `bytes` is null when nobody has put anything yet; otherwise the caller frees it with mt_free.
char *mt_group_get(void *group, const char *key, char **bytes, size_t *length) {
    return guarded([&] {
        auto &store = static_cast<Group *>(group)->store;
        *bytes = nullptr;
        if (!store->check({key})) return;
        auto found = store->get(key);
        *bytes = static_cast<char *>(malloc(found.size() + 1));
        if (!*bytes) throw std::bad_alloc();
        memcpy(*bytes, found.data(), found.size());
        *length = found.size();
    });
}

// Averages the gradients of these parameters over the group while backward passes run that mt_reducer_expect announced.
char *mt_reducer_new(void *group, at::Tensor *const *list, size_t count, void **out) {
    return guarded([&] {
        auto params = tensors(list, count);
        auto &members = processes(group);
        c10d::verify_params_across_processes(members, params, std::nullopt);
        std::vector<bool> sparse(count, false);
        auto [buckets, limits] = c10d::compute_bucket_assignment_by_size(
            params, {static_cast<size_t>(FIRST_BUCKET), static_cast<size_t>(BUCKET)}, sparse);
        // about the order in which a backward pass finishes them
        std::reverse(buckets.begin(), buckets.end());
        auto made = std::make_unique<Reduction>();
        made->reducer = std::make_shared<c10d::Reducer>(params, buckets, members, sparse, BUCKET,
                                                        /*find_unused_parameters=*/false, /*gradient_as_bucket_view=*/false,
                                                        std::unordered_map<size_t, std::string>{}, FIRST_BUCKET,
                                                        /*skip_all_reduce_unused_params=*/false,
                                                        /*use_python_reducer=*/false, std::vector<int64_t>{});
        made->logger = std::make_shared<c10d::Logger>(made->reducer);
        made->reducer->set_logger(made->logger);
        *out = made.release();
    });
}

// The next backward pass is the last before the gradients are used.
char *mt_reducer_expect(void *reducer) {
    return guarded([&] {
        auto &inner = *static_cast<Reduction *>(reducer)->reducer;
        inner.prepare_for_forward();
        inner.rebuild_buckets();
        inner.prepare_for_backward({});
    });
}

void mt_reducer_free(void *reducer) {
    free(guarded([&] {
        static_cast<Reduction *>(reducer)->reducer->remove_autograd_hooks();
        delete static_cast<Reduction *>(reducer);
    }));
}
}
