"""Base models that others saved: layouts, old names, state dicts; what is refused; and that the weights go back where they came from."""

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile

import handmade
import onnxruntime
import pytest
import torch
import yaml
from harness import environment, invoke, refused, succeed
from reference import Package, rgb
from safetensors.torch import load_file, save_file

MODEL = "medimageinsigt-v1.0.0"  # spelled as published


@pytest.fixture(scope="module")
def state():
    """A model's weights as they are named today."""
    return handmade.random_state(handmade.config(), handmade.tokenizer().get_vocab_size())


def community(folder, save, name=f"{MODEL}.pt", config=None):
    """The folder that people pass around; `save` writes the weights. config.yaml holds keys of training too."""
    (folder / "vision_model").mkdir(parents=True)
    words = folder / "language_model" / "clip_tokenizer_4.16.2"
    words.mkdir(parents=True)
    vocabulary = json.loads(handmade.tokenizer().to_str())["model"]["vocab"]
    size = len(vocabulary)
    words.joinpath("vocab.json").write_text(json.dumps(vocabulary | {"<|startoftext|>": size, "<|endoftext|>": size + 1}))
    words.joinpath("merges.txt").write_text("#version: 0.2\n")
    document = (config or handmade.config()) | {"NAME": "theirs", "MAX_NUM_EPOCHS": 100}
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    save(folder / "vision_model" / name)
    return folder


def older(name):
    """The name that older checkpoints have for a parameter."""
    name = name.replace("image_encoder.", "visual.").replace("lang_encoder.", "text.")
    name = {"image_projection": "vision_projection", "lang_projection": "text_projection"}.get(name, name)
    if not name.startswith("visual."):
        return name
    name = name.replace(".convs.", ".conv_embeds.").replace(".blocks.", ".main_blocks.")
    for number, block, attention in (("0", "spatial_block", "window_attn"), ("1", "channel_block", "channel_attn")):
        for new, old in (
            ("conv1.fn.dw", "cpe.0.proj"),
            ("conv2.fn.dw", "cpe.1.proj"),
            (f"{attention}.fn", "attn"),
            (f"{attention}.norm", "norm1"),
            ("ffn.fn.net", "mlp"),
            ("ffn.norm", "norm2"),
        ):
            name = name.replace(f".{block}.{new}.", f".{number}.{old}.")
    return name


class Module(torch.nn.Module):
    """A module with these parameters, so that `state_dict()` is PyTorch's own: an ordered dict with an attribute."""

    def __init__(self, state):
        super().__init__()
        for name, value in state.items():
            *path, last = name.split(".")
            at = self
            for part in path:
                if not hasattr(at, part):
                    at.add_module(part, torch.nn.Module())
                at = getattr(at, part)
            at.register_parameter(last, torch.nn.Parameter(value))


def views(state):
    """The same numbers, each tensor a transposed view or a slice of one large storage."""
    large = torch.cat([value.flatten() for value in state.values()])
    out, at = {}, 0
    for name, value in state.items():
        piece = large[at : at + value.numel()].view(value.shape)
        out[name] = value.t().contiguous().t() if value.dim() == 2 and len(out) % 2 else piece
        at += value.numel()
    return out


SAVED = {
    "safetensors": lambda state: lambda path: save_file(state, path),
    "state_dict": lambda state: lambda path: torch.save(Module(state).state_dict(), path),
    "dict": lambda state: lambda path: torch.save(dict(state), path),
    "parameters": lambda state: lambda path: torch.save({k: torch.nn.Parameter(v) for k, v in state.items()}, path),
    "views": lambda state: lambda path: torch.save(views(state), path),
    "older names": lambda state: lambda path: torch.save({older(k): v for k, v in state.items()}, path),
    "module.": lambda state: lambda path: torch.save({f"module.{k}": v for k, v in state.items()}, path),
    "half": lambda state: lambda path: torch.save({k: v.half() for k, v in state.items()}, path),
}


