"""The three forms of Embed's output agree with each other, with their TSV and with the independent implementation."""

import base64
import hashlib
import json
import warnings

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from reference import Package


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_three_forms_agree(run, split):
    folder = run.data(f"{split}-embeddings")
    rows = [line.split("\t") for line in run.data(f"{split}_image_tsv").read_text().splitlines()]
    array = np.load(folder / "embeddings.npy", allow_pickle=False)
    assert array.dtype == np.float32 and array.flags.c_contiguous
    table = pyarrow.parquet.read_table(folder / "parquet")
    assert table.column("Name").to_pylist() == [key for key, _ in rows]
    digests = [hashlib.sha256(base64.b64decode(value)).hexdigest() for _, value in rows]
    assert table.column("sha256").to_pylist() == digests
    np.testing.assert_array_equal(np.array(table.column("features").to_pylist(), dtype=np.float32), array)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = pd.read_pickle(folder / "embeddings.pkl")
    assert list(frame.columns) == ["Name", "image", "text", "features"]
    assert list(frame["Name"]) == [key for key, _ in rows]
    assert all(cell.dtype == np.float32 and cell.ndim == 1 and cell.flags.writeable for cell in frame["features"])
    np.testing.assert_array_equal(np.stack(list(frame["features"])), array)
    manifest = json.loads((folder / "embeddings.json").read_text())
    assert (manifest["rows"], manifest["dim"]) == array.shape
    np.testing.assert_allclose(np.linalg.norm(array.astype(np.float64), axis=1), 1, atol=1e-5)


def test_features_are_the_models(run):
    rows = [line.split("\t") for line in run.data("test_image_tsv").read_text().splitlines()]
    expected = Package(run.model("base")).image_features([base64.b64decode(value) for _, value in rows])
    array = np.load(run.data("test-embeddings") / "embeddings.npy", allow_pickle=False)
    torch.testing.assert_close(torch.from_numpy(array), expected, rtol=0, atol=1e-5)


def test_label_texts_have_vectors_too(run):
    folder = run.data("test-embeddings")
    labels = run.data("label_file").read_text().splitlines()
    table = pyarrow.parquet.read_table(folder / "texts.parquet")
    assert table.column("Name").to_pylist() == labels
    texts = [f"{label}." for label in labels]
    assert table.column("sha256").to_pylist() == [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    found = torch.tensor(table.column("features").to_pylist())
    torch.testing.assert_close(found, Package(run.model("base")).text_features(texts), rtol=0, atol=1e-5)
    manifest = json.loads((folder / "embeddings.json").read_text())
    assert (manifest["texts"]["rows"], manifest["texts"]["template"]) == (len(labels), "{}.")
    assert not (run.data("train-embeddings") / "texts.parquet").exists()
