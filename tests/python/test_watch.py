"""Watching a training: the curve in the store while it runs, TensorBoard's own reader, progress on a terminal and in JSON logs."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
import time
from datetime import datetime
from pathlib import Path

import conftest
import numpy as np
import pyte
import pytest
import torch
import yaml
from harness import Events, environment, small_pixels, succeed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS_AN_EPOCH = 10
TRAINING = {
    "MAX_NUM_EPOCHS": 2,
    "START_LEARNING_RATE": 0.001,
    "TRAIN": {"BATCH_SIZE_TOTAL": 12, "BATCH_SIZE_PER_GPU": 12},
    "LR_SCHEDULER_PARAMS": {"warmup_steps": 2},
    "EVAL_PER_OPTIM_STEPS": 8,
    "LOG_EVERY": 2,
}
LONG = 400
# what stands in the local file and, before the time, in the store's
CLOCK = ("time", "images_per_s", "data_wait")


def out(output):
    return f"${{{{ steps.prepare.outputs.{output} }}}}"


def job():
    files = {"image_tsv": "train_image_tsv", "text_tsv": "train_text_tsv", "label_file": "label_file"}
    files |= {"eval_image_tsv": "validation_image_tsv", "eval_text_tsv": "validation_text_tsv"}
    inputs = {"mlflow_model_path": "model:base@latest", "conf_files": ["train.yaml"]} | {k: out(v) for k, v in files.items()}
    images = {"image_folder": "images", "text_constants": "text_constants.yaml"}
    steps = {
        "prepare": {"kind": "Prepare", "inputs": images, "parameters": {"image_size": 48}},
        "tune": {"kind": "Finetune", "inputs": inputs},
    }
    return {"version": 1, "kind": "Pipeline", "name": "watched", "compute": {"device": "cpu", "threads": 1}, "steps": steps}


class Bench:
    """A store with a base model and prepared images, and a job that trains on them."""

    def __init__(self, binary, folder):
        self.binary, self.folder, self.store = binary, folder, folder / "store"
        self.env = environment(folder / "tmp")
        conftest.write_images(folder / "images")
        constants = {"folder_to_label": {f"class_{digit}": label for digit, label in enumerate(conftest.LABELS)}}
        contents = {"text_constants": constants, "model": small_pixels(conftest.model_config()), "train": TRAINING, "job": job()}
        for name, content in contents.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        (folder / "labels.txt").write_text("\n".join(conftest.LABELS) + "\n")
        config, labels = folder / "model.yaml", folder / "labels.txt"
        self.succeed("model", "init", "--name", "base", "--config", config, "--label-texts", labels)

    def succeed(self, *arguments):
        return succeed(self.binary, "--store", self.store, *arguments, env=self.env)

    def arguments(self, epochs, name):
        """Runs of different names have outputs of their own, so none is taken from another run."""
        changed = [f"name={name}", f"steps.tune.parameters.training.MAX_NUM_EPOCHS={epochs}"]
        return ["--store", self.store, "run", self.folder / "job.yaml", *(x for c in changed for x in ("--set", c))]

    def curve(self, run_id):
        """The folder of the training's curve."""
        return self.store / "runs" / run_id / "tune"


@pytest.fixture(scope="module")
def bench(binary, tmp_path_factory):
    return Bench(binary, tmp_path_factory.mktemp("watch"))


@pytest.fixture(scope="module")
def finished(bench):
    """A run that ended well: its record and the lines of its curve."""
    record = bench.succeed(*bench.arguments(2, "calm")[2:], "--json")
    return record, lines(bench.curve(record["run_id"]))


def lines(curve):
    """The whole lines of a curve; its last one may be half there."""
    path = curve / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def scalars(read):
    """{(name, step): (value, time)} of what TensorBoard's reader has read."""
    return {(tag, e.step): (e.value, e.wall_time) for tag in read.Tags()["scalars"] for e in read.Scalars(tag)}


def expected_scalars(curve_lines):
    """The same from the lines."""
    found = {}
    for line in curve_lines:
        when = datetime.fromisoformat(line["time"]).timestamp()
        flat = {f"evaluation/{k}": v for k, v in line.get("evaluation", {}).items()}
        for key, value in line.items():
            if isinstance(value, (int, float)) and key != "step":
                flat[("speed/" if key in CLOCK else "train/") + key] = value
        found |= {(tag, line["step"]): (float(np.float32(v)), when) for tag, v in flat.items() if v is not None}
    return found


def test_tensorboard_reads_the_numbers_of_the_lines(bench, finished):
    record, curve_lines = finished
    read = EventAccumulator(str(bench.curve(record["run_id"])), size_guidance={"scalars": 0})
    read.Reload()
    found, expected = scalars(read), expected_scalars(curve_lines)
    assert read.file_version == 2
    assert found.keys() == expected.keys()
    assert found == {k: (value, pytest.approx(when, abs=1e-6)) for k, (value, when) in expected.items()}
    names = {tag for tag, _ in found}
    rates = {"speed/images_per_s", "speed/data_wait"}
    assert {"train/loss", "train/lr", "train/grad_norm", "evaluation/zero_shot"} | rates <= names, names
    # the lines after evaluations too: what an evaluation takes is no time of training
    assert all(0 < line["images_per_s"] < 1e5 and 0 <= line["data_wait"] <= 1 for line in curve_lines if "images_per_s" in line)
    total = 2 * STEPS_AN_EPOCH
    assert [s for tag, s in sorted(found) if tag == "train/loss"] == list(range(2, total + 1, 2))
    assert {s for tag, s in found if tag == "evaluation/zero_shot"} >= {8, 16, total}