@pytest.mark.parametrize("kind", SAVED)
def test_every_form_arrives_exactly(kind, state, medtune, tmp_path):
    assert len({older(k) for k in state}) == len(state) and older("logit_scale") == "logit_scale"
    folder = community(tmp_path / "theirs", SAVED[kind](state))
    version = medtune("--store", tmp_path / "store", "model", "import", "--name", "m", folder, "--json")
    report = version["metadata"]["weights_report"]
    assert report["format"] == ("safetensors" if kind == "safetensors" else "PyTorch state dict")
    assert (report["tensors"], report["numbers"]) == (len(state), sum(v.numel() for v in state.values()))
    renamed = {"older names": sum(older(k) != k for k in state), "module.": len(state)}.get(kind, 0)
    assert (report["renamed"], report["widened"]) == (renamed, len(state) if kind == "half" else 0)
    assert report["missing"] == report["unexpected"] == report["reshaped"] == []
    medtune("--store", tmp_path / "store", "model", "pull", "m@latest", tmp_path / "package")
    package = Package(tmp_path / "package")
    # a file that was safetensors keeps its name, so that it can be put back; another format gets its own ending
    name = f"{MODEL}.pt" if kind == "safetensors" else f"{MODEL}.safetensors"
    assert package.settings["weights"] == f"vision_model/{name}"
    assert package.settings["provenance"]["weights_report"] == report
    found = load_file(tmp_path / "package/artifacts/checkpoints" / package.settings["weights"])
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(found[key], value.half().float() if kind == "half" else value), key
    theirs = yaml.safe_load((folder / "config.yaml").read_text())
    ours = yaml.safe_load((tmp_path / "package/artifacts/checkpoints/config.yaml").read_text())
    assert ours["MAX_NUM_EPOCHS"] == 100 and ours["LANG_ENCODER"] | theirs["LANG_ENCODER"] == ours["LANG_ENCODER"]


def test_the_report_is_printed_and_what_was_bent_is_named(state, medtune, tmp_path):
    longer = torch.randn(33, 32)
    bent = state | {"lang_encoder.positional_embedding": longer, "logit_scale": state["logit_scale"].reshape(1)}
    folder = community(tmp_path / "theirs", SAVED["state_dict"](bent), "pytorch_model.bin")
    store = ["--store", tmp_path / "store"]
    printed = medtune(*store, "model", "import", "--name", "m", folder)
    assert re.search(rf"{len(state)} tensors.*0 missing, 0 unexpected, 2 reshaped", printed), printed
    assert "lang_encoder.positional_embedding [33, 32] to [20, 32]" in printed
    medtune(*store, "model", "pull", "m@latest", tmp_path / "package")
    found = load_file(tmp_path / "package/artifacts/checkpoints/vision_model/pytorch_model.safetensors")
    expected = torch.nn.functional.interpolate(longer.t()[None], size=20, mode="linear", align_corners=True)[0].t()
    torch.testing.assert_close(found["lang_encoder.positional_embedding"], expected, rtol=0, atol=1e-6)
    assert found["logit_scale"].shape == ()


