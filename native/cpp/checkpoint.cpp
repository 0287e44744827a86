// Activation checkpointing: a segment of the graph that keeps its input only and is run again in the backward pass.
#include "guarded.h"
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <memory>
#include <stdexcept>

namespace {

// Runs the segment on a borrowed input; writes an owned output, or returns an error text from strdup.
using Run = char *(*)(void *data, const at::Tensor *input, at::Tensor **output);
using Drop = void (*)(void *data);

struct Segment {
    Run run;
    Drop drop;
    void *data;

    Segment(Run run, Drop drop, void *data) : run(run), drop(drop), data(data) {}
    Segment(const Segment &) = delete;
    ~Segment() { drop(data); }

    at::Tensor operator()(const at::Tensor &input) const {
        at::Tensor *output = nullptr;
        if (char *error = run(data, &input, &output)) {
            std::string text(error);
            free(error);
            throw std::runtime_error(text);
        }
        std::unique_ptr<at::Tensor> owned(output);
        return *owned;
    }
};

// Autocast as it was when the segment first ran, put back for the time of the second run. The cache of cast weights stays off
// in both runs: weights cast without a graph would be found by the run that needs one.
class Casting {
  public:
    Casting() {
        for (size_t i = 0; i < devices.size(); ++i) {
            enabled[i] = at::autocast::is_autocast_enabled(devices[i]);
            dtype[i] = at::autocast::get_autocast_dtype(devices[i]);
        }
        cache = at::autocast::is_autocast_cache_enabled();
    }
    void apply() const {
        for (size_t i = 0; i < devices.size(); ++i) {
            at::autocast::set_autocast_enabled(devices[i], enabled[i]);
            at::autocast::set_autocast_dtype(devices[i], dtype[i]);
        }
        at::autocast::set_autocast_cache_enabled(cache);
    }
    void without_cache() { cache = false; }

  private:
    static constexpr std::array<at::DeviceType, 2> devices{at::kCPU, at::kCUDA};
    std::array<bool, 2> enabled{};
    std::array<at::ScalarType, 2> dtype{};
    bool cache;
};

class Restored {
  public:
    explicit Restored(const Casting &during) { during.apply(); }
    Restored(const Restored &) = delete;
    ~Restored() { before.apply(); }

  private:
    Casting before;
};

struct Recompute : torch::autograd::Function<Recompute> {
    // `anchor` is a scalar that asks for a gradient: the backward pass comes by even when the input asks for none.
    static at::Tensor forward(torch::autograd::AutogradContext *ctx, const at::Tensor &input, const at::Tensor &anchor,
                              const std::shared_ptr<Segment> &segment, const Casting &casting) {
        (void)anchor;
        ctx->save_for_backward({input});
        auto requires_grad = input.requires_grad();
        auto run = [segment, casting, requires_grad](const at::Tensor &saved, const at::Tensor &grad) -> at::Tensor {
            at::AutoGradMode with_grad(true);
            auto again = saved.detach();
            again.set_requires_grad(requires_grad);
            at::Tensor output;
            {
                Restored autocast(casting);
                output = (*segment)(again);
            }
            if (!output.requires_grad()) return {};
            torch::autograd::backward({output}, {grad});
            return requires_grad ? again.grad() : at::Tensor();
        };
        ctx->saved_data["recompute"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(std::move(run)));
        Restored autocast(casting);
        return (*segment)(input);
    }

    static torch::autograd::variable_list backward(torch::autograd::AutogradContext *ctx,
                                                   const torch::autograd::variable_list &grads) {
        auto holder = ctx->saved_data["recompute"].toCapsule();
        auto input = ctx->get_saved_variables()[0];
        auto grad = static_cast<Holder *>(holder.get())->run(input, grads[0]);
        return {grad, at::Tensor(), at::Tensor(), at::Tensor()};
    }

    struct Holder : torch::CustomClassHolder {
        explicit Holder(std::function<at::Tensor(const at::Tensor &, const at::Tensor &)> run) : run(std::move(run)) {}
        std::function<at::Tensor(const at::Tensor &, const at::Tensor &)> run;
    };
};

} // namespace

extern "C" {

// Takes over `data`, whatever comes of it. Writes the segment's output, which the caller owns.
char *mt_checkpoint(const at::Tensor *input, Run run, Drop drop, void *data, at::Tensor **output) {
    return guarded([&] {
        auto segment = std::make_shared<Segment>(run, drop, data);
        if (!at::GradMode::is_enabled()) {
            *output = new at::Tensor((*segment)(*input));
            return;
        }
        Casting casting;
        casting.without_cache();
        auto anchor = at::zeros({}, input->options().dtype(at::kFloat)).set_requires_grad(true);
        *output = new at::Tensor(Recompute::apply(*input, anchor, segment, casting));
    });
}
}
