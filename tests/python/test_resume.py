"""A training that is killed, stopped or finds its checkpoint damaged ends with the bits of one that nobody disturbed."""

import json
import random
import shutil
import signal
import time
from datetime import datetime
from pathlib import Path

import handmade
import pytest
import torch
from harness import Events, invoke, records, refused, sha256, stub
from training_bench import LABELS, Bench, Result, merged, rows

CONFIG, PACKAGE, PREEMPTED = 10, 12, 23
KILLS = 10
SAVE_EVERY, KEPT = 4, 2
PARTS = {"weights.safetensors", "average.safetensors", "optimizer.safetensors", "state.json", "metrics.jsonl"}
TRAINING = {
    "EVAL_AT_START": True,
    "EVAL_PER_OPTIM_STEPS": 7,
    "SAVE_PER_OPTIM_STEPS": SAVE_EVERY,
    "LOG_EVERY": 3,
    "MAX_NUM_EPOCHS": 8,
    "TRAIN": {"BATCH_SIZE_TOTAL": 12, "BATCH_SIZE_PER_GPU": 6, "SHUFFLE": True},
    "AUG": {
        "SCALE": [0.5, 1.0],
        "RATIO": [0.75, 1.33],
        "MIXUP_PROB": 0.5,
        "TORCHVISION_AUG": {"AUTO_AUGMENT": "ta_wide", "RE_PROB": 0.25, "HFLIP": 0.5, "VFLIP": 0.5},
    },
    "IMAGE_ENCODER": {"SPEC": {"DROP_PATH_RATE": 0.2}},
    "START_LEARNING_RATE": 1e-3,
    "OPTIMIZER_PARAMS": {"weight_decay": 0.2},
    "CUSTOMIZED_PARAMS_CONF": {"NO_WEIGHT_DECAY_MODULES": ["dw", "norm"], "FREEZE_PATTERNS": [r"^image_encoder\.convs\.0\."]},
    "LR_SCHEDULER_PARAMS": {"sched": "cosine", "warmup_steps": 5},
    "GRAD_CLIPPING": 1.0,
    "WEIGHT_SMOOTHING": {"decay": 0.9, "use_cpu": False, "eval_smoothed_weight": True},
}
STEPS = 5 * TRAINING["MAX_NUM_EPOCHS"]
TEMPLATES = ["a {} one", "the {} one", "{}"]


class ResumeBench(Bench):
    """The job with everything on that draws random numbers."""

    def job(self, name="job", **parameters):
        return super().job(name, **{"prompt_templates": TEMPLATES, "rotation": 10, "keep_checkpoints": KEPT} | parameters)


@pytest.fixture(scope="module")
def bench(binary, tmp_path_factory):
    # validation rows have the text of another class, so that they are the less often right the more is learnt: the best
    # weights are early ones, and they have to come through an interruption beside the last ones
    evaluation = [
        (key, data, text | {"class_id": (at := (text["class_id"] + 1) % len(LABELS)), "class_name": LABELS[at]})
        for key, data, text in rows(30, 2, tint=120)
    ]
    return ResumeBench(binary, tmp_path_factory.mktemp("resume"), TRAINING, rows(60, 1, tint=120), evaluation)


@pytest.fixture(scope="module")
def job(bench):
    return bench.job()


def training(line):
    """Whether a line of the log says that steps are being made."""
    return line.get("message") == "resuming from a checkpoint" or (line.get("message") == "evaluated" and line.get("step") == 0)


def saved(line):
    return line.get("message") == "checkpoint complete"


def resumed_at(events):
    """The steps at which a process went on: one at most."""
    return [line["step"] for line in events.seen if line.get("message") == "resuming from a checkpoint"]


def at(line):
    return datetime.fromisoformat(line["timestamp"])


