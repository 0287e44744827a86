"""Fifty optimizer steps, compared number by number with the same training written in plain PyTorch."""

import pytest
import torch
from torch_training import Data, UniCL, train
from training_bench import TEMPLATE, Bench, furthest

# largest relative difference of a number, or of a tensor by its largest element
CLOSE = 1e-5
# norms follow the weights: their differences add up over the steps, and they weigh nothing in an update that is clipped
CLOSE_NORM = 5e-5
STEPS, EPOCHS, WARMUP = 50, 10, 5
FROZEN = [r"^image_encoder\.convs\.0\.", r"^lang_encoder\.resblocks\.0\.ln_1\."]
TRAINING = {
    "TASK": "UniCLTask",
    "LOG_EVERY": 1,
    "EVAL_AT_START": False,
    "MAX_NUM_EPOCHS": EPOCHS,
    "TRAIN": {"BATCH_SIZE_TOTAL": 12, "BATCH_SIZE_PER_GPU": 6, "SHUFFLE": False},
    "AUG": {"SCALE": [1.0, 1.0], "RATIO": [1.0, 1.0]},
    "IMAGE_ENCODER": {"SPEC": {"DROP_PATH_RATE": 0.0}},
    "START_LEARNING_RATE": 5e-4,
    "OPTIMIZER": "AdamW",
    # with a smaller eps, parameters whose true gradient is 0 (biases of keys) move by the signs of rounding errors, and nothing can be compared
    "OPTIMIZER_PARAMS": {"weight_decay": 0.2, "betas": [0.9, 0.99], "eps": 1e-5},
    "CUSTOMIZED_PARAMS_CONF": {
        "NO_WEIGHT_DECAY_MODULES": ["dw", "norm"],
        "WEIGHT_DECAY_PATTERNS": {r"\.bias$": 0.0, "logit_scale": 0.0, "positional_embedding": 0.5},
        "LR_SCALE_PATTERNS": {r"^lang_encoder\.": 0.5, "_projection$": 2.0, "logit_scale": 10.0},
        "FREEZE_PATTERNS": FROZEN,
    },
    "LR_SCHEDULER": "TimmScheduler",
    "LR_SCHEDULER_PARAMS": {"sched": "cosine", "warmup_steps": WARMUP, "warmup_lr": 1e-6, "min_lr": 1e-5},
    "GRAD_CLIPPING": 0.07,
    "WEIGHT_SMOOTHING": {"decay": 0.9, "use_cpu": False, "eval_smoothed_weight": True},
}


@pytest.fixture(scope="module")
def bench(binary, tmp_path_factory):
    return Bench(binary, tmp_path_factory.mktemp("training"), TRAINING)


def by_pytorch(bench, training, contrast=None, dtype=torch.float32):
    """(series by step, last weights, average) of the PyTorch run."""
    # several threads for such small tensors only wait for one another
    torch.set_num_threads(1)
    model = UniCL(bench.config, bench.state, dtype)
    data = Data(bench.config, bench.tokenizer, bench.train, TEMPLATE, dtype)
    series, average = train(model, data, training, contrast)
    return {line["step"]: line for line in series}, {n: p.detach() for n, p in model.named.items()}, average


def by_medtune(bench, name, **parameters):
    store = bench.new_store(name)
    done = bench.run(store, bench.job(name, **parameters))
    assert done.returncode == 0, done.stderr
    return bench.result(store), done.stderr


@pytest.fixture(scope="module")
def expected(bench):
    return by_pytorch(bench, TRAINING)


@pytest.fixture(scope="module")
def raw(bench):
    """A run whose weights are evaluated and exported as they are."""
    return by_medtune(bench, "raw", training={"WEIGHT_SMOOTHING.eval_smoothed_weight": False})


@pytest.fixture(scope="module")
def smoothed(bench):
    """A run whose average is evaluated and exported."""
    return by_medtune(bench, "smoothed")


