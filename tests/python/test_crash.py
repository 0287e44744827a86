"""kill -9 in every step: the same command goes on where it was, and nothing half-done is ever seen."""

import json
import random
import shutil
import time
from datetime import datetime

import conftest
import numpy as np
import pytest
import yaml
from harness import Events, check_complete, environment, small_pixels, succeed
from PIL import Image
from sklearn.datasets import load_digits

LABELS = conftest.LABELS[:3]
ROWS_A_CLASS = 20
STEPS = ["prepare", "finetune", "embed-train", "embed-validation", "embed-test", "adapter", "zero-shot", "classifier", "evaluate"]
TRAINING = {
    "MAX_NUM_EPOCHS": 2,
    "START_LEARNING_RATE": 0.001,
    "TRAIN": {"BATCH_SIZE_TOTAL": 12, "BATCH_SIZE_PER_GPU": 6},
    "AUG": {"SCALE": [0.8, 1.0]},
    "WEIGHT_SMOOTHING": {"decay": 0.9, "use_cpu": False, "eval_smoothed_weight": True},
    "LR_SCHEDULER_PARAMS": {"warmup_steps": 2},
    "EVAL_PER_OPTIM_STEPS": 3,
    "LOG_EVERY": 1,
}


def out(step, output):
    return f"${{{{ steps.{step}.outputs.{output} }}}}"


def pipeline():
    """Every kind of step, on few images; one thread, so that sums are always in the same order."""
    splits = ("train", "validation", "test")
    prepared = {f"{s}_{kind}_tsv": out("prepare", f"{s}_{kind}_tsv") for s in splits for kind in ("image", "text")}
    label_file = {"label_file": out("prepare", "label_file")}
    model = {"mlflow_model_path": out("finetune", "mlflow_model_folder")}
    embeddings = {f"{s}_embeddings": out(f"embed-{s}", "embeddings") for s in splits}
    texts = {f"{s}_text_tsv": prepared[f"{s}_text_tsv"] for s in splits}
    steps = {
        "prepare": {
            "kind": "Prepare",
            "inputs": {"image_folder": "images", "text_constants": "text_constants.yaml"},
            "parameters": {"image_size": 48},
        },
        "finetune": {
            "kind": "Finetune",
            "inputs": {
                "mlflow_model_path": "model:base@latest",
                "image_tsv": prepared["train_image_tsv"],
                "text_tsv": prepared["train_text_tsv"],
                "eval_image_tsv": prepared["validation_image_tsv"],
                "eval_text_tsv": prepared["validation_text_tsv"],
                "conf_files": ["train.yaml"],
                **label_file,
            },
        },
    }
    for split in splits:
        steps[f"embed-{split}"] = {"kind": "Embed", "inputs": {"image_tsv": prepared[f"{split}_image_tsv"], **model}}
    steps["adapter"] = {
        "kind": "Adapter",
        "inputs": {k: v for k, v in (embeddings | texts | label_file).items() if not k.startswith("test")},
        "parameters": {"hidden_dimensions": 16, "max_epochs": 4},
    }
    steps["zero-shot"] = {"kind": "Assemble", "inputs": model | label_file}
    steps["classifier"] = {"kind": "Assemble", "inputs": model | label_file | {"adapter": out("adapter", "adapter")}}
    packages = {
        "zero_shot_mlflow_model": out("zero-shot", "classification_mlflow_model"),
        "adapter_mlflow_model": out("classifier", "classification_mlflow_model"),
    }
    steps["evaluate"] = {"kind": "Evaluate", "inputs": embeddings | texts | label_file | packages, "parameters": {"knn": 3}}
    compute = {"device": "cpu", "threads": 1}
    return {"version": 1, "kind": "Pipeline", "name": "crash", "compute": compute, "steps": steps}