def checkpoints(store):
    """{step: folder} of the complete checkpoints, each verified by its own list of sizes and hashes."""
    found = {}
    for path in sorted(store.glob("checkpoints/*/step-*/complete.json")):
        complete = json.loads(path.read_text())
        assert path.parent.name == f"step-{complete['step']:08}"
        state = json.loads((path.parent / "state.json").read_text())
        assert state["step"] == complete["step"]
        parts = PARTS if state["step"] < state["total"] else {"average.safetensors", "state.json", "metrics.jsonl"}
        assert parts == {file["name"] for file in complete["files"]} - {"best.safetensors"}
        for file in complete["files"]:
            stored = path.parent.parent / file["key"]
            assert (stored.stat().st_size, sha256(stored)) == (file["size"], file["sha256"]), stored
        found[complete["step"]] = path.parent
    return found


def outcome(result):
    """Everything that the training computed, by file: weights, series, settings, and the package's weights."""
    files = {path.name: sha256(path) for path in result.save_dir.iterdir()}
    assert {"best.safetensors", "last.safetensors", "metrics.jsonl", "training.json"} <= files.keys()
    return files | {"package": sha256(result.package_weights())}


@pytest.fixture(scope="module")
def calm(bench, job):
    """A run that nobody disturbed: its result and how long its steps took, in seconds."""
    store = bench.new_store("calm")
    events = bench.start(store, job)
    assert events.finish() == 0, events.seen[-5:]
    assert not resumed_at(events)
    first = next(line for line in events.seen if training(line))
    last = [line for line in events.seen if line.get("message") == "evaluated"][-1]
    assert last["step"] == STEPS
    result = Result(bench, store)
    logged = [line for line in result.series() if "loss" in line]
    assert [line["step"] for line in logged] == [*range(3, STEPS, 3), STEPS]
    files = outcome(result)
    assert files["best.safetensors"] == files["package"] != files["last.safetensors"]
    return store, result, (at(last) - at(first)).total_seconds()


def finish(bench, store, job):
    """Runs to the end; the events."""
    events = bench.start(store, job)
    assert events.finish() == 0, events.seen[-5:]
    assert not list(store.glob("checkpoints/*")), "checkpoints that nobody needs any more are still there"
    return events


def test_killed_ten_times(bench, job, calm):
    _, result, duration = calm
    store = bench.new_store("storm")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}, {duration:.1f} s")
    rng = random.Random(seed)
    hit, reached = [], []
    # some runs are left alone until they have saved once, so that there is progress however slow the machine is
    for patient in rng.sample([True] * 4 + [False] * (KILLS - 4), KILLS):
        events = bench.start(store, job)
        assert events.when(training), events.seen[-5:]
        if patient:
            events.when(saved)
        time.sleep(rng.uniform(0, 0.12) * duration)
        status = events.kill()
        reached += resumed_at(events)
        # whatever is listed as complete is whole, at any moment
        found = checkpoints(store)
        if status == 0:
            break
        assert status == -9
        hit.append(max(found, default=0))
        assert hit == sorted(hit) and hit[-1] < STEPS, "a checkpoint was lost"
    assert len(hit) >= 8, f"the training was over after {len(hit)} kills"
    reached += resumed_at(finish(bench, store, job))
    # each run after the first checkpoint went on at the newest one
    assert reached == [step for step in hit if step > 0] and len(set(reached)) >= 3, (hit, reached)
    assert outcome(Result(bench, store)) == outcome(result)


def listening(pid):
    """Names of the threads that SIGTERM or SIGINT may interrupt."""
    names, asked = [], 1 << signal.SIGTERM - 1 | 1 << signal.SIGINT - 1
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        if int(fields["SigBlk"], 16) & asked != asked:
            names.append(fields["Name"])
    return names


