"""ONNX models of packages: valid by ONNX's own checker, and in ONNX Runtime the answers of an independent PyTorch model."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import handmade
import onnx
import onnxruntime
import pytest
import torch
import yaml
from conftest import LABELS, ROOT
from harness import environment, invoke, refused, sha256, succeed
from PIL import Image
from reference import Package, rgb
from safetensors.torch import load_file
from test_import import SAVED, community

CHECKPOINTS = "artifacts/checkpoints"
TEXTS = ["endoscopy gastrointestinal colon polyp.", "x", "a long text " * 20]
# the image is a multiple of the window or not, in both directions; stages; what a text token sees
SHAPES = {
    "padded": {},
    "whole windows": {"WINDOW_SIZE": 2, "IMAGE_SIZE": [32, 48]},
    "one window": {"WINDOW_SIZE": 20},
    "four stages": handmade.FOUR_STAGES | {"IMAGE_SIZE": [96, 64]},
    "causal": {"AUTOGRESSIVE": True},
}


def session(package, name):
    """ONNX Runtime over a model of the package, which is a valid one."""
    path = Path(package) / CHECKPOINTS / name
    onnx.checker.check_model(str(path), full_check=True)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def tokens(package, texts, length=None):
    """What the text encoder takes of `texts`."""
    ids, mask = package.model.tokens(package.tokenizer, texts, length)
    return {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}


def near(found, expected):
    torch.testing.assert_close(torch.as_tensor(found), expected.float(), rtol=0, atol=2e-5)


def images(run, count=4):
    return [path.read_bytes() for path in sorted((run.folder / "images").rglob("*.*"))[::17][:count]]


@pytest.fixture(scope="module")
def imported(medtune, tmp_path_factory):
    """Makes a package with ONNX models of random weights; gives its folder."""

    def make(name, *options, **changes):
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        config = handmade.config(**changes)
        state = handmade.random_state(config, handmade.tokenizer().get_vocab_size())
        theirs = community(folder / "theirs", SAVED["safetensors"](state), config=config)
        store = ["--store", folder / "store"]
        medtune(*store, "model", "import", "--name", "m", "--onnx", *options, theirs)
        medtune(*store, "model", "pull", "m@latest", folder / "package")
        return folder / "package"

    return make


@pytest.mark.parametrize("name", [*SHAPES, "bf16"])
def test_both_encoders(run, imported, name):
    options = ["--stored-weights", "bf16"] if name == "bf16" else []
    folder = imported(name, *options, **SHAPES.get(name, {}))
    package, files = Package(folder), images(run)
    if name == "bf16":
        assert {value.dtype for value in load_file(folder / CHECKPOINTS / package.settings["weights"]).values()} == {torch.float32, torch.bfloat16}
    image = session(folder, "image_encoder.onnx")
    pixels, expected = rgb(package.settings["pixels"], files), package.image_features(files)
    [vectors] = image.run(None, {"images": pixels})
    near(vectors, expected)
    assert (expected - expected[0]).abs().max() > 1e-3  # else the comparison shows nothing
    near(image.run(["image_features"], {"images": pixels[1:2]})[0], expected[1:2])
    facts = image.get_modelmeta().custom_metadata_map
    assert json.loads(facts["pixels"]) == package.settings["pixels"]
    assert float(facts["scaling_factor"]) == pytest.approx(package.logit_scale, abs=1e-6)

    text, expected = session(folder, "text_encoder.onnx"), package.text_features(TEXTS)
    context = package.model.text.positional_embedding.shape[0]
    for length in (None, context):
        near(text.run(None, tokens(package, TEXTS, length))[0], expected)
    # of a text alone, with nothing to fill up
    alone = tokens(package, TEXTS[1:2])
    assert alone["input_ids"].shape[1] < context and alone["attention_mask"].all()
    near(text.run(None, alone)[0], expected[1:2])


@pytest.mark.parametrize("name", ["zero-shot", "adapter-classifier"])
def test_classifiers(run, name):
    folder, files = run.model(name), images(run)
    package = Package(folder)
    model = session(folder, "classifier.onnx")
    assert [output.name for output in model.get_outputs()] == ["scores", "image_features"]
    scores, vectors = model.run(None, {"images": rgb(package.settings["pixels"], files)})
    features = package.image_features(files)
    near(vectors, features)
    near(scores, package.scores(features))
    assert json.loads(model.get_modelmeta().custom_metadata_map["labels"]) == LABELS


def test_the_labels_are_those_of_medtune_on_every_image(run, medtune):
    folder, files = run.model("adapter-classifier"), run.images()
    answers = medtune("predict", folder, *files, "--json")["predictions"]
    model = session(folder, "classifier.onnx")
    pixels = rgb(Package(folder).settings["pixels"], [Path(file).read_bytes() for file in files])
    [scores] = model.run(["scores"], {"images": pixels})
    assert [LABELS[row.argmax()] for row in scores] == [answer["labels"][0]["label"] for answer in answers]


def test_the_numbers_are_not_stored_twice(run, imported):
    """A model's file holds no weights, and names files in the package's folder only."""
    folder = imported("small")
    for package, names in ((folder, ["image_encoder.onnx", "text_encoder.onnx"]), (run.model("zero-shot"), ["classifier.onnx"])):
        weights = Package(package).settings["weights"]
        for name in names:
            path = package / CHECKPOINTS / name
            model = onnx.load(str(path), load_external_data=False)
            assert sum(len(tensor.raw_data) for tensor in model.graph.initializer) < 2000
            places = {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}
            assert weights in places and places <= {weights, "classifier/class_embeddings.safetensors"}
            assert sha256(path) in (package / "medtune-manifest.json").read_text()


@pytest.mark.parametrize("name", ["base", "zero-shot", "adapter-classifier"])
def test_of_a_package_without_them(run, medtune, binary, tmp_path, name):
    """In a folder of its own, which is all that is needed."""
    source, files, folder = run.model(name), images(run), tmp_path / "new" / "onnx"
    package = Package(source)
    said = medtune("--store", run.store, "model", "export-onnx", f"{name}@latest", folder).splitlines()
    assert said == [str(folder / model) for model in (["image_encoder.onnx", "text_encoder.onnx"] if name == "base" else ["classifier.onnx"])]
    assert [path.name for path in folder.parent.iterdir()] == ["onnx"]
    pixels, features = rgb(package.settings["pixels"], files), package.image_features(files)
    if name == "base":
        near(onnxruntime.InferenceSession(said[0]).run(None, {"images": pixels})[0], features)
        near(onnxruntime.InferenceSession(said[1]).run(None, tokens(package, TEXTS))[0], package.text_features(TEXTS))
        assert (folder / package.settings["tokenizer"]).is_file()
    else:
        near(onnxruntime.InferenceSession(said[0]).run(["scores"], {"images": pixels})[0], package.scores(features))
        assert sha256(folder / "classifier.onnx") == sha256(source / CHECKPOINTS / "classifier.onnx")
    # nothing is written over, and nothing comes of a damaged package; an empty folder is filled
    refused(invoke(binary, "model", "export-onnx", source, folder), 14, "is not empty")
    refused(invoke(binary, "model", "export-onnx", source, said[0]), 14, "exists")
    (tmp_path / "empty").mkdir()
    medtune("model", "export-onnx", source, tmp_path / "empty")
    refused(invoke(binary, "model", "export-onnx", source, source / "onnx"), 2, "is in the package itself")
    assert "not a medical device" in (folder / "MODEL_CARD.md").read_text()
    assert {sha256(p) for p in (tmp_path / "empty").rglob("*.onnx")} == {sha256(p) for p in folder.rglob("*.onnx")}
    damaged = Path(shutil.copytree(source, tmp_path / "damaged"))
    # what a cache keeps from being written to is the user's own here
    weights = damaged / CHECKPOINTS / package.settings["weights"]
    weights.chmod(0o444)
    medtune("model", "export-onnx", damaged, tmp_path / "own")
    assert (tmp_path / "own" / package.settings["weights"]).stat().st_mode & 0o200
    (damaged / CHECKPOINTS / "config.yaml").write_text("")
    refused(invoke(binary, "model", "export-onnx", damaged, tmp_path / "none"), 12, "config.yaml")
    assert not (tmp_path / "none").exists() and not list(tmp_path.glob(".*"))


def test_without_being_asked_for_there_are_none(run):
    assert not list(run.model("base").rglob("*.onnx"))
    assert "onnx" not in json.loads((run.model("base") / CHECKPOINTS / "medtune.json").read_text())


def test_a_package_made_of_one_with_models_has_its_own_or_none(run, imported, medtune, binary, tmp_path):
    """Models refer to weights by offset: those of other weights must not come along."""
    base = imported("origin", "--stored-weights", "bf16")
    assert sorted(path.name for path in base.rglob("*.onnx")) == ["image_encoder.onnx", "text_encoder.onnx"]
    store = ["--store", tmp_path / "store"]
    medtune(*store, "model", "import", "--name", "origin", base)
    (tmp_path / "labels.txt").write_text("\n".join(handmade.LABELS) + "\n")
    for name, wanted in (("with", True), ("without", False)):
        job = {
            "version": 1,
            "kind": "Assemble",
            "name": name,
            "inputs": {"mlflow_model_path": "model:origin@latest", "label_file": "labels.txt"},
            "parameters": {"onnx": wanted},
            "outputs": {"classification_mlflow_model": name},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(job))
        medtune(*store, "run", path)
        medtune(*store, "model", "pull", f"{name}@latest", tmp_path / name)
        assert [file.name for file in (tmp_path / name).rglob("*.onnx")] == (["classifier.onnx"] if wanted else [])
    # of bf16, too, they are read right; the file that was linked is as it was
    package, files = Package(tmp_path / "with"), images(run)
    assert torch.bfloat16 in {t.dtype for t in load_file(tmp_path / "with" / CHECKPOINTS / package.settings["weights"]).values()}
    [scores] = session(tmp_path / "with", "classifier.onnx").run(["scores"], {"images": rgb(package.settings["pixels"], files)})
    near(scores, package.scores(package.image_features(files)))
    assert "every file" in succeed(binary, *store, "model", "verify", "origin@latest")


def test_a_changed_model_is_found(imported, binary, tmp_path):
    """By its hash, and were that forged, by ONNX Runtime, where the Python has it."""
    from test_self_test import sealed

    folder = imported("changed")
    path = folder / CHECKPOINTS / "image_encoder.onnx"
    said = succeed(binary, "model", "verify", folder, "--python", sys.executable).splitlines()
    assert len(said) == 4 and f"self-test passed by ONNX Runtime {onnxruntime.__version__}" in said[3], said
    assert float(said[3].split()[-1]) < 1e-4
    model = onnx.load(str(path), load_external_data=False)
    [erf] = [node for node in model.graph.node if node.op_type == "Erf"][:1]
    erf.op_type = "Tanh"
    path.write_bytes(model.SerializeToString())
    refused(invoke(binary, "model", "verify", folder), 12, "changed 'artifacts/checkpoints/image_encoder.onnx'")
    sealed(folder)
    refused(invoke(binary, "model", "verify", folder, "--python", sys.executable), 12, "ONNX Runtime", "image_features differ by")


@pytest.mark.parametrize("changes", [{"PATCH_PRENORM": [True, False]}, {"NUM_HEADS": [1, 8], "NUM_GROUPS": [8, 1]}], ids=["prenorm", "heads"])
def test_other_sizes_in_the_self_test(imported, binary, changes):
    """What timm's model has no setting for: medtune, MLflow and ONNX Runtime agree."""
    said = succeed(binary, "model", "verify", imported("other", **changes), "--python", sys.executable).splitlines()
    assert len(said) == 4 and "passed by ONNX Runtime" in said[3] and float(said[3].split()[-1]) < 1e-5


