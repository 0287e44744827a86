"""A small fine-tuning job: base model, image and text TSVs, configuration; and what its runs leave in a store."""

import copy
import io
import json
import shutil
from pathlib import Path

import handmade
import numpy as np
import torch
import yaml
from harness import Events, environment, invoke, small_pixels, succeed, write_tsv
from PIL import Image
from safetensors.torch import load_file, save_file

LABELS = ["red", "lime", "navy"]
TEMPLATE = "a {} one"
INPUTS = {
    "mlflow_model_path": "model:base@latest",
    "image_tsv": "train_images.tsv",
    "text_tsv": "train_texts.tsv",
    "eval_image_tsv": "eval_images.tsv",
    "eval_text_tsv": "eval_texts.tsv",
    "label_file": "labels.txt",
    "conf_files": "train.yaml",
}


def merged(base, changes):
    """`base` with the nested `changes` in it; None takes a key out."""
    out = copy.deepcopy(base)
    for key, value in changes.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merged(out[key], value)
        else:
            out[key] = value
    return out


def picture(rng, label, tint, width, height):
    """A JPEG of coarse noise with a `tint` of its class."""
    coarse = rng.integers(0, 255 - tint, (4, 4, 3))
    coarse[..., label] += tint
    image = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92)
    return out.getvalue()


def rows(count, seed, classes=None, tint=20):
    """[(key, JPEG, text row)]: sizes of all kinds, two sources, which share no positives, and `classes`, or all in no order.

    With a `tint` of 20 of 255 the classes are neither hopeless nor trivial to tell apart.
    """
    rng = np.random.default_rng(seed)
    found = []
    for n in range(count):
        label = int(rng.permutation(len(LABELS))[0]) if n >= len(LABELS) else n
        label = label if classes is None else classes[n]
        text = {"class_id": label, "class_name": LABELS[label], "source": f"site {n % 2}", "task": "classification"}
        width, height = (int(side) for side in rng.integers(20, 70, 2))
        found.append((f"{seed}/{n:03}.jpg", picture(rng, label, tint, width, height), text))
    return found


class Bench:
    """A folder with everything that the job reads, and stores in it that differ only in what happened to their runs."""

    def __init__(self, binary, folder, training, train=None, evaluation=None, state=None):
        """`train` and `evaluation` take the place of the rows, `state` of some of the base model's weights."""
        self.binary, self.folder = binary, Path(folder)
        self.env = environment(self.folder / "tmp")
        self.config = small_pixels(handmade.config())
        self.config["IMAGE_ENCODER"]["SPEC"]["DROP_PATH_RATE"] = 0.1
        self._write_base(state or {})
        self.train = train or rows(60, 1)
        for name, content in (("train", self.train), ("eval", evaluation or rows(9, 2))):
            write_tsv(self.folder / f"{name}_images.tsv", [(key, data) for key, data, _ in content])
            write_tsv(self.folder / f"{name}_texts.tsv", [(key, text) for key, _, text in content])
        (self.folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
        (self.folder / "train.yaml").write_text(yaml.safe_dump(training, sort_keys=False))
        succeed(binary, "--store", self.folder / "empty", "model", "import", "--name", "base", self.folder / "base", env=self.env)

    def _write_base(self, state):
        """The community layout, with weights large enough that every part of the network matters from the first step on."""
        base = self.folder / "base"
        words = base / "language_model" / "clip_tokenizer_4.16.2"
        words.mkdir(parents=True)
        (base / "vision_model").mkdir()
        self.tokenizer = handmade.tokenizer()
        (words / "vocab.json").write_text(json.dumps(self.tokenizer.get_vocab()))
        (words / "merges.txt").write_text("#version: 0.2\n")
        (base / "config.yaml").write_text(yaml.safe_dump(self.config))
        self.state = handmade.random_state(self.config, self.tokenizer.get_vocab_size(), seed=11) | state
        save_file(self.state, base / "vision_model" / "model.safetensors")

    def new_store(self, name):
        """A store that holds the base model and nothing else."""
        return shutil.copytree(self.folder / "empty", self.folder / name)

    def job(self, name="job", **parameters):
        """Path of the job with these parameters; `training` among them replaces keys of the configuration, by dotted names."""
        job = {
            "version": 1,
            "kind": "Finetune",
            "name": "tune",
            # one thread, so that sums are always in the same order
            "compute": {"device": "cpu", "threads": 1},
            "inputs": INPUTS,
            "parameters": {"prompt_templates": [TEMPLATE]} | parameters,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(job, sort_keys=False))
        return path

    def run(self, store, job):
        """Runs the job to its end, whatever that is."""
        return invoke(self.binary, "--store", store, "run", job, env=self.env)

    def start(self, store, job):
        """Starts the job; the events of its log."""
        return Events(self.binary, "--store", store, "run", job, env=self.env)

    def ask(self, store, *arguments):
        """The answer of a verb, parsed."""
        return succeed(self.binary, "--store", store, *arguments, "--json", env=self.env)

    def result(self, store):
        """What the newest finished run left."""
        return Result(self, store)


class Result:
    """The outputs of a finished job in a store."""

    def __init__(self, bench, store):
        names = (("data", "tune-save_dir"), ("model", "tune-mlflow_model_folder"))
        uris = [bench.ask(store, kind, "show", name)["uri"] for kind, name in names]
        self.save_dir, self.package = (Path(uri.removeprefix("file://")) for uri in uris)

    def weights(self, name):
        """{parameter: tensor} of `best` or `last`."""
        return load_file(self.save_dir / f"{name}.safetensors")

    def package_weights(self):
        """The file of the package's weights."""
        checkpoints = self.package / "artifacts" / "checkpoints"
        return checkpoints / json.loads((checkpoints / "medtune.json").read_text())["weights"]

    def series(self):
        """The lines of metrics.jsonl, as they are."""
        return [json.loads(line) for line in (self.save_dir / "metrics.jsonl").read_text().splitlines()]

    def steps(self):
        """The lines of optimizer steps, by step."""
        return {line["step"]: line for line in self.series() if "loss" in line}


def furthest(found, expected):
    """(distance, name) of the tensor that differs most, relative to the largest number of its counterpart."""
    assert found.keys() == expected.keys()
    distance = {n: ((found[n] - e).abs().max() / e.abs().max().clamp_min(torch.finfo(e.dtype).tiny)).item() for n, e in expected.items()}
    return max((d, n) for n, d in distance.items())