def test_the_local_file_is_the_curve_without_the_clock(bench, finished):
    record, curve_lines = finished
    [uri] = [o["uri"] for name, o in record["outputs"].items() if name == "tune.save_dir"]
    text = (Path(uri.removeprefix("file://")) / "metrics.jsonl").read_text()
    local = [json.loads(line) for line in text.splitlines()]
    assert local == [{k: v for k, v in line.items() if k not in CLOCK} for line in curve_lines]
    assert not any(name in text for name in CLOCK)


def test_a_run_says_where_its_curve_is_and_what_it_computed_with(bench, finished):
    record, _ = finished
    folder = bench.curve(record["run_id"])
    shown = bench.succeed("runs", "show", record["run_id"], "--json")
    assert shown == record
    assert shown["series"] == {"tune": folder.as_uri()}
    assert folder.as_uri() in bench.succeed("runs", "show", record["run_id"])
    assert shown["compute"] == {"device": "cpu", "libtorch": torch.__version__, "threads": 1}
    listed = bench.succeed("runs", "list", "--json")
    assert [r["run_id"] for r in listed].count(record["run_id"]) == 1


def test_the_curve_grows_while_the_run_goes_on(bench):
    """Read as others would: by lines, and by one reader of TensorBoard that stays open; then the run is killed."""
    events = Events(bench.binary, *bench.arguments(LONG, "killed"), env=bench.env)
    told = events.until(message="the curve is written here while the step runs: metrics.jsonl, and events for TensorBoard")
    assert told, events.seen[-5:]
    folder = bench.curve(events.run_id)
    assert told["folder"] == folder.as_uri()
    progress = events.until(message="progress", work="train")
    assert progress, events.seen[-5:]

    sizes, read = [], EventAccumulator(str(folder), size_guidance={"scalars": 0})
    deadline = time.monotonic() + 60
    while len(sizes) < 3 and time.monotonic() < deadline:
        read.Reload()
        size = (len(lines(folder)), len(scalars(read)))
        if not sizes or (size[0] > sizes[-1][0] and size[1] > sizes[-1][1]):
            sizes.append(size)
        time.sleep(0.2)
    assert len(sizes) == 3, f"the curve did not grow: {sizes}"
    assert events.kill() == -9, "the run was over before it was killed"
    read.Reload()
    # the events are written first, so they may say more
    found = scalars(read)
    for key, (value, when) in expected_scalars(lines(folder)).items():
        assert found[key] == (value, pytest.approx(when, abs=1e-6)), key
    assert [r["run_id"] for r in bench.succeed("runs", "list", "--json")].count(events.run_id) == 1

    assert (progress["unit"], progress["total"]) == ("steps", LONG * STEPS_AN_EPOCH)
    assert 0 < progress["done"] < progress["total"]
    left_s = (progress["total"] - progress["done"]) / progress["rate"]
    assert progress["left_s"] == pytest.approx(left_s, rel=1e-6)
    assert 0 < progress["images_per_s"] < 1e5 and 0 <= progress["data_wait"] <= 1
    assert progress["loss"] > 0 and progress["lr"] > 0


def test_a_store_that_cannot_take_the_curve_does_not_stop_the_run(bench):
    events = Events(bench.binary, *bench.arguments(1, "in-the-way"), env=bench.env)
    assert events.until(message="run started")
    # a file where the folder should be
    folder = bench.curve(events.run_id)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")
    assert events.finish() == 0, events.seen[-5:]
    said = [e for e in events.seen if "series" in e["message"]]
    assert [e["level"] for e in said] == ["WARN", "ERROR"], said
    assert folder.read_text() == "in the way"


def screens(command, env, columns=80, rows=24):
    """What a terminal shows while a program runs in it, each time something changes; the last one is what stays."""
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    env = env | {"TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=terminal, stdout=subprocess.DEVNULL, stderr=terminal, env=env)
    os.close(terminal)
    screen = pyte.Screen(columns, rows)
    stream, seen = pyte.ByteStream(screen), []
    try:
        while chunk := os.read(control, 4096):
            stream.feed(chunk)
            seen.append([line.rstrip() for line in screen.display])
    except OSError:
        # the program has ended, and with it the other end
        pass
    os.close(control)
    assert process.wait(timeout=60) == 0
    return seen


def test_a_terminal_shows_all_of_it(bench):
    """80 columns are enough for the numbers, the log goes on above the bar, and nothing of the bar is left at the end."""
    seen = screens([str(bench.binary), *map(str, bench.arguments(3, "terminal"))], bench.env)
    total = 3 * STEPS_AN_EPOCH
    bar = re.compile(rf" *train [█▉▊▋▌▍▎▏░ ]+ (\d+)/{total} [\d.]+ steps/s, .+ left")
    detail = re.compile(r" +loss [\d.]+ lr [\d.]+e-?\d+ [\d.]+ images/s wait [\d.]+ %")
    shown = [(bar.fullmatch(a), detail.fullmatch(b)) for screen in seen for a, b in zip(screen, screen[1:], strict=False)]
    done = [int(a[1]) for a, b in shown if a and b]
    assert len(set(done)) > 3 and done == sorted(done), "\n".join(seen[len(seen) // 2])
    end = "\n".join(seen[-1])
    assert "finished" in end and "░" not in end and "█" not in end, end