def test_asked_to_stop(bench, job, calm):
    """SIGTERM, then SIGINT: each ends with a checkpoint of the very step, a code that says to run it again, and nothing lost."""
    _, result, duration = calm
    store = bench.new_store("stopped")
    stops = [0]
    for number, pause in ((signal.SIGTERM, 0.13), (signal.SIGINT, 0.21)):
        events = bench.start(store, job)
        assert events.when(training), events.seen[-5:]
        # on the stack of a thread that computes, a signal's frame would overwrite what matrix kernels keep there
        assert listening(events.process.pid) == ["signals"]
        time.sleep(pause * duration)
        asked = time.monotonic()
        events.process.send_signal(number)
        assert events.finish() == PREEMPTED, events.seen[-5:]
        assert time.monotonic() - asked < 15
        assert resumed_at(events) == [step for step in stops[-1:] if step]
        step = max(checkpoints(store))
        assert stops[-1] < step < STEPS
        stops.append(step)
        assert f"{number.name} after step {step} of {STEPS}" in events.seen[-1]["message"]
        record = bench.ask(store, "runs", "show", events.run_id)
        assert (record["status"], record["exit_code"], record["error"]["kind"]) == ("failed", PREEMPTED, "preempted")
    assert len(checkpoints(store)) <= KEPT
    assert resumed_at(finish(bench, store, job)) == stops[-1:]
    assert outcome(Result(bench, store)) == outcome(result)


@pytest.fixture(scope="module")
def halted(bench, job, calm):
    """A store whose run was killed when it had two checkpoints at least."""
    store = bench.new_store("halted")
    events = bench.start(store, job)
    assert events.when(lambda line: saved(line) and line["step"] == 3 * SAVE_EVERY), events.seen[-5:]
    assert events.kill() == -9
    # the kill may have come before the oldest was removed
    assert KEPT <= len(checkpoints(store)) <= KEPT + 1
    return store


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "harm, file, warns",
    [(flip, "weights.safetensors", True), (cut, "optimizer.safetensors", True), (cut, "complete.json", True), (None, "complete.json", False)],
    ids=["flipped byte", "cut off", "unreadable list", "unfinished"],
)
def test_a_damaged_checkpoint_is_passed_over(bench, job, calm, halted, tmp_path, harm, file, warns):
    store = shutil.copytree(halted, tmp_path / "store")
    earlier, newest = sorted(checkpoints(store))[-2:]
    path = checkpoints(store)[newest] / file
    harm(path) if harm else path.unlink()
    events = finish(bench, store, job)
    assert resumed_at(events) == [earlier]
    warnings = [line for line in events.seen if line.get("level") == "WARN" and f"step-{newest:08}" in json.dumps(line)]
    assert bool(warnings) == warns
    assert outcome(Result(bench, store)) == outcome(calm[1])


def test_all_checkpoints_damaged(bench, job, calm, halted, tmp_path):
    """Nothing to go on from is a new start, not a failure."""
    store = shutil.copytree(halted, tmp_path / "store")
    for folder in checkpoints(store).values():
        flip(folder / "state.json")
    assert not resumed_at(finish(bench, store, job))
    assert outcome(Result(bench, store)) == outcome(calm[1])


def test_resume_false_starts_anew(bench, calm):
    job = bench.job("anew", training={"RESUME": False})
    store = bench.new_store("anew")
    events = bench.start(store, job)
    # after the steps at which others save
    assert events.when(lambda line: line.get("message") == "evaluated" and line["step"] > SAVE_EVERY), events.seen[-5:]
    assert events.kill() == -9 and not list(store.glob("checkpoints/*"))
    assert not resumed_at(finish(bench, store, job))
    files, expected = outcome(Result(bench, store)), outcome(calm[1])
    assert {n: d for n, d in files.items() if n != "training.json"} == {n: d for n, d in expected.items() if n != "training.json"}


def test_another_job_does_not_continue_it(bench, halted, tmp_path):
    """Other parameters, another training: its checkpoints are its own."""
    store = shutil.copytree(halted, tmp_path / "store")
    events = bench.start(store, bench.job("other", seed=7))
    assert events.when(training)["message"] == "evaluated"
    events.kill()


