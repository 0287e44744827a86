"""The training of adapters beside an independent one in PyTorch; stopping early, class weights, going on after a stop, the original's files."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from harness import environment, invoke, refused
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

CONFIG, DATA, PACKAGE, PREEMPTED = 10, 11, 12, 23  # exit codes
EPOCHS = 240  # of a training that is stopped in between
ALL = 1 << 20  # rows of a step: more than there are


class Adapter(nn.Module):
    """The original's network, as its checkpoints name its parts."""

    def __init__(self, channels, hidden, classes):
        super().__init__()
        self.vision_embd = nn.Sequential(nn.Linear(channels, 512), nn.GELU(), nn.Linear(512, 512), nn.LayerNorm(512))
        self.retrieval_conv = nn.Sequential(nn.Conv1d(512, hidden, 3, padding=1), nn.GELU(), nn.Conv1d(hidden, hidden, 3, padding=1))
        self.prediction_head = nn.Sequential(nn.Linear(hidden, classes))

    def forward(self, x):
        return self.prediction_head(self.retrieval_conv(self.vision_embd(x)[:, :, None])[:, :, 0])


def loaded(folder):
    state = load_file(folder / "adapter.safetensors")
    hidden, classes = state["retrieval_conv.0.weight"].shape[0], state["prediction_head.0.weight"].shape[0]
    network = Adapter(state["vision_embd.0.weight"].shape[1], hidden, classes)
    network.load_state_dict(state, strict=True)
    return network


def rows(run, split, texts):
    """Vectors and classes of a split."""
    vectors = torch.from_numpy(np.load(next(run.data(f"{split}-embeddings").glob("*.npy")))).float()
    return vectors, torch.tensor([json.loads(line.split("\t")[1])["class_id"] for line in texts.read_text().splitlines()])


def uneven(run, folder):
    """The texts of the training, of which most rows of the first class are said to be of the second."""
    lines = [line.split("\t") for line in run.data("train_text_tsv").read_text().splitlines()]
    for number, line in enumerate(lines):
        text = json.loads(line[1])
        if text["class_id"] == 0 and number % 4:
            line[1] = json.dumps(text | {"class_id": 1, "class_name": "number one"})
    path = folder / "uneven.tsv"
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return path


def job(run, folder, texts=None, **parameters):
    inputs = {f"{split}_embeddings": str(run.data(f"{split}-embeddings")) for split in ("train", "validation")}
    inputs |= {f"{split}_text_tsv": str(run.data(f"{split}_text_tsv")) for split in ("train", "validation")}
    inputs["label_file"] = str(run.data("label_file"))
    inputs["train_text_tsv"] = str(texts or inputs["train_text_tsv"])
    parameters = {"hidden_dimensions": 24, "train_dataloader_batch_size": ALL, "max_epochs": 6} | parameters
    path = folder / "adapter.json"
    path.write_text(json.dumps({"version": 1, "kind": "Adapter", "name": "training", "inputs": inputs, "parameters": parameters, "outputs": {"adapter": "trained"}}))
    return path


def trained(run, medtune, folder, **parameters):
    """The folder of the adapter, and its curve."""
    store = folder / "store"
    medtune("--store", store, "run", job(run, folder, **parameters))
    version = medtune("--store", store, "data", "list", "--json")[-1]["version"]
    found = store / "data" / "trained" / str(version)
    return found, json.loads((found / "curve.json").read_text())


def weights_of(kind, classes, labels):
    if kind == "balanced":
        return "balanced", torch.tensor(compute_class_weight("balanced", classes=np.arange(len(labels)), y=classes.numpy())).float()
    if kind == "named":
        return {labels[1]: 4, labels[3]: 0.25}, torch.tensor([1, 4, 1, 0.25, 1])
    return "none", None


@pytest.mark.parametrize("kind", ["none", "balanced", "named"])
def test_it_trains_as_pytorch_does(run, medtune, tmp_path, kind):
    """From the same weights on, every epoch one step of all rows: losses, accuracies and weights."""
    texts = uneven(run, tmp_path)
    vectors, classes = rows(run, "train", texts)
    held_out, their_classes = rows(run, "validation", run.data("validation_text_tsv"))
    assert classes.bincount().unique().numel() > 2
    labels = run.data("label_file").read_text().splitlines()
    asked, factors = weights_of(kind, classes, labels)
    # a rate that changes no number: the weights that every training of this seed begins with
    (tmp_path / "start").mkdir()
    start, _ = trained(run, medtune, tmp_path / "start", learning_rate=1e-30, max_epochs=1)
    found, curve = trained(run, medtune, tmp_path, texts=texts, class_weights=asked, learning_rate=2e-3)
    network = loaded(start)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    for epoch in range(1, 7):
        loss = nn.functional.cross_entropy(network(vectors), classes, weight=factors)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            accuracy = (network(held_out).argmax(1) == their_classes).double().mean().item()
        assert curve["epochs"][epoch - 1]["loss"] == pytest.approx(loss.item(), rel=1e-4)
        # rounding may decide one row
        assert curve["epochs"][epoch - 1]["acc"] == pytest.approx(accuracy, abs=1.01 / len(held_out))
        if epoch == curve["best_epoch"]:
            theirs = copy.deepcopy(network.state_dict())
    values = [epoch["acc"] for epoch in curve["epochs"]]
    assert (curve["best_epoch"], curve["stopped_early"]) == (1 + values.index(max(values)), False)
    ours = load_file(found / "adapter.safetensors")
    # AdamW divides by the gradient's size: of a few weights whose gradient is next to nothing, rounding decides the direction
    away = torch.cat([(tensor - theirs[name]).abs().flatten() for name, tensor in ours.items()])
    assert (away > 1e-5).double().mean() < 1e-3 and away.max() < 5e-3, (away > 1e-5).sum()
    network.load_state_dict(theirs)
    with torch.no_grad():
        torch.testing.assert_close(loaded(found)(held_out), network(held_out), rtol=1e-3, atol=1e-4)


