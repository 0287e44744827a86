"""Packages that the program wrote, in real MLflow and without the program; their answers are those of `medtune predict`."""

import pytest
import torch
from checks import assert_conforms, assert_no_pickle, base64_of, mlflow_environment, mlflow_predict

NAMES = ["base", "zero-shot", "adapter-classifier"]
TEXTS = ["number zero.", "Something else, 3 cm"]


@pytest.mark.parametrize("name", NAMES)
def test_mlflow_accepts_the_package(run, name):
    assert_no_pickle(run.model(name))
    assert_conforms(run.model(name))


@pytest.mark.parametrize("name", NAMES)
def test_verify(run, medtune, name):
    """MLflow and Python leave files in a package (`__pycache__`); it must still verify."""
    medtune("model", "verify", run.model(name))


@pytest.mark.parametrize("name", ["zero-shot", "adapter-classifier"])
def test_classifier_equals_predict(run, medtune, tmp_path, binary, name):
    package, images = run.model(name), run.images()
    assert str(binary.parent) not in mlflow_environment()["PATH"]
    served, stderr = mlflow_predict(tmp_path, package, ["image"], [[base64_of(path.read_bytes())] for path in images])
    assert "Warning" not in stderr
    ours = medtune("predict", package, *images, "--json")["predictions"]
    assert len(served) == len(ours) == len(images)
    for theirs, item in zip(served, ours):
        scores = {entry["label"]: entry["score"] for entry in item["labels"]}
        assert {entry["label"]: entry["score"] for entry in theirs} == pytest.approx(scores, abs=1e-4)
        # The order is the same, too, but for labels whose scores do not differ by more than the tolerance.
        assert [scores[entry["label"]] for entry in theirs] == pytest.approx([entry["score"] for entry in item["labels"]], abs=1e-4)


def test_embeddings_equal_predict(run, medtune, tmp_path):
    package, images = run.model("base"), run.images()
    rows = [[{"file": str(path)}, None] for path in images] + [["", text] for text in TEXTS]
    served, stderr = mlflow_predict(tmp_path, package, ["image", "text"], rows)
    assert "Warning" not in stderr
    ours = medtune("predict", package, *images, "--text", TEXTS[0], "--text", TEXTS[1], "--json")
    assert len(served) == len(ours["predictions"])
    for theirs, item in zip(served, ours["predictions"]):
        key = "image_features" if "image" in item else "text_features"
        torch.testing.assert_close(torch.tensor(theirs[key]), torch.tensor(item[key]), rtol=0, atol=1e-4)
        assert theirs["scaling_factor"] == pytest.approx(ours["scaling_factor"], abs=1e-6)
