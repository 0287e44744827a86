"""What does not belong together is refused: labels in another order, an adapter of another encoder or of other labels."""

import pytest
import yaml
from harness import invoke, refused

DATA, PACKAGE = 11, 12


@pytest.fixture
def refuse(run, binary, tmp_path):
    """Runs one step with the inputs, and checks its exit code and that its error holds the fragments; nothing new is registered."""

    def call(kind, inputs, code, *fragments):
        job = tmp_path / "job.yaml"
        job.write_text(yaml.safe_dump({"version": 1, "kind": kind, "name": "wrong", "inputs": inputs}))
        refused(invoke(binary, "--store", run.store, "run", job), code, *fragments)
        assert not list((run.store / "registry").glob("*/wrong-*"))

    return call


@pytest.fixture
def reversed_labels(run, tmp_path):
    labels = run.data("label_file").read_text().split("\n")
    path = tmp_path / "reversed.txt"
    path.write_text("\n".join(reversed([label for label in labels if label])) + "\n")
    return str(path)


def test_labels_in_another_order(refuse, reversed_labels):
    splits = ("train", "validation")
    inputs = {f"{s}_embeddings": f"data:{s}-embeddings@latest" for s in splits} | {f"{s}_text_tsv": f"data:{s}_text_tsv@latest" for s in splits}
    refuse("Adapter", inputs | {"label_file": reversed_labels}, DATA, "row 1", "class_name")
    inputs = {"test_embeddings": "data:test-embeddings@latest", "test_text_tsv": "data:test_text_tsv@latest"}
    inputs |= {"adapter_mlflow_model": "model:adapter-classifier@latest"}
    refuse("Evaluate", inputs | {"label_file": reversed_labels}, DATA, "row 1", "class_name")


def test_an_adapter_of_other_labels(refuse, reversed_labels):
    inputs = {"mlflow_model_path": "model:base@latest", "adapter": "data:adapter@latest", "label_file": reversed_labels}
    refuse("Assemble", inputs, DATA, "adapter", "labels")


def test_an_adapter_of_another_encoder(refuse, run, medtune):
    config, labels = run.folder / "model.yaml", run.folder / "labels.txt"
    medtune("--store", run.store, "model", "init", "--name", "other", "--config", config, "--label-texts", labels, "--seed", 9)
    inputs = {"mlflow_model_path": "model:other@latest", "adapter": "data:adapter@latest", "label_file": "data:label_file@latest"}
    refuse("Assemble", inputs, PACKAGE, "adapter", "other weights or pixel settings")
