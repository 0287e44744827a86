"""Fixtures: the medtune binary, and one small run of every job kind (but fine-tuning) whose results several tests look at."""

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
import servers
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[2]
LABELS = ["number zero", "number one", "number two", "number three", "number four"]
ROWS_A_CLASS = 40
KNN = 7

# files that take longest, which begin first where several run side by side
LONGEST = ("test_mlflow_server", "test_store_pipeline", "test_package", "test_training", "test_watch", "test_store_inputs")


def pytest_configure():
    # whoever runs the tests in the background of a shell may ignore SIGINT, and so would all that is started here
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def binary():
    """The medtune program: MEDTUNE_BIN, else the debug build. Skips without a build; a MEDTUNE_BIN that is not there fails."""
    given = os.environ.get("MEDTUNE_BIN")
    path = Path(given or Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "debug" / "medtune")
    if not path.is_file():
        if given:
            pytest.fail(f"MEDTUNE_BIN is {given}, which is not a file")
        pytest.skip(f"{path} is not built; run cargo build, or set MEDTUNE_BIN")
    return path


@pytest.fixture(scope="session")
def core_binary(binary):
    """The medtune program without libtorch: MEDTUNE_CORE_BIN, else what `scripts/test` puts beside the other one."""
    given = os.environ.get("MEDTUNE_CORE_BIN")
    path = Path(given or binary.with_name("medtune-core"))
    if not path.is_file():
        pytest.fail(f"{path} is not built; run scripts/test binary, or set MEDTUNE_CORE_BIN")
    return path