def write_images(folder):
    digits = load_digits()
    for digit in range(len(LABELS)):
        (folder / f"class_{digit}").mkdir(parents=True)
        for index in np.flatnonzero(digits.target == digit)[:ROWS_A_CLASS]:
            pixels = np.round(digits.images[index] * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class_{digit}" / f"{index:05}.png")


class Bench:
    """One folder with everything that a run reads, and stores that differ only in what happened to their runs."""

    def __init__(self, binary, folder):
        self.binary, self.folder, self.job = binary, folder, folder / "job.yaml"
        self.env = environment(folder / "tmp")

    def start(self, store, *arguments):
        return Events(self.binary, "--store", store, "run", self.job, *arguments, env=self.env)

    def ask(self, store, *arguments):
        return succeed(self.binary, "--store", store, *arguments, "--json", env=self.env)

    def finish(self, store):
        """Runs to the end; the events and the run record."""
        events = self.start(store)
        assert events.finish() == 0, events.seen[-5:]
        return events, self.ask(store, "runs", "show", events.run_id)

    def check(self, store):
        """Whole versions only, and the same ones in the listings as on the disk."""
        found = check_complete(store)
        for kind in ("model", "data"):
            listed = {entry["name"] for entry in self.ask(store, kind, "list")}
            assert listed == {name for k, name in found if k == kind}
        return found

    def new_store(self, name):
        return shutil.copytree(self.folder / "empty", self.folder / name)


@pytest.fixture(scope="module")
def bench(binary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("crash")
    bench = Bench(binary, folder)
    write_images(folder / "images")
    constants = {"folder_to_label": {f"class_{digit}": label for digit, label in enumerate(LABELS)}}
    for name, content in {
        "text_constants.yaml": constants,
        "model.yaml": small_pixels(conftest.model_config()),
        "train.yaml": TRAINING,
        "job.yaml": pipeline(),
    }.items():
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    arguments = ["--name", "base", "--config", folder / "model.yaml", "--label-texts", folder / "labels.txt"]
    succeed(binary, "--store", folder / "empty", "model", "init", *arguments, env=bench.env)
    return bench


@pytest.fixture(scope="module")
def calm(bench):
    """A run that nobody disturbed: its store, its record and how long each step took, in seconds."""
    store = bench.new_store("calm")
    events, record = bench.finish(store)
    assert [s["name"] for s in record["steps"]] == STEPS
    assert {s["status"] for s in record["steps"]} == {"succeeded"}

    def times(message):
        lines = (e for e in events.seen if e["message"] == message and "step" in e)
        return {e["step"]: datetime.fromisoformat(e["timestamp"]) for e in lines}

    started, finished = times("started"), times("finished")
    return store, record, {s: (finished[s] - started[s]).total_seconds() for s in STEPS}


# these carry the time of the making, or hashes of files that do
TIMED = ("MLmodel", "README.md", "medtune-manifest.json", "report.json", "report.html")


def contents(store):
    """What was computed: {(kind, name): {path: SHA-256}} without times, and the report without the hashes of its inputs."""
    found = {}
    for key, [manifest] in check_complete(store).items():
        found[key] = {f["path"]: f["sha256"] for f in manifest["files"] if f["path"] not in TIMED}
        report = store / manifest["prefix"] / "report.json"
        if report.is_file():
            found[key]["report.json"] = {k: v for k, v in json.loads(report.read_text()).items() if k != "inputs"}
    return found


def test_killed_in_every_step(bench, calm):
    """Each run is killed at a random moment of the first step that none before it finished."""
    calm_store, _, durations = calm
    store = bench.new_store("storm")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}, durations {durations}")
    rng = random.Random(seed)
    finished, runs, hit = set(), [], []
    for step in STEPS:
        if step in finished:
            # the kill that was meant for the step before it came late
            continue
        events = bench.start(store)
        assert events.until(step=step, message="started"), events.seen[-5:]
        time.sleep(rng.uniform(0, 0.6) * durations[step])
        status = events.kill()
        runs.append(events.run_id)
        # what was done is not begun again, and says so
        assert not finished & set(events.steps("started")), (finished, events.steps("started"))
        assert finished <= set(events.steps("unchanged, not run again"))
        finished |= set(events.steps("finished"))
        hit += [step] if step not in finished else []
        bench.check(store)
        if status == 0:
            continue
        assert status == -9
        shown = bench.ask(store, "runs", "show", events.run_id)["status"]
        # killed after its last word
        assert shown == "running" or (shown == "succeeded" and finished == set(STEPS)), shown

    assert {"prepare", "finetune"} <= set(hit) and len(hit) > len(STEPS) / 2, f"too many kills came late: {hit}"
    events, record = bench.finish(store)
    statuses = {s["name"]: s["status"] for s in record["steps"]}
    expected = {s: "unchanged" if s in finished else "succeeded" for s in STEPS}
    assert statuses == expected and record["status"] == "succeeded" and record["exit_code"] == 0
    assert set(events.steps("started")) == set(STEPS) - finished
    listed = {r["run_id"]: r["status"] for r in bench.ask(store, "runs", "list")}
    assert listed.pop(events.run_id) == "succeeded" and set(listed) == set(runs)

    # one version of each output, as if nothing had happened
    found = bench.check(store)
    assert {len(versions) for versions in found.values()} == {1}
    assert contents(store) == contents(calm_store)
    assert not list((bench.folder / "tmp" / "medtune").glob("*")), "scratch folders of killed runs were not swept"

    again, record = bench.finish(store)
    assert {s["status"] for s in record["steps"]} == {"unchanged"} and not again.steps("started")
    assert check_complete(store) == found


@pytest.mark.parametrize("step, outputs", [("prepare", 1), ("prepare", 4), ("finetune", 1)])
def test_killed_between_the_outputs_of_a_step(bench, calm, step, outputs):
    """Versions that a killed step had published already are found again, not published twice."""
    store = bench.new_store(f"between-{step}-{outputs}")
    if step != "prepare":
        # everything before the step, from the undisturbed run
        events = bench.start(store)
        assert events.until(step=step, message="started")
        events.kill()
    events = bench.start(store)
    for _ in range(outputs):
        assert events.until(step=step, message="registered"), events.seen[-5:]
    events.kill()
    before = bench.check(store)
    assert step not in events.steps("finished") or len(before) > 1
    events = bench.start(store)
    following = STEPS[STEPS.index(step) + 1]
    assert events.until(step=following, message="started"), events.seen[-5:]
    events.kill()
    after = bench.check(store)
    assert {len(versions) for versions in after.values()} == {1}
    for key, versions in before.items():
        assert after[key] == versions
    undisturbed = contents(calm[0])
    assert all(undisturbed[key] == files for key, files in contents(store).items())


def test_two_runs_at_once_make_one_version(bench, calm):
    """Two processes with the same job at the same time: both end well, no number is given twice or left out."""
    store = bench.new_store("together")
    both = [bench.start(store), bench.start(store)]
    assert [events.finish() for events in both] == [0, 0]
    found = bench.check(store)
    assert {len(versions) for versions in found.values()} == {1}
    assert contents(store) == contents(calm[0])