def test_nothing_is_loaded_when_something_does_not_fit(state, binary, tmp_path):
    broken = {k: v for k, v in state.items() if k != "lang_projection"}
    broken |= {"optimizer.step": torch.zeros(1), "image_projection": torch.zeros(3, 5)}
    folder = community(tmp_path / "theirs", SAVED["state_dict"](broken))
    done = invoke(binary, "--store", tmp_path / "store", "model", "import", "--name", "m", folder)
    shapes = f"image_projection [3, 5] instead of {list(state['image_projection'].shape)}"
    refused(done, 12, "1 missing: lang_projection", "1 unexpected: optimizer.step", "1 of another shape", shapes)
    listed = succeed(binary, "--store", tmp_path / "store", "model", "list", "--json")
    assert listed == []


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def zipped(path, data):
    """An archive as torch.save makes it, with a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("call", ["os.system", "builtins.exec", "protocol 0", "protocol 5"])
def test_malicious_pickles_run_nothing(call, state, binary, tmp_path):
    marker = tmp_path / "executed"
    shell, code = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    evil = Command(exec, code) if call == "builtins.exec" else Command(os.system, shell)

    def save(path):
        if call.startswith("protocol"):
            zipped(path, pickle.dumps({"image_projection": evil}, protocol=int(call[-1])))
        else:
            torch.save(state | {"image_projection": evil}, path)

    folder = community(tmp_path / "theirs", save)
    # the file does what it is meant to where it is unpickled, or this test would show nothing
    subprocess.run([sys.executable, "-c", f"import torch; torch.load({str(folder / 'vision_model' / (MODEL + '.pt'))!r}, weights_only=False)"])
    assert marker.exists() or call.startswith("protocol")
    marker.unlink(missing_ok=True)
    done = invoke(binary, "--store", tmp_path / "store", "model", "import", "--name", "m", folder)
    refused(done, 12, f"{MODEL}.pt", "save a flat state dict", "safetensors")
    assert not marker.exists()


@pytest.mark.parametrize(
    "content, part",
    [
        (lambda state: {"model": dict(state), "epoch": 3}, "'model' is a dict itself"),
        (lambda state: dict(state) | {"epoch": 3}, "'epoch' is not a tensor"),
        (lambda state: list(state.values()), "something else than a dict"),
        (lambda state: torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_other_pickles_are_refused_with_what_to_do(content, part, state, binary, tmp_path):
    folder = community(tmp_path / "theirs", lambda path: torch.save(content(state), path))
    done = invoke(binary, "--store", tmp_path / "store", "model", "import", "--name", "m", folder)
    refused(done, 12, f"{MODEL}.pt", part, "save a flat state dict, torch.save(model.state_dict(), FILE), or safetensors")


def test_files_of_old_pytorch_and_damaged_ones_are_refused(state, binary, tmp_path):
    def old(path):
        torch.save(Module(state).state_dict(), path, _use_new_zipfile_serialization=False)

    done = invoke(binary, "--store", tmp_path / "s", "model", "import", "--name", "m", community(tmp_path / "old", old))
    refused(done, 12, "before 1.6", "save a flat state dict")
    buffer = io.BytesIO()
    torch.save(Module(state).state_dict(), buffer)
    for share in (0.1, 0.5, 0.99):
        whole = buffer.getvalue()
        folder = community(tmp_path / f"cut{share}", lambda path: path.write_bytes(whole[: int(len(whole) * share)]))
        done = invoke(binary, "--store", tmp_path / "s", "model", "import", "--name", "m", folder)
        refused(done, 12, f"{MODEL}.pt")


def wide():
    """A model of 300 MB, nearly all of it in the token embedding and the text encoder."""
    config = handmade.config(WIDTH=1024, HEADS=16, LAYERS=5, CONTEXT_LENGTH=77)
    return config, handmade.random_state(config, 12_000)


@pytest.mark.parametrize("kind", ["safetensors", "state_dict"])
def test_weights_are_in_memory_twice_at_most(kind, binary, tmp_path):
    config, state = wide()
    size = sum(v.numel() * 4 for v in state.values())
    assert size > 280e6
    folder = community(tmp_path / "theirs", SAVED[kind](state), config=config)
    del state
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    )

    def peak(*arguments):
        command = [sys.executable, "-c", code, str(binary), "--store", str(tmp_path / "store"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
        return int(done.stdout.split()[-1])

    small = community(tmp_path / "small", SAVED[kind](handmade.random_state(handmade.config(), handmade.tokenizer().get_vocab_size())))
    extra = peak("model", "import", "--name", "large", folder) - peak("model", "import", "--name", "small", small)
    print(f"{kind}: {extra / size:.2f} times the weights on top of the program")
    # once to write them; once more, and a part of them in another layout, to answer the self-test
    assert extra < 2.1 * size


@pytest.mark.parametrize("stored", ["f32", "bf16"])
def test_fine_tuned_weights_go_back_under_the_original_names(run, state, medtune, tmp_path, stored):
    """Import, train two steps, and the new package's weights file has the names and shapes that went in."""
    texts = run.data("label_file").read_text().splitlines()
    assert texts
    folder = community(tmp_path / "theirs", SAVED["safetensors"](state))
    store = ["--store", run.store]
    medtune(*store, "model", "import", "--name", "theirs", "--onnx", folder)
    recipe = tmp_path / "train.yaml"
    recipe.write_text(yaml.safe_dump({"MAX_NUM_EPOCHS": 1, "TRAIN": {"BATCH_SIZE_TOTAL": 48}, "START_LEARNING_RATE": 1e-3, "EVAL_AT_START": False}))
    inputs = {
        "mlflow_model_path": "model:theirs@latest",
        "label_file": "data:label_file@latest",
        "conf_files": str(recipe),
        **{key: f"data:train_{key}@latest" for key in ("image_tsv", "text_tsv")},
        **{f"eval_{key}": f"data:validation_{key}@latest" for key in ("image_tsv", "text_tsv")},
    }
    job = tmp_path / "job.yaml"
    outputs = {"mlflow_model_folder": "theirs-tuned"}
    parameters = {"prompt_templates": "imagenet", "stored_weights": stored, "onnx": True}
    job.write_text(yaml.safe_dump({"version": 1, "kind": "Finetune", "inputs": inputs, "parameters": parameters, "outputs": outputs}))
    medtune(*store, "run", job)
    medtune(*store, "model", "pull", "theirs-tuned@latest", tmp_path / "tuned")
    package = Package(tmp_path / "tuned")  # the independent model takes the file's names as they are, none missing or in excess
    tuned = tmp_path / "tuned/artifacts/checkpoints/vision_model" / f"{MODEL}.pt"
    found = load_file(tuned)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in state.items()}
    assert any(not torch.equal(found[k], state[k]) for k in state)
    matrices = torch.bfloat16 if stored == "bf16" else torch.float32
    assert {k: v.dtype for k, v in found.items()} == {k: matrices if v.ndim > 1 else torch.float32 for k, v in state.items()}
    assert ("stored in bfloat16" in (tmp_path / "tuned/README.md").read_text()) == (stored == "bf16")
    provenance = package.settings["provenance"]
    assert provenance["prompt_preset"] == "imagenet" and len(provenance["prompt_templates"]) == 81
    # the models are of these weights: those of the base would read other numbers, or the same at other places
    files = [path.read_bytes() for path in run.images()[:2]]
    vectors = package.image_features(files)
    session = onnxruntime.InferenceSession(tmp_path / "tuned/artifacts/checkpoints/image_encoder.onnx")
    torch.testing.assert_close(torch.tensor(session.run(None, {"images": rgb(package.settings["pixels"], files)})[0]), vectors, rtol=0, atol=2e-5)
    # put back into the folder it came from, it is imported again as it is
    shutil.copy(tuned, folder / "vision_model" / tuned.name)
    medtune("--store", tmp_path / "other", "model", "import", "--name", "back", folder)
    medtune("--store", tmp_path / "other", "model", "pull", "back@latest", tmp_path / "back")
    back = load_file(tmp_path / "back/artifacts/checkpoints/vision_model" / tuned.name)
    assert all(torch.equal(back[k], found[k].float()) for k in found)