@pytest.mark.parametrize("parameters", [{"precision": "bf16"}, {"contrastive_batch": "total"}], ids=["bf16", "total"])
def test_other_computations_resume_as_well(bench, calm, parameters):
    name = next(iter(parameters))
    job = bench.job(name, training={"MAX_NUM_EPOCHS": 3}, **parameters)
    calm_store, store = bench.new_store(f"{name}-calm"), bench.new_store(f"{name}-killed")
    finish(bench, calm_store, job)
    events = bench.start(store, job)
    assert events.when(lambda line: saved(line) and line["step"] >= 2 * SAVE_EVERY), events.seen[-5:]
    assert events.kill() == -9
    assert resumed_at(finish(bench, store, job)) >= [2 * SAVE_EVERY]
    assert outcome(Result(bench, store)) == outcome(Result(bench, calm_store))


def test_a_training_outlives_its_package(bench, calm, tmp_path):
    """Without checkpoints asked for, and though the package is refused: the next run, which wants another package, takes the trained weights."""
    _, result, _ = calm
    store = bench.new_store("packaged")
    unsaved = {"training": {"SAVE_PER_OPTIM_STEPS": 0}}
    broken = stub(tmp_path, "echo 'ImportError: no such thing' >&2; exit 3")
    done = invoke(bench.binary, "--store", store, "run", bench.job("unsaved", **unsaved), env=bench.env | {"MEDTUNE_PYTHON": str(broken)})
    refused(done, PACKAGE, "the training is done and kept", "ImportError: no such thing")
    assert list(checkpoints(store)) == [STEPS]
    package = {"stored_weights": "bf16", "onnx": True, "model_card": {"license": "MIT"}, "keep_checkpoints": 1}
    events = finish(bench, store, bench.job("repackaged", **unsaved, **package))
    assert resumed_at(events) == [STEPS] and not any(line.get("message") == "evaluated" for line in events.seen)
    made, expected = outcome(again := Result(bench, store)), outcome(result)
    assert all(made[name] == expected[name] for name in ("best.safetensors", "last.safetensors", "metrics.jsonl"))
    config = json.loads((again.package / "artifacts/checkpoints/medtune.json").read_text())
    assert (config["onnx"], config["provenance"]["stored_weights"]) == (True, "bf16")


def test_a_rerun_promises_nothing(bench, tmp_path):
    """No later run finds what it keeps, so it keeps nothing and does not say so, also when it is stopped."""
    store = bench.new_store("rerun")
    broken = stub(tmp_path, "exit 3")
    job = bench.job("rerun", training={"SAVE_PER_OPTIM_STEPS": 0, "MAX_NUM_EPOCHS": 1})
    done = invoke(bench.binary, "--store", store, "run", job, "--rerun", env=bench.env | {"MEDTUNE_PYTHON": str(broken)})
    assert "is done and kept" not in refused(done, PACKAGE, "cannot be used in Python")
    assert not checkpoints(store)
    for more, training_ in ((["--rerun"], {}), ([], {"RESUME": False})):
        job = bench.job("stopped", training={"SAVE_PER_OPTIM_STEPS": 0} | training_)
        events = Events(bench.binary, "--store", store, "run", job, *more, env=bench.env)
        assert events.when(training), events.seen[-5:]
        events.process.send_signal(signal.SIGTERM)
        assert events.finish() == PREEMPTED and "the next run starts anew" in events.seen[-1]["message"], events.seen[-3:]
        assert not checkpoints(store)


# every fifth step has rows of the last class, whose text the model below cannot take
BAD_STEP, BAD_ROWS = 2, range(18, 22)
FRAIL = merged(
    TRAINING,
    {
        "MAX_NUM_EPOCHS": 2,
        "LOG_EVERY": 1,
        "TRAIN": {"SHUFFLE": False},
        "AUG": {"MIXUP_PROB": 0.0},
        # label texts are not asked for, since one of them has no embedding
        "EVALDATASET_KNN": {"ZS_MODE": 0, "KNN": 3},
    },
)


