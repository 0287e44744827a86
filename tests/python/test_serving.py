"""Packages on the servers that people use, over HTTP: each answers what the loader answers in this process. docs/serving.md shows these requests."""

import json

import pandas as pd
import pytest
import serving
from checks import base64_of
from handmade import LABELS, png, runtime, write_package

IMAGES = [png(40, 60, 1), png(91, 33, 2), png(64, 64, 3, "L")]
TEXTS = ["Colon polyp.", "", "x-ray chest"]
ENCODED = [base64_of(data) for data in IMAGES]
TABLE = {"columns": ["image"], "index": [0, 1, 2], "data": [[text] for text in ENCODED]}
BOTH = {"columns": ["image", "text"], "index": [0, 1, 2], "data": [*map(list, zip(ENCODED, TEXTS))]}
CUT_OFF = base64_of(IMAGES[0][:60])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return package(tmp_path_factory, "classification", "zero-shot")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return package(tmp_path_factory, "embeddings")


def package(tmp_path_factory, task, kind=None):
    folder = tmp_path_factory.mktemp(task) / "package"
    write_package(folder, task, kind)
    return folder


@pytest.fixture(scope="module", params=["mlflow", "mlserver", "azure"])
def classifies(request, tmp_path_factory, classifier):
    """(name, address) of a server with the classifier."""
    with getattr(serving, request.param)(tmp_path_factory.mktemp(request.param), classifier) as uri:
        yield request.param, uri


@pytest.fixture(scope="module", params=["mlserver", "azure"])
def embeds(request, tmp_path_factory, embedder):
    """(name, address) of a server with the embedding model; test_runtime.py gives the same table to MLflow itself."""
    with getattr(serving, request.param)(tmp_path_factory.mktemp(request.param), embedder) as uri:
        yield request.param, uri


def local(folder, table, **params):
    """What the loader answers in this process."""
    frame = pd.DataFrame(table["data"], columns=table["columns"])
    return runtime()._load_pyfunc(str(folder / "artifacts" / "checkpoints"), {"device": "cpu"}).predict(frame, params)


def tensors(table):
    """The table's columns as the inputs of a request of protocol v2."""
    columns = zip(table["columns"], zip(*table["data"]))
    return [{"name": name, "shape": [len(cells), 1], "datatype": "BYTES", "data": cells} for name, cells in columns]


def scored(server, table, **params):
    """The server's answer to the table, out of whatever it is wrapped in."""
    name, uri = server
    if name == "azure":
        status, text = serving.post(f"{uri}/score", {"input_data": table, "params": params})
        found = json.loads(text)
    elif name == "mlserver":
        body = {"inputs": tensors(table), "parameters": {"output_format": "json", **params}}
        status, text = serving.post(f"{uri}/v2/models/model/infer", body)
        found = [json.loads(row) for output in json.loads(text).get("outputs", []) for row in output["data"]]
    else:
        status, text = serving.post(f"{uri}/invocations", {"dataframe_split": table, "params": params})
        found = json.loads(text).get("predictions")
    assert status == 200, text
    return found


def assert_same(found, expected):
    """The same answer but for rounding: lists, dicts and texts exactly, numbers to 1e-6."""
    assert type(found) is type(expected), (found, expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected):
            assert_same(ours, theirs)
    else:
        assert found == (pytest.approx(expected, abs=1e-6) if isinstance(expected, float) else expected)


def test_classifier(classifies, classifier):
    found = scored(classifies, TABLE)
    assert [len(row) for row in found] == [len(LABELS)] * len(IMAGES)
    assert_same(found, local(classifier, TABLE))


def test_parameters(classifies, classifier):
    params = {"top_k": 1, "image_standardization_image_size": 30, "image_standardization_jpeg_compression_ratio": 40}
    found = scored(classifies, TABLE, **params)
    assert [len(row) for row in found] == [1] * len(IMAGES)
    assert_same(found, local(classifier, TABLE, **params))
    assert found != [row[:1] for row in local(classifier, TABLE)]


def test_embeddings(embeds, embedder):
    found = scored(embeds, BOTH, get_scaling_factor=True)
    assert [sorted(row) for row in found[:2]] == [["image_features", "scaling_factor", "text_features"], ["image_features", "scaling_factor"]]
    assert_same(found, local(embedder, BOTH))
    found = scored(embeds, TABLE, get_scaling_factor=False)
    assert [list(row) for row in found] == [["image_features"]] * len(IMAGES)
    assert_same(found, local(embedder, TABLE, get_scaling_factor=False))


def test_every_form_of_a_request(classifies, classifier):
    """The forms of MLflow's own server, which MLServer takes at the same path."""
    name, uri = classifies
    if name == "azure":
        status, text = serving.post(f"{uri}/score", {"input_data": {"columns": ["image"], "data": TABLE["data"]}})
        assert status == 200, text
        assert_same(json.loads(text), local(classifier, TABLE))
        return
    records = [{"image": text} for text in ENCODED]
    bodies = [
        {"dataframe_split": TABLE},
        {"dataframe_split": TABLE, "input_data": TABLE},
        {"dataframe_records": records},
        {"inputs": {"image": ENCODED}},
        {"inputs": records},
        {"instances": records},
    ]
    expected = local(classifier, TABLE, top_k=2)
    for body in bodies:
        status, text = serving.post(f"{uri}/invocations", body | {"params": {"top_k": 2}})
        assert status == 200, (list(body), text)
        assert_same(json.loads(text), {"predictions": expected})
    status, text = serving.post(f"{uri}/invocations", "image\n" + "\n".join(ENCODED) + "\n", "text/csv")
    assert status == 200, text
    assert_same(json.loads(text), {"predictions": local(classifier, TABLE)})
    example = (classifier / "serving_input_example.json").read_text()
    status, text = serving.post(f"{uri}/invocations", example)
    assert status == 200 and len(json.loads(text)["predictions"]) == 1, text


def test_a_bad_image(classifies):
    """In MLflow's forms status 400 and what is wrong; Azure and protocol v2 have one answer to every error of a model. No stack traces."""
    name, uri = classifies
    bad = {"columns": ["image"], "data": [[ENCODED[0]], [CUT_OFF]]}
    answers = []
    if name == "azure":
        status, text = serving.post(f"{uri}/score", {"input_data": bad})
        assert status == 500 and "scoring script" in text, text
        answers.append(text)
    else:
        status, text = serving.post(f"{uri}/invocations", {"dataframe_split": bad})
        assert status == 400 and "row 1: cannot decode the image" in text, text
        answers.append(text)
    if name == "mlserver":
        status, text = serving.post(f"{uri}/v2/models/model/infer", {"inputs": tensors(bad), "parameters": {"output_format": "json"}})
        assert status == 500, text
        answers.append(text)
    for text in answers:
        assert "Traceback" not in text and ".py" not in text, text
    assert scored(classifies, TABLE), "it serves no more"