def test_stored_in_bfloat16_it_is_half_as_large_and_answers_nearly_the_same(run, state, medtune, tmp_path):
    """The file is what PyTorch makes of the weights; real MLflow reads it and passes the self-test."""
    folder, store = community(tmp_path / "theirs", SAVED["safetensors"](state)), tmp_path / "store"
    for name, options in (("whole", []), ("half", ["--stored-weights", "bf16"])):
        medtune("--store", store, "model", "import", "--name", name, folder, "--python", sys.executable, *options)
    package = store / "models/half/1"
    found = load_file(package / "artifacts/checkpoints/vision_model" / f"{MODEL}.pt")
    for key, value in state.items():
        assert torch.equal(found[key], value.bfloat16() if value.ndim > 1 else value), key
    assert "stored in bfloat16" in (package / "README.md").read_text()
    said = medtune("--store", store, "model", "verify", "half@1", "--python", sys.executable)
    assert "passed by medtune" in said and "passed by MLflow" in said
    images = run.images()[:4]
    answers = [
        medtune("--store", store, "predict", f"model:{name}@1", *images, "--json")["predictions"] for name in ("whole", "half")
    ]
    for whole, half in zip(*answers):
        near = torch.nn.functional.cosine_similarity(torch.tensor(whole["image_features"]), torch.tensor(half["image_features"]), dim=0)
        assert 0.99 < near and whole["image_features"] != half["image_features"]