@pytest.fixture(scope="module")
def frail(binary, tmp_path_factory):
    """A bench whose base model overflows at the letter v, which only the last label has."""
    assert [("v" in label) for label in LABELS] == [False] * (len(LABELS) - 1) + [True]
    train = rows(60, 3, [len(LABELS) - 1 if n in BAD_ROWS else n % (len(LABELS) - 1) for n in range(60)])
    folder = tmp_path_factory.mktemp("frail")
    tokenizer, name = handmade.tokenizer(), "lang_encoder.token_embedding.weight"
    embedding = handmade.random_state(handmade.config(), tokenizer.get_vocab_size(), seed=11)[name]
    embedding[tokenizer.token_to_id("v")] = 1e30
    return ResumeBench(binary, folder, FRAIL, train, state={name: embedding})


def non_finite(store, run_id):
    """The lines that name the rows of steps that could not be used."""
    [path] = (store / "runs" / run_id).glob("*/non-finite.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_loss_that_is_no_number_stops(frail):
    store = frail.new_store("stop")
    done = frail.run(store, frail.job())
    refused(done, CONFIG, f"step {BAD_STEP}", "START_LEARNING_RATE", "non-finite.jsonl")
    [run_id] = records(store)
    lines = non_finite(store, run_id)
    assert {line["step"] for line in lines} == {BAD_STEP}
    keys = [key for line in lines for key in line["keys"]]
    # the rows of the step, and of all but those of the bad half a number
    assert keys == [key for key, _, _ in frail.train[12:24]]
    bad = {key for line in lines if not isinstance(line["loss"], float) for key in line["keys"]}
    assert bad == {key for key, _, _ in frail.train[18:24]}


def test_a_loss_that_is_no_number_is_skipped(frail):
    store = frail.new_store("skip")
    done = frail.run(store, frail.job(on_non_finite="skip"))
    assert done.returncode == 0, done.stderr
    assert f"step {BAD_STEP}" in done.stderr
    [(run_id, record)] = records(store).items()
    assert record["steps"][0]["metrics"]["skipped_steps"] == 2
    assert sorted({line["step"] for line in non_finite(store, run_id)}) == [BAD_STEP, BAD_STEP + 5]
    result = Result(frail, store)
    last, finite = result.weights("last"), lambda tensors: all(bool(torch.isfinite(t).all()) for t in tensors)
    assert finite(last.values())
    # all other steps counted
    steps = result.steps()
    assert sorted(steps) == list(range(1, 11))
    assert all(isinstance(line["loss"], float) and isinstance(line["grad_norm"], float) for s, line in steps.items() if s % 5 != BAD_STEP)
    moved = [n for n, t in last.items() if not torch.equal(t, frail.state[n])]
    assert len(moved) == len(last) - 4


def test_what_stopped_at_a_number_goes_on_without_the_step(frail):
    saving, store, calm = {"training": {"SAVE_PER_OPTIM_STEPS": 1}}, frail.new_store("go-on"), frail.new_store("calm")
    refused(frail.run(store, frail.job("halt", **saving)), CONFIG, f"step {BAD_STEP}", "on_non_finite: skip")
    assert list(checkpoints(store)) == [BAD_STEP - 1]
    job = frail.job("go-on", on_non_finite="skip", **saving)
    assert resumed_at(finish(frail, store, job)) == [BAD_STEP - 1]
    assert not resumed_at(finish(frail, calm, job))
    assert outcome(Result(frail, store)) == outcome(Result(frail, calm))


def test_steps_that_were_left_out_are_not_taken_over(frail, tmp_path):
    """By a job that does not allow it: its success would be one that it never has by itself."""
    store = frail.new_store("strict")
    broken = stub(tmp_path, "exit 3")
    env = frail.env | {"MEDTUNE_PYTHON": str(broken)}
    refused(invoke(frail.binary, "--store", store, "run", frail.job("lenient", on_non_finite="skip"), env=env), PACKAGE, "is done and kept")
    refused(frail.run(store, frail.job("strict")), CONFIG, "left out 2 steps", "RESUME: false")
    refused(frail.run(store, frail.job("anew", training={"RESUME": False})), CONFIG, f"step {BAD_STEP}")
