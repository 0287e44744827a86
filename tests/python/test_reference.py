"""Comparisons with public files of MedImageInsight: the CLIP vocabulary, the published MLmodel files, the published configurations."""

import json
import os
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer

from conftest import model_config
from harness import invoke, refused


@pytest.fixture(scope="module")
def reference():
    """The folder that MEDTUNE_REFERENCE names. Under CI it must be there; elsewhere the tests skip without it."""
    folder = Path(os.environ.get("MEDTUNE_REFERENCE", ""))
    if not os.environ.get("MEDTUNE_REFERENCE") or not folder.is_dir():
        message = "MEDTUNE_REFERENCE names no folder with the public reference files"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return folder


@pytest.fixture(scope="module")
def package(reference, medtune, tmp_path_factory):
    """A package with CLIP's own vocabulary."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "model.yaml").write_text(yaml.safe_dump(model_config()))
    store = ["--store", folder / "store"]
    vocabulary = reference / "clip_tokenizer"
    medtune(*store, "model", "init", "--name", "clip", "--config", folder / "model.yaml", "--vocabulary", vocabulary)
    medtune(*store, "model", "pull", "clip@latest", folder / "package")
    return folder / "package"


def test_clip_vocabulary_gives_clips_ids(package, reference):
    folder = package / "artifacts/checkpoints/language_model/clip_tokenizer_4.16.2"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # the ids that CLIP's own tokenizer gives
    assert tokenizer.encode("a photo of a cat").ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.encode("  A Photo\nof a CAT ").ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    ours = json.loads((folder / "vocab.json").read_text())
    assert ours == json.loads((reference / "clip_tokenizer/vocab.json").read_text())


@pytest.mark.parametrize("kind", ["embedding", "classifier"])
def test_signatures_are_those_of_the_published_packages(kind, package, run, reference):
    folder = package if kind == "embedding" else run.model("zero-shot")
    ours = yaml.safe_load((folder / "MLmodel").read_text())["signature"]
    published = yaml.safe_load((reference / f"MLmodel.{kind}.yaml").read_text())["signature"]

    def columns(text):
        return {(column["name"], column["type"]) for column in json.loads(text)}

    assert columns(ours["inputs"]) == columns(published["inputs"])
    assert columns(ours["outputs"]) == columns(published["outputs"])
    # clients that send the published parameters are understood; ours are "long", which takes NumPy's integers too
    assert {p["name"] for p in json.loads(published["params"])} <= {p["name"] for p in json.loads(ours["params"])}


@pytest.mark.parametrize("name", ["train-gastrovision.yaml", "mi2-config.yaml"])
def test_published_configurations_are_understood_or_refused_with_a_reason(name, run, reference, binary, tmp_path):
    inputs = {
        "mlflow_model_path": "model:base@latest",
        "label_file": "data:label_file@latest",
        "conf_files": [str(reference / name)],
        **{key: f"data:train_{key}@latest" for key in ("image_tsv", "text_tsv")},
        **{f"eval_{key}": f"data:validation_{key}@latest" for key in ("image_tsv", "text_tsv")},
    }
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({"version": 1, "kind": "Finetune", "inputs": inputs}))
    done = invoke(binary, "--store", run.store, "run", "--dry-run", job)
    # what this version cannot do is said by name, with what it accepts
    message = refused(done, 10, name, "is not supported", "accepted:")
    assert "unknown key" not in message
