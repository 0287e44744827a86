// A group of processes over torch's own c10d: a TCPStore for meeting and for short texts, Gloo for collectives on the CPU, NCCL
// for those on GPUs (see nccl.cpp), and DistributedDataParallel's Reducer for gradients.
#define USE_C10D_GLOO
#include "guarded.h"
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <torch/csrc/distributed/c10d/logger.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// What nccl.cpp exports.
struct Nccl {
    char *(*take)(int device, char *out) = nullptr;
    char *(*add)(void *group, void *store, int device, int64_t timeout_ms) = nullptr;
    char *(*end)(void *group) = nullptr;
};
Nccl nccl;

// The error of another function of the C ABI.
void raise(char *error) {
    if (!error) return;
    std::string text(error);
    free(error);
    throw std::runtime_error(text);
}

struct Group {
    c10::intrusive_ptr<c10d::Store> store;
    // empty once it was closed
    c10::intrusive_ptr<c10d::ProcessGroup> group;
    // whether tensors on a GPU go through NCCL
    bool nccl = false;
};

void close(Group &group) {
    if (group.nccl && group.group) free(nccl.end(&group.group));
    group.group.reset();
}

struct Reduction {
    std::shared_ptr<c10d::Reducer> reducer;
    std::shared_ptr<c10d::Logger> logger;
};

// as in DistributedDataParallel: the first bucket is small, so that sending begins early
constexpr size_t FIRST_BUCKET = 1 << 20;
// of what rank 0 sends to all when they begin
constexpr size_t BROADCAST_BUFFER = 250 << 20;

const c10::intrusive_ptr<c10d::ProcessGroup> &processes(void *group) {
    auto &found = static_cast<Group *>(group)->group;
    TORCH_CHECK(found, "the group was left");
    return found;
}

} // namespace

