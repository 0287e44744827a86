"""Trains the model at its real size for two steps, stops and resumes it, and watches its memory. See scripts/full-size."""

import argparse
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "python"))
from harness import write_tsv  # noqa: E402
from measure import peak_bytes, require  # noqa: E402

PREEMPTED = 23
LABELS = ["a polyp", "normal mucosa", "oesophagitis"]
SIZES = ROOT / "benches" / "medimageinsight.yaml"
# two steps, each followed by a checkpoint; everything is trained
TRAINING = {
    "MAX_NUM_EPOCHS": 1,
    "TRAIN": {"BATCH_SIZE_TOTAL": 2, "BATCH_SIZE_PER_GPU": 2},
    "IMAGE_ENCODER": {"SPEC": {"ENABLE_CHECKPOINT": True}},
    "AUG": {"TORCHVISION_AUG": {"AUTO_AUGMENT": "ta_wide", "RE_PROB": 0.25}},
    "WEIGHT_SMOOTHING": {"decay": 0.999},
    "GRAD_CLIPPING": 0.07,
    "EVAL_AT_START": False,
    "LOG_EVERY": 1,
    "SAVE_PER_OPTIM_STEPS": 1,
    "EVALDATASET_LABELS": {"ZS_MODE": 2},
    "TEST": {"BATCH_SIZE_PER_GPU": 2},
}


def rows(name, count):
    """[(key, JPEG, text row)] of made-up images."""
    rng = np.random.default_rng(count)
    for n in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((512, 512)).save(file, "JPEG", quality=95)
        label = n % len(LABELS)
        row = {"class_id": label, "class_name": LABELS[label], "source": "made up", "task": "classification"}
        yield f"{name}{n}", file.getvalue(), row


def write_inputs(folder, device):
    for name, count in (("train", 4), ("eval", 3)):
        found = list(rows(name, count))
        write_tsv(folder / f"{name}_images.tsv", [(key, jpeg) for key, jpeg, _ in found])
        write_tsv(folder / f"{name}_texts.tsv", [(key, row) for key, _, row in found])
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    (folder / "train.yaml").write_text(yaml.safe_dump(TRAINING, sort_keys=False))
    inputs = {
        "mlflow_model_path": "model:base@latest",
        "image_tsv": "train_images.tsv",
        "text_tsv": "train_texts.tsv",
        "eval_image_tsv": "eval_images.tsv",
        "eval_text_tsv": "eval_texts.tsv",
        "label_file": "labels.txt",
        "conf_files": "train.yaml",
    }
    job = {"version": 1, "kind": "Finetune", "name": "full", "store": "store", "compute": {"device": device}}
    job |= {"inputs": inputs, "parameters": {"precision": "bf16", "keep_checkpoints": 1}}
    (folder / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))


class Run:
    """A run of medtune whose log is read while it goes on."""

    def __init__(self, medtune, folder, *arguments, stop=False):
        command = [medtune, "--log-format", "json", "--store", str(folder / "store"), *map(str, arguments)]
        env = os.environ | {"TMPDIR": str(folder / "tmp")}
        started, self.events, self.peak, asked = time.monotonic(), [], 0.0, False
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env)
        for line in process.stderr:
            event = json.loads(line)
            self.events.append(event)
            print(f"  {time.monotonic() - started:6.1f} s  {event.get('message', line.strip())} {self.detail(event)}")
            self.peak = max(self.peak, peak_bytes(process.pid) / 1e9)
            if stop and not asked and "curve is written" in event.get("message", ""):
                process.send_signal(signal.SIGTERM)
                asked = True
        self.status = process.wait()

    @staticmethod
    def detail(event):
        shown = ("step", "of", "loss", "lr", "checkpoint", "done", "total", "left_s", "zero_shot", "took", "version")
        return " ".join(f"{key}={event[key]}" for key in shown if key in event)

    def steps(self, message):
        return [event["step"] for event in self.events if event.get("message") == message]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--medtune", required=True)
    parser.add_argument("--folder", type=Path, default=ROOT / "full-size")
    parser.add_argument("--limit", type=float, default=20.0, help="most memory, 10^9 bytes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    folder = options.folder.resolve()
    require(not folder.exists(), f"{folder} is there already: remove it, or give another --folder")
    (folder / "tmp").mkdir(parents=True)
    try:
        write_inputs(folder, options.device)
        print("initialise")
        made = Run(options.medtune, folder, "model", "init", "--name", "base", "--config", SIZES, "--label-texts", folder / "labels.txt")
        require(made.status == 0, f"model init ended with {made.status}")
        print("train, and stop in the first step")
        first = Run(options.medtune, folder, "run", folder / "job.yaml", stop=True)
        require(first.status == PREEMPTED, f"the stopped run ended with {first.status}")
        require(first.steps("checkpoint complete") == [1], "there is no checkpoint of the first step")
        print("go on")
        second = Run(options.medtune, folder, "run", folder / "job.yaml")
        require(second.status == 0, f"the resumed run ended with {second.status}")
        require(second.steps("resuming from a checkpoint") == [1], "the run did not go on after the first step")
        require(second.steps("checkpoint complete") == [2], "there is no checkpoint of the second step")
        peak = max(made.peak, first.peak, second.peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9)
        print(f"most memory: initialise {made.peak:.1f} GB, train {first.peak:.1f} GB, go on {second.peak:.1f} GB; at any time {peak:.1f} GB")
        require(peak <= options.limit, f"{peak:.1f} GB are more than {options.limit} GB")
        print("PASSED: full size, two steps, stopped and resumed")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
