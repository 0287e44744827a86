"""The program against the independent implementation: features, scores, pixels."""

import base64
import hashlib
import io
import json

import numpy as np
import pytest
import torch
from conftest import LABELS
from PIL import Image
from reference import Package, standardised

TEXTS = ["number zero", "Number  ONE.", "something else: a chest x-ray, 3 cm", "ünïcode", "a long text " * 20]


def tsv(path):
    """[(key, value)] of the rows."""
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_features(run, medtune):
    package, images = run.model("base"), run.images()
    texts = [item for text in TEXTS for item in ("--text", text)]
    answer = medtune("predict", package, *images, *texts, "--json")
    reference = Package(package)
    by_image = {item["image"]: item["image_features"] for item in answer["predictions"] if "image" in item}
    by_text = {item["text"]: item["text_features"] for item in answer["predictions"] if "text" in item}
    assert list(by_image) == [str(path) for path in images] and list(by_text) == TEXTS
    expected = reference.image_features([path.read_bytes() for path in images])
    torch.testing.assert_close(torch.tensor(list(by_image.values())), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.tensor(list(by_text.values())), reference.text_features(TEXTS), rtol=0, atol=1e-5)
    assert answer["scaling_factor"] == pytest.approx(reference.logit_scale, abs=1e-6)
    # The model must tell images apart by more than the tolerance, or the comparison shows nothing.
    assert (expected - expected[0]).abs().max() > 1e-3


def test_class_embeddings(run):
    reference = Package(run.model("zero-shot"))
    template = reference.settings["classifier"]["text_template"]
    assert reference.labels == LABELS and template == "{}."
    expected = reference.text_features([template.replace("{}", label) for label in LABELS])
    torch.testing.assert_close(reference.weights["class_embeddings"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["zero-shot", "adapter-classifier"])
def test_scores(run, medtune, name):
    package, images = run.model(name), run.images()
    answer = medtune("predict", package, *images, "--json")["predictions"]
    reference = Package(package)
    expected = reference.scores(reference.image_features([path.read_bytes() for path in images]))
    assert [item["image"] for item in answer] == [str(path) for path in images]
    for item, scores in zip(answer, expected.tolist()):
        got = [entry["score"] for entry in item["labels"]]
        assert got == sorted(got, reverse=True)
        assert {e["label"]: e["score"] for e in item["labels"]} == pytest.approx(dict(zip(LABELS, scores)), abs=1e-5)


def test_prepared_pixels_are_pillows(run):
    """The JPEGs of Prepare decode to exactly what Pillow's decode, resize and save give: the three exact parts of the pixel path."""
    seen = set()
    for split in ("train", "validation", "test"):
        for key, value in tsv(run.data(f"{split}_image_tsv")):
            source = run.folder / "images" / key
            data = base64.b64decode(value, validate=True)
            got = np.asarray(Image.open(io.BytesIO(data)))
            np.testing.assert_array_equal(got, np.asarray(standardised(source.read_bytes(), 64, 95)), err_msg=key)
            seen.add(key)
    assert len(seen) == sum(1 for path in (run.folder / "images").rglob("*") if path.is_file())


def test_prepared_rows(run):
    seen = []
    for split in ("train", "validation", "test"):
        images, texts = tsv(run.data(f"{split}_image_tsv")), tsv(run.data(f"{split}_text_tsv"))
        assert [key for key, _ in images] == [key for key, _ in texts]
        for key, value in texts:
            row = json.loads(value)
            assert row["class_name"] == LABELS[row["class_id"]]
            assert key.startswith(f"class_{row['class_id']}/") and row["task"] == "classification"
        seen += [hashlib.sha256(key.encode()).digest() for key, _ in images]
    assert len(seen) == len(set(seen))
    assert run.data("label_file").read_text().splitlines() == LABELS