def test_a_patch_larger_than_the_image_is_refused(binary, tmp_path):
    config = handmade.config(PATCH_PADDING=[0, 1], IMAGE_SIZE=[5, 44])
    state = handmade.random_state(config, handmade.tokenizer().get_vocab_size())
    theirs = community(tmp_path / "theirs", SAVED["safetensors"](state), config=config)
    done = invoke(binary, "--store", tmp_path / "store", "model", "import", "--name", "m", theirs)
    refused(done, 12, "config.yaml", "PATCH_SIZE' of stage 0 is 7, larger than its grid of 5 x 44 with PATCH_PADDING 0")


@pytest.mark.parametrize("what", ["lacks it", "cannot run them"])
def test_without_a_fit_onnx_runtime(imported, binary, tmp_path, what):
    """It is said that the models were not asked; one that is there and fails is an error that names it."""
    folder = imported("unfit")
    unfit = "raise ImportError('none here')" if what == "lacks it" else "__version__ = '0.1'\ndef InferenceSession(*_, **__): raise OSError('opset 17 is unknown')"
    (tmp_path / "onnxruntime.py").write_text(unfit + "\n")
    done = invoke(binary, "model", "verify", folder, "--python", sys.executable, env=environment(PYTHONPATH=str(tmp_path)))
    if what == "lacks it":
        assert done.returncode == 0, done.stderr
        assert "the ONNX models were not asked, this Python cannot import ONNX Runtime: none here" in done.stdout and "passed by MLflow" in done.stdout
    else:
        refused(done, 12, "ONNX Runtime 0.1 cannot run the ONNX models: opset 17 is unknown")