extern "C" {

// Loads what nccl.cpp was compiled to; libtorch_cuda has been loaded. A file in memory, since there may be no folder to write to.
char *mt_nccl_load(const uint8_t *library, size_t length) {
    return guarded([&] {
        if (nccl.add) return;
        int file = memfd_create("medtune-nccl", MFD_CLOEXEC);
        TORCH_CHECK(file >= 0, "no file in memory can be made: ", strerror(errno));
        for (size_t done = 0; done < length;) {
            auto wrote = write(file, library + done, length - done);
            if (wrote < 0 && errno == EINTR) continue;
            TORCH_CHECK(wrote > 0, "a file in memory cannot be written: ", strerror(errno));
            done += static_cast<size_t>(wrote);
        }
        void *loaded = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
        std::string error = loaded ? "" : dlerror();
        ::close(file);
        TORCH_CHECK(loaded, error);
        auto find = [&](const char *name) {
            void *found = dlsym(loaded, name);
            TORCH_CHECK(found, name, " is missing");
            return found;
        };
        nccl.take = reinterpret_cast<decltype(nccl.take)>(find("mt_nccl_take"));
        nccl.end = reinterpret_cast<decltype(nccl.end)>(find("mt_nccl_end"));
        nccl.add = reinterpret_cast<decltype(nccl.add)>(find("mt_nccl_add"));
    });
}

// Meets the other processes: rank 0 (or whoever `serves`) listens at host:port, all others connect. Empty `interface`: the
// address that the machine's name has. A `listener` of 0 or more is a socket that listens at the port already. They are
// waited for until `join_timeout_ms` have passed; every other wait ends after `timeout_ms`. With a `device` of 0 or more, tensors on that GPU go
// through NCCL, or through Gloo where two processes have the same GPU, as NCCL cannot; `shared` says so.
char *mt_group_join(const char *host, int port, int serves, int listener, int rank, int size, const char *prefix,
                    const char *interface, int64_t join_timeout_ms, int64_t timeout_ms, int device, int *shared, void **out) {
    return guarded([&] {
        std::chrono::milliseconds timeout(timeout_ms), join_timeout(join_timeout_ms);
        c10d::TCPStoreOptions options;
        options.port = static_cast<std::uint16_t>(port);
        options.isServer = serves != 0;
        if (serves && listener >= 0) options.masterListenFd = listener;
        // everybody waits below, for the same time
        options.waitWorkers = false;
        options.timeout = join_timeout;
        c10::intrusive_ptr<c10d::Store> tcp = c10::make_intrusive<c10d::TCPStore>(host, options);
        auto store = c10::make_intrusive<c10d::PrefixStore>(prefix, tcp);
        std::vector<std::string> everybody;
        for (int r = 0; r < size; ++r) everybody.push_back("here/" + std::to_string(r));
        auto count = std::to_string(size);
        store->set(everybody[static_cast<size_t>(rank)], std::vector<uint8_t>(count.begin(), count.end()));
        try {
            store->wait(everybody, join_timeout);
        } catch (const std::exception &) {
            std::string missing;
            for (int r = 0; r < size; ++r)
                if (!store->check({everybody[static_cast<size_t>(r)]})) missing += " " + std::to_string(r);
            TORCH_CHECK(missing.empty(), "nobody came as rank", missing);
            throw;
        }
        for (int r = 0; r < size; ++r) {
            auto said = store->get(everybody[static_cast<size_t>(r)]);
            std::string other(said.begin(), said.end());
            TORCH_CHECK(other == count, "unlike processes: rank ", r, " is one of ", other, ", rank ", rank, " one of ", count,
                        "; do all machines start as many?");
        }
        tcp->setTimeout(timeout);
        auto gloo_options = c10d::ProcessGroupGloo::Options::create(timeout);
        gloo_options->devices.push_back(*interface ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                                                   : c10d::ProcessGroupGloo::createDefaultDevice());
        auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>("gloo", store), rank,
                                                                size, gloo_options);
        auto group = c10::make_intrusive<c10d::ProcessGroup>(store, rank, size);
        group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
        group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, gloo);
        gloo->setSequenceNumberForGroup();
        auto made = std::make_unique<Group>(Group{store, group});
        if (device >= 0) {
            TORCH_CHECK(nccl.add, "NCCL was not loaded");
            std::vector<uint8_t> own(16);
            raise(nccl.take(device, reinterpret_cast<char *>(own.data())));
            store->set("gpu/" + std::to_string(rank), own);
            std::set<std::vector<uint8_t>> gpus;
            for (int r = 0; r < size; ++r) {
                auto gpu = store->get("gpu/" + std::to_string(r));
                TORCH_CHECK(gpu.size() == own.size(), "unlike processes: rank ", r, " computes on a CPU, rank ", rank, " on a GPU");
                gpus.insert(gpu);
            }
            *shared = gpus.size() < static_cast<size_t>(size);
            if (*shared) {
                group->setBackend(c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::GLOO, gloo);
            } else {
                c10::intrusive_ptr<c10d::Store> meeting = store;
                raise(nccl.add(&made->group, &meeting, device, timeout_ms));
                made->nccl = true;
            }
        } else {
            // whoever has a GPU and waits for this one's
            store->set("gpu/" + std::to_string(rank), std::vector<uint8_t>{0});
        }
        *out = made.release();
    });
}

// Closes the connections of collectives, so that whoever waits in one ends; the store stays.
char *mt_group_close(void *group) {
    return guarded([&] { close(*static_cast<Group *>(group)); });
}

void mt_group_leave(void *group) {
    free(guarded([&] {
        close(*static_cast<Group *>(group));
        delete static_cast<Group *>(group);
    }));
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
        c10d::broadcast_coalesced(processes(group), all, BROADCAST_BUFFER, 0);
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
char *mt_reducer_new(void *group, at::Tensor *const *list, size_t count, size_t bucket_bytes, void **out) {
    return guarded([&] {
        auto first = std::min(FIRST_BUCKET, bucket_bytes);
        auto params = tensors(list, count);
        auto &members = processes(group);
        c10d::verify_params_across_processes(members, params, std::nullopt);
        std::vector<bool> sparse(count, false);
        auto [buckets, limits] = c10d::compute_bucket_assignment_by_size(
            params, {first, bucket_bytes}, sparse);
        // about the order in which a backward pass finishes them
        std::reverse(buckets.begin(), buckets.end());
        auto made = std::make_unique<Reduction>();
        made->reducer = std::make_shared<c10d::Reducer>(params, buckets, members, sparse, static_cast<int64_t>(bucket_bytes),
                                                        /*find_unused_parameters=*/false, /*gradient_as_bucket_view=*/false,
                                                        std::unordered_map<size_t, std::string>{}, static_cast<int64_t>(first),
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