def test_class_weights_change_the_training(run, medtune, tmp_path):
    losses = []
    for number, weights in enumerate(["none", {"number one": 9}]):
        folder = tmp_path / str(number)
        folder.mkdir()
        losses.append(trained(run, medtune, folder, class_weights=weights)[1]["epochs"][-1]["loss"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_it_stops_when_nothing_gets_better(run, medtune, tmp_path):
    """After so many epochs that were no better than the best; what came before is what it would have been without."""
    (tmp_path / "whole").mkdir()
    _, whole = trained(run, medtune, tmp_path / "whole", max_epochs=60)
    found, curve = trained(run, medtune, tmp_path, max_epochs=60, early_stopping_patience=3)
    assert curve["stopped_early"] and not whole["stopped_early"] and len(whole["epochs"]) == 60
    assert len(curve["epochs"]) == curve["best_epoch"] + 3 < 60
    assert curve["epochs"] == whole["epochs"][: len(curve["epochs"])]
    values = [epoch["acc"] for epoch in curve["epochs"]]
    assert curve["best_epoch"] == 1 + values.index(max(values))
    record = medtune("--store", tmp_path / "store", "runs", "list", "--json")[0]
    shown = medtune("--store", tmp_path / "store", "runs", "show", record["run_id"], "--json")
    metrics = next(iter(shown["steps"]))["metrics"] if isinstance(shown["steps"], list) else next(iter(shown["steps"].values()))["metrics"]
    assert metrics["epochs"] == len(curve["epochs"])


def test_its_curve_can_be_watched(run, medtune, tmp_path):
    """Beside the run record, a line an epoch, and events for TensorBoard."""
    _, curve = trained(run, medtune, tmp_path)
    lines = [json.loads(line) for line in next((tmp_path / "store/runs").rglob("metrics.jsonl")).read_text().splitlines()]
    assert [{"epoch": line["step"], "loss": line["loss"], **line["evaluation"]} for line in lines] == curve["epochs"]
    events = next((tmp_path / "store/runs").rglob("events.out.tfevents.*")).read_bytes()
    assert all(tag in events for tag in (b"train/loss", b"evaluation/acc", b"evaluation/auc"))


def stop_in_between(binary, store, path, *more):
    """Runs the job until some epochs are done, and asks it to stop."""
    command = [str(binary), "--store", str(store), "run", str(path), *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        until = time.monotonic() + 60
        while not list(store.glob("runs/*/*/metrics.jsonl")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == PREEMPTED, said
    assert ("the next run starts anew" in said) == ("--rerun" in more) != ("run the same job again" in said), said
    return int(re.search(r"stopped by SIGTERM after epoch (\d+) of", said.splitlines()[-1]).group(1))


LONG = {
    "max_epochs": EPOCHS, "train_dataloader_batch_size": 4, "learning_rate": 1e-3, "class_weights": "balanced", "early_stopping_patience": EPOCHS
}


@pytest.fixture(scope="module")
def uninterrupted(run, medtune, tmp_path_factory):
    return trained(run, medtune, tmp_path_factory.mktemp("uninterrupted"), **LONG)


def test_a_rerun_keeps_nothing_that_no_run_finds(run, binary, tmp_path):
    assert 0 < stop_in_between(binary, tmp_path / "store", job(run, tmp_path, **LONG), "--rerun") < EPOCHS
    assert not list((tmp_path / "store").glob("checkpoints/*"))


@pytest.mark.parametrize("damage", [None, "tensors", "state", "missing"])
def test_it_goes_on_after_a_stop(run, binary, uninterrupted, tmp_path, damage):
    """To the bit as if it had not been stopped; from the start where its checkpoint is damaged."""
    store = tmp_path / "store"
    done = stop_in_between(binary, store, job(run, tmp_path, **LONG))
    assert 0 < done < EPOCHS
    tensors, state = next(store.glob("checkpoints/*/*.safetensors")), next(store.glob("checkpoints/*/state.json"))
    if damage == "tensors":
        content = bytearray(tensors.read_bytes())
        content[-9] ^= 1
        tensors.write_bytes(content)
    elif damage == "state":
        state.write_text(state.read_text()[:-9])
    elif damage == "missing":
        tensors.unlink()
    again = invoke(binary, "--store", store, "run", tmp_path / "adapter.json")
    assert again.returncode == 0, again.stderr
    assert ("a checkpoint is damaged; training begins anew" in again.stderr) == (damage is not None)
    assert ("going on where an earlier run was stopped" in again.stderr) == (damage is None)
    assert not list(store.glob("checkpoints/*/*"))
    # the second run's curve is whole, the epochs of the first with their times
    series = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(store.glob("runs/*/*/metrics.jsonl"))]
    assert [line["step"] for line in series[1]] == list(range(1, EPOCHS + 1))
    assert (series[1][:done] == series[0][:done]) == (damage is None)
    whole, curve = uninterrupted
    assert len(curve["epochs"]) == EPOCHS
    for name in ("adapter.safetensors", "curve.json"):
        assert (store / "data/trained/1" / name).read_bytes() == (whole / name).read_bytes(), name


def assembled(run, binary, folder, adapter, expect=0):
    """What the log of assembling a classifier with the adapter in a folder says."""
    inputs = {"mlflow_model_path": str(run.model("base")), "label_file": str(run.data("label_file")), "adapter": str(adapter)}
    path = folder / "assemble.json"
    outputs = {"classification_mlflow_model": "imported"}
    path.write_text(json.dumps({"version": 1, "kind": "Assemble", "name": "assemble", "inputs": inputs, "outputs": outputs}))
    done = invoke(binary, "--store", folder / "store", "run", path)
    assert done.returncode == expect, done.stderr
    return done.stderr


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_originals_file_is_taken(run, medtune, binary, tmp_path, prefix):
    """`best_metric_model.pth`, a state dict: the same classifier as with the adapter that it was made of."""
    adapter, given = run.model("adapter-classifier") / "artifacts/checkpoints/adapter", tmp_path / "given"
    given.mkdir()
    network = loaded(adapter)
    torch.save({prefix + name: tensor for name, tensor in network.state_dict().items()}, given / "best_metric_model.pth")
    assembled(run, binary, tmp_path, given)
    package = tmp_path / "store/models/imported/1/artifacts/checkpoints"
    for name in ("adapter.safetensors", "config.json"):
        ours, theirs = package / "adapter" / name, adapter / name
        if name.endswith("json"):
            assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
        else:
            ours, theirs = load_file(ours), load_file(theirs)
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    image = run.images()[0]
    scores = [
        medtune("predict", model, image, "--json")["predictions"]
        for model in (package.parents[1], run.model("adapter-classifier"))
    ]
    assert scores[0] == scores[1]


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["evil", "other", "short", "whole", "twice", "both"])
def test_other_files_are_refused(run, binary, tmp_path, kind):
    given, marker = tmp_path / "given", tmp_path / "was-run"
    given.mkdir()
    path = given / "best_metric_model.pth"
    network = loaded(run.model("adapter-classifier") / "artifacts/checkpoints/adapter")
    state = network.state_dict()
    code, says = PACKAGE, {
        "evil": "system",
        "other": "no parameter 'vision_embd.0.weight'",
        "short": "no parameter 'vision_embd.2.bias'",
        "whole": "state_dict",
        "twice": "'vision_embd.0.bias' under two names",
        "both": "holds both best_metric_model.pth and adapter.safetensors",
    }[kind]
    if kind == "evil":
        torch.save({"vision_embd.0.weight": Evil(marker)}, path)
    elif kind == "other":
        torch.save(nn.Linear(3, 3).state_dict(), path)
    elif kind == "short":
        torch.save({name: tensor for name, tensor in state.items() if name != "vision_embd.2.bias"}, path)
    elif kind == "whole":
        torch.save(network, path)
    elif kind == "twice":
        torch.save(dict(state) | {"module.vision_embd.0.bias": state["vision_embd.0.bias"]}, path)
    else:
        torch.save(state, path)
        shutil.copy(run.model("adapter-classifier") / "artifacts/checkpoints/adapter/adapter.safetensors", given)
        code = DATA
    said = assembled(run, binary, tmp_path, given, expect=code)
    assert says in said.splitlines()[-1], said
    assert not marker.exists() and not (tmp_path / "store/models").exists()


def test_labels_that_are_not_there_have_no_weight(run, medtune, binary, tmp_path):
    path = job(run, tmp_path, class_weights={"number won": 2})
    refused(invoke(binary, "--store", tmp_path / "store", "run", path), CONFIG, "parameters.class_weights", "number won", "number one")
    for bad in ({"number one": 0}, "even", {"number one": -2}):
        medtune("validate", job(run, tmp_path, class_weights=bad), expect=CONFIG)
    medtune("validate", job(run, tmp_path, early_stopping_patience=0), expect=CONFIG)
    medtune("validate", job(run, tmp_path, class_weights="balanced", train_dataloader_batch_size=1), expect=CONFIG)