@pytest.fixture(scope="session")
def medtune(binary):
    """Runs medtune with the arguments and returns its standard output, parsed where --json is among them; fails on another exit code."""

    def run(*arguments, expect=0):
        command = [str(binary), *map(str, arguments)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MEDTUNE_")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == expect, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout) if "--json" in arguments and expect == 0 else done.stdout

    return run


@pytest.fixture(scope="session")
def s3():
    """A `servers.S3`, shared by all tests: each takes a prefix of its own."""
    with servers.s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def azure():
    """A `servers.Azure`, shared by all tests: each takes a prefix of its own."""
    with servers.azure_server() as server:
        yield server


def model_config():
    """Sizes of the tests' model, in the base model's format; the image is no multiple of the window, groups are unlike heads."""
    return {
        "IMAGE_ENCODER": {
            "IMAGE_SIZE": [36, 44],
            "IMAGE_MEAN": [0.485, 0.456, 0.406],
            "IMAGE_STD": [0.229, 0.224, 0.225],
            "SPEC": {
                "DROP_PATH_RATE": 0.1,
                "PATCH_SIZE": [7, 3],
                "PATCH_STRIDE": [4, 2],
                "PATCH_PADDING": [3, 1],
                "PATCH_PRENORM": [False, True],
                "DIM_EMBED": [16, 32],
                "NUM_HEADS": [2, 4],
                "NUM_GROUPS": [4, 2],
                "DEPTHS": [1, 2],
                "WINDOW_SIZE": 5,
            },
        },
        "LANG_ENCODER": {"CONTEXT_LENGTH": 20, "WIDTH": 32, "HEADS": 4, "LAYERS": 2, "AUTOGRESSIVE": False},
        "UNICL_MODEL": {"DIM_PROJECTION": 24},
    }


def write_images(folder):
    """A folder per class of digits: 8 x 8 PNGs, and some enlarged to odd sizes, as JPEG and in colour."""
    digits = load_digits()
    rng = np.random.default_rng(5)
    for digit in range(len(LABELS)):
        target = folder / f"class_{digit}"
        target.mkdir(parents=True)
        for n, index in enumerate(np.flatnonzero(digits.target == digit)[:ROWS_A_CLASS]):
            image = Image.fromarray(np.round(digits.images[index] * 255 / 16).astype(np.uint8))
            if n % 4 == 1:
                image = image.resize((37 + n, 61), Image.Resampling.BICUBIC)
            if n % 4 == 2:
                noise = rng.integers(0, 60, (53, 41, 3), dtype=np.uint8)
                image = Image.fromarray(noise + np.asarray(image.convert("RGB").resize((41, 53))) // 2)
            if n % 4 == 1:
                image.save(target / f"{index:05}.jpg", quality=90)
            else:
                image.save(target / f"{index:05}.png")


def pipeline():
    """The job: every step but fine-tuning, on an untrained model."""

    def out(step, output):
        return f"${{{{ steps.{step}.outputs.{output} }}}}"

    def embed(split):
        inputs = {"image_tsv": out("prepare", f"{split}_image_tsv"), "mlflow_model_path": "model:base@latest"}
        inputs |= {"label_file": out("prepare", "label_file")} if split == "test" else {}
        outputs, forms = {"embeddings": f"{split}-embeddings"}, {"formats": ["npy", "pickle"]}
        return {"kind": "Embed", "inputs": inputs, "parameters": forms, "outputs": outputs}

    def assemble(name, **inputs):
        inputs |= {"mlflow_model_path": "model:base@latest", "label_file": out("prepare", "label_file")}
        return {"kind": "Assemble", "inputs": inputs, "parameters": {"onnx": True}, "outputs": {"classification_mlflow_model": name}}

    embeddings = {f"{split}_embeddings": out(f"embed-{split}", "embeddings") for split in ("train", "validation", "test")}
    texts = {f"{split}_text_tsv": out("prepare", f"{split}_text_tsv") for split in ("train", "validation", "test")}
    splits = [f"{split}_{kind}_tsv" for split in ("train", "validation", "test") for kind in ("image", "text")]
    label_file = {"label_file": out("prepare", "label_file")}
    steps = {
        "prepare": {
            "kind": "Prepare",
            "inputs": {"image_folder": "images", "text_constants": "text_constants.yaml"},
            "parameters": {"image_size": 64},
            "outputs": {name: name for name in [*splits, "label_file"]},
        },
        **{f"embed-{split}": embed(split) for split in ("train", "validation", "test")},
        "adapter": {
            "kind": "Adapter",
            "inputs": {k: v for k, v in (embeddings | texts | label_file).items() if not k.startswith("test")},
            "parameters": {"hidden_dimensions": 32, "max_epochs": 4},
            "outputs": {"adapter": "adapter"},
        },
        "assemble-zero-shot": assemble("zero-shot"),
        "assemble-adapter": assemble("adapter-classifier", adapter=out("adapter", "adapter")),
        "evaluate": {
            "kind": "Evaluate",
            "inputs": embeddings
            | texts
            | label_file
            | {
                "zero_shot_mlflow_model": out("assemble-zero-shot", "classification_mlflow_model"),
                "adapter_mlflow_model": out("assemble-adapter", "classification_mlflow_model"),
            },
            "parameters": {"knn": KNN},
            "outputs": {"report": "report"},
        },
    }
    return {"version": 1, "kind": "Pipeline", "name": "comparison", "steps": steps}


class Run:
    """Results of the pipeline, fetched from the store once and when first asked for."""

    def __init__(self, folder, medtune):
        self.folder, self.store, self._medtune = folder, folder / "store", medtune

    def model(self, name):
        """Folder of the newest version of a model package."""
        target = self.folder / "pulled" / name
        if not target.exists():
            self._medtune("--store", self.store, "model", "pull", f"{name}@latest", target)
        return target

    def data(self, name):
        """Folder or file of the newest version of a data output, in the store itself."""
        version = self._medtune("--store", self.store, "data", "show", f"{name}@latest", "--json")
        uri = version["uri"].removeprefix("file://")
        files = [path for path in Path(uri).iterdir() if path.suffix != ".lineidx"]
        return files[0] if name.endswith(("_tsv", "_file")) and len(files) == 1 else Path(uri)

    def images(self):
        """Some image files of each class and format."""
        return [path for folder in sorted((self.folder / "images").iterdir()) for path in sorted(folder.iterdir())[:6]]


@pytest.fixture(scope="session")
def run(medtune, tmp_path_factory):
    """A `Run`, finished."""
    folder = tmp_path_factory.mktemp("run")
    write_images(folder / "images")
    constants = {"folder_to_label": {f"class_{digit}": label for digit, label in enumerate(LABELS)}}
    (folder / "text_constants.yaml").write_text(yaml.safe_dump(constants))
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    (folder / "model.yaml").write_text(yaml.safe_dump(model_config()))
    (folder / "job.yaml").write_text(yaml.safe_dump(pipeline(), sort_keys=False))
    store = ["--store", folder / "store"]
    config, labels = folder / "model.yaml", folder / "labels.txt"
    medtune(*store, "model", "init", "--name", "base", "--config", config, "--label-texts", labels)
    medtune(*store, "run", folder / "job.yaml")
    return Run(folder, medtune)
