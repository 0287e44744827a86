"""Packages that the program wrote, in real MLflow and without the program; their answers are those of `medtune predict`."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from checks import PYTHONS, assert_no_pickle, base64_of, mlflow_environment, mlflow_predict
from harness import invoke, refused

NAMES = ["base", "zero-shot", "adapter-classifier"]
TEXTS = ["number zero.", "Something else, 3 cm"]


@pytest.mark.parametrize("mlflow", PYTHONS)
@pytest.mark.parametrize("name", NAMES)
def test_mlflow_accepts_the_package(run, name, mlflow):
    assert_no_pickle(run.model(name))
    code = "import sys; sys.path.insert(0, sys.argv[1]); import checks, mlflow; checks.assert_conforms(sys.argv[2]); print(mlflow.__version__)"
    command = [PYTHONS[mlflow], "-c", code, Path(__file__).parent, run.model(name)]
    done = subprocess.run(command, env=mlflow_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"{mlflow}.")


@pytest.mark.parametrize("name", NAMES)
def test_verify(run, medtune, name):
    """MLflow and Python leave files in a package (`__pycache__`); it must still verify."""
    medtune("model", "verify", run.model(name))


@pytest.mark.parametrize("mlflow", PYTHONS)
@pytest.mark.parametrize("name", ["zero-shot", "adapter-classifier"])
def test_classifier_equals_predict(run, medtune, tmp_path, binary, name, mlflow):
    package, images = run.model(name), run.images()
    assert str(binary.parent) not in mlflow_environment()["PATH"]
    served, stderr = mlflow_predict(tmp_path, package, ["image"], [[base64_of(path.read_bytes())] for path in images], mlflow=mlflow)
    assert "Warning" not in stderr
    ours = medtune("predict", package, *images, "--json")["predictions"]
    assert len(served) == len(ours) == len(images)
    for theirs, item in zip(served, ours):
        scores = {entry["label"]: entry["score"] for entry in item["labels"]}
        assert {entry["label"]: entry["score"] for entry in theirs} == pytest.approx(scores, abs=1e-4)
        # The order is the same, too, but for labels whose scores do not differ by more than the tolerance.
        assert [scores[entry["label"]] for entry in theirs] == pytest.approx([entry["score"] for entry in item["labels"]], abs=1e-4)


@pytest.mark.parametrize("mlflow", PYTHONS)
def test_embeddings_equal_predict(run, medtune, tmp_path, mlflow):
    package, images = run.model("base"), run.images()
    rows = [[{"file": str(path)}, None] for path in images] + [["", text] for text in TEXTS]
    served, stderr = mlflow_predict(tmp_path, package, ["image", "text"], rows, mlflow=mlflow)
    assert "Warning" not in stderr
    ours = medtune("predict", package, *images, "--text", TEXTS[0], "--text", TEXTS[1], "--json")
    assert len(served) == len(ours["predictions"])
    for theirs, item in zip(served, ours["predictions"]):
        key = "image_features" if "image" in item else "text_features"
        torch.testing.assert_close(torch.tensor(theirs[key]), torch.tensor(item[key]), rtol=0, atol=1e-4)
        assert theirs["scaling_factor"] == pytest.approx(ours["scaling_factor"], abs=1e-6)


CARD = "is not a medical device"


def card_of(package):
    """README.md, `provenance.model_card`, and the metadata of MLmodel."""
    settings = json.loads((package / "artifacts/checkpoints/medtune.json").read_text())
    metadata = yaml.safe_load((package / "MLmodel").read_text())["metadata"]
    return (package / "README.md").read_text(), settings["provenance"]["model_card"], metadata


def test_terms_of_use_are_taken_over_from_model_to_model(run, medtune, binary, tmp_path):
    """Given where a model comes in; a classifier of it says the same, but for what its job says."""
    store, job = tmp_path / "store", tmp_path / "job.json"
    published = run.model("base") / "artifacts/checkpoints"
    source = tmp_path / "published"
    source.mkdir()
    for path in published.iterdir():
        if path.name != "medtune.json":
            (source / path.name).symlink_to(path)
    given = ["--license", "CC-BY-4.0", "--intended-use", "Research on <digits>"]
    medtune("--store", store, "model", "import", "--name", "base", source, *given)
    readme, terms, metadata = card_of(store / "models/base/1")
    assert terms == {"license": "CC-BY-4.0", "intended_use": "Research on <digits>"}
    assert "Licence of the weights: CC-BY-4.0" in readme and "Research on &lt;digits>\n" in readme and CARD in readme
    assert metadata["license"] == "CC-BY-4.0"
    work = {
        "version": 1,
        "kind": "Assemble",
        "name": "assemble",
        "inputs": {"mlflow_model_path": "model:base@1", "label_file": str(run.data("label_file"))},
        "parameters": {"model_card": {"intended_use": "Sorting of parcels"}},
        "outputs": {"classification_mlflow_model": "classifier"},
    }
    job.write_text(json.dumps(work))
    medtune("--store", store, "run", job)
    readme, terms, metadata = card_of(store / "models/classifier/1")
    assert terms == {"license": "CC-BY-4.0", "intended_use": "Sorting of parcels"}
    assert "Licence of the weights: CC-BY-4.0" in readme and "Sorting of parcels" in readme and "<digits" not in readme
    assert CARD in readme and metadata["license"] == "CC-BY-4.0"
    # nothing is known of a model of which nothing was said
    readme, terms, metadata = card_of(run.model("zero-shot"))
    assert terms == {} and "Licence of the weights: not recorded" in readme and "license" not in metadata
    # a package of medtune's is finished
    refused(invoke(binary, "--store", store, "model", "import", "--name", "other", run.model("base"), *given), 2, "is a package of medtune, which stays as it is")
    blank = ["model", "import", "--name", "other", source, "--license", " "]
    refused(invoke(binary, "--store", store, *blank), 2, "license is empty")
    work["parameters"]["model_card"] = {"licence": "MIT"}
    job.write_text(json.dumps(work))
    medtune("validate", job, expect=10)