def test_init_makes_them_and_import_does_not_add_them(imported, medtune, binary, tmp_path):
    store, config = ["--store", tmp_path / "store"], tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(handmade.config()))
    (tmp_path / "labels.txt").write_text("\n".join(handmade.LABELS))
    init = [*store, "model", "init", "--name", "m", "--config", config, "--label-texts", tmp_path / "labels.txt"]
    medtune(*init, "--onnx")
    medtune(*store, "model", "pull", "m@1", tmp_path / "m")
    session(tmp_path / "m", "image_encoder.onnx")
    # without is another model; the same again is not
    assert medtune(*init, "--json")["version"] == 2 and medtune(*init, "--onnx", "--json")["version"] == 1
    refused(invoke(binary, *store, "model", "import", "--name", "n", "--onnx", tmp_path / "m"), 2, "leave --license", "--onnx out")


def test_the_pages_program_runs_without_torch(run, tmp_path):
    """What docs/packages.md shows, as it stands there."""
    page = (ROOT / "docs/packages.md").read_text()
    [program] = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "onnxruntime" in block]
    (tmp_path / "my-model").symlink_to(run.model("adapter-classifier"))
    image = sorted((run.folder / "images/class_3").glob("*.png"))[0]
    Image.open(image).convert("RGB").save(tmp_path / "image.jpg", quality=95)
    program += "\nimport sys\nassert 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    package = Package(run.model("adapter-classifier"))
    scores = package.scores(package.image_features([(tmp_path / "image.jpg").read_bytes()]))[0]
    label, score = done.stdout.strip().rsplit(" ", 1)
    assert label == LABELS[scores.argmax()] and float(score) == pytest.approx(float(scores.max()), abs=1e-4)