def check_series(found, expected):
    assert found.keys() == expected.keys()
    for step, line in found.items():
        assert {"step", "loss", "lr", "grad_norm"} <= line.keys()
        assert line["lr"] == pytest.approx(expected[step]["lr"], rel=1e-12), step
        assert line["loss"] == pytest.approx(expected[step]["loss"], rel=CLOSE), step
        assert line["grad_norm"] == pytest.approx(expected[step]["grad_norm"], rel=CLOSE_NORM), step


def test_the_run_is_worth_comparing(bench, expected):
    """Every part of the recipe acts in the PyTorch run, far beyond the tolerance; else the comparisons would show nothing."""
    series, last, average = expected
    assert len(series) == STEPS
    rates = [series[step]["lr"] for step in range(1, STEPS + 1)]
    assert rates[0] == 1e-6 and max(rates) == rates[WARMUP] and rates[WARMUP:] == sorted(rates[WARMUP:], reverse=True)
    assert all(line["grad_norm"] > 2 * TRAINING["GRAD_CLIPPING"] for line in series.values()), "nothing was clipped"
    assert series[STEPS]["loss"] < 0.9 * series[1]["loss"], "nothing was learnt"
    for name, start in bench.state.items():
        moved = ((last[name] - start).abs().max() / last[name].abs().max()).item()
        lag = ((last[name] - average[name]).abs().max() / last[name].abs().max()).item()
        if any(name.startswith(prefix) for prefix in ("image_encoder.convs.0.", "lang_encoder.resblocks.0.ln_1.")):
            assert moved == 0, name
        else:
            assert moved > 100 * CLOSE and lag > 10 * CLOSE, (name, moved, lag)


def test_losses_rates_and_norms(raw, smoothed, expected):
    check_series(raw[0].steps(), expected[0])
    check_series(smoothed[0].steps(), expected[0])


def test_last_weights(raw, expected):
    distance, name = furthest(raw[0].weights("last"), expected[1])
    assert distance <= CLOSE, name


def test_the_average(smoothed, expected):
    distance, name = furthest(smoothed[0].weights("last"), expected[2])
    assert distance <= CLOSE, name


@pytest.mark.parametrize("run", ["raw", "smoothed"])
def test_frozen_parameters_keep_their_bits(bench, request, run):
    result, _ = request.getfixturevalue(run)
    last = result.weights("last")
    frozen = [n for n in bench.state if n.startswith(("image_encoder.convs.0.", "lang_encoder.resblocks.0.ln_1."))]
    assert len(frozen) == 6
    assert all(torch.equal(last[n], bench.state[n]) for n in frozen)


def test_the_only_evaluation_is_of_the_last_step(raw):
    """With one evaluation the best weights are the last, and the package holds them."""
    result, _ = raw
    assert [line["step"] for line in result.series() if "evaluation" in line] == [STEPS]
    best, last = ((result.save_dir / f"{name}.safetensors").read_bytes() for name in ("best", "last"))
    assert best == last == result.package_weights().read_bytes()


def test_a_loss_over_all_rows_of_the_step(bench, expected):
    """`contrastive_batch: total` is one pass over the whole batch, although its parts are computed one after the other."""
    batch = TRAINING["TRAIN"]["BATCH_SIZE_TOTAL"]
    series, _, average = by_pytorch(bench, TRAINING, contrast=batch)
    assert series[1]["loss"] > 1.1 * expected[0][1]["loss"], "it makes no difference how many rows are compared"
    result, _ = by_medtune(bench, "total", contrastive_batch="total")
    check_series(result.steps(), series)
    distance, name = furthest(result.weights("last"), average)
    assert distance <= CLOSE, name


def test_bfloat16_learns_alike(bench, expected):
    """`FP16: true` on a CPU is bfloat16: near the 32-bit run, never the same, and the weights stay 32-bit."""
    result, log = by_medtune(bench, "bf16", training={"FP16": True})
    assert "FP16" in log and "bfloat16" in log
    steps, expected = result.steps(), expected[0]
    assert steps.keys() == expected.keys()
    apart = [abs(steps[step]["loss"] - expected[step]["loss"]) for step in steps]
    assert min(apart) > 0 and max(apart) < 0.15 and sum(apart) / len(apart) < 0.05, apart
    assert {tensor.dtype for tensor in result.weights("last").values()} == {torch.float32}
