"""Comparisons with public files of MedImageInsight: the CLIP vocabulary, the published MLmodel files, the published configurations."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer

from conftest import model_config
from harness import invoke, refused, sha256


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


CONFIGURATIONS = ["train-gastrovision", "mi2-config"]
ROOT = Path(__file__).resolve().parents[2]


def leaves(value, path=""):
    """Paths of all keys that hold no further keys; maps from patterns count as one."""
    if isinstance(value, dict) and value and not path.endswith("_PATTERNS"):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_published_key_is_in_the_documented_table(name, reference):
    lines = (ROOT / "docs/training.md").read_text().splitlines()
    patterns = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert len(patterns) > 100

    def known(key):
        return any(re.fullmatch(re.escape(p).replace(r"\*", "[A-Za-z0-9_]+(?:[.].+)?" if p.endswith("*") else "[^.]*"), key) for p in patterns)

    keys = list(leaves(yaml.safe_load((reference / f"{name}.yaml").read_text())))
    assert len(keys) > 100
    assert [key for key in keys if not known(key)] == []


@pytest.fixture(scope="module")
def published_base(package, reference, tmp_path_factory):
    """A package in the published layout with the published config.yaml. Its weights are of other sizes: a dry run does not read them."""
    folder = tmp_path_factory.mktemp("published") / "package"
    shutil.copytree(package, folder)
    config = folder / "artifacts/checkpoints/config.yaml"
    config.write_bytes((reference / "mi2-config.yaml").read_bytes())
    manifest = json.loads((folder / "medtune-manifest.json").read_text())
    for file in manifest["files"]:
        if file["path"] == "artifacts/checkpoints/config.yaml":
            file |= {"size": config.stat().st_size, "sha256": sha256(config)}
    (folder / "medtune-manifest.json").write_text(json.dumps(manifest))
    return folder


def dry_run(medtune, run, folder, base, configuration, **parameters):
    """The plan of a Finetune job with this configuration, unchanged, on the rows of the shared run."""
    inputs = {
        "mlflow_model_path": str(base),
        "label_file": "data:label_file@latest",
        "conf_files": str(configuration),
        **{key: f"data:train_{key}@latest" for key in ("image_tsv", "text_tsv")},
        **{f"eval_{key}": f"data:validation_{key}@latest" for key in ("image_tsv", "text_tsv")},
    }
    job = folder / "job.yaml"
    compute = {"device": "cpu"}
    document = {"version": 1, "kind": "Finetune", "inputs": inputs, "parameters": parameters, "compute": compute}
    job.write_text(yaml.safe_dump(document))
    (plan,) = medtune("--store", run.store, "run", "--dry-run", "--json", job)
    assert plan["action"] == "run"
    print(medtune("--store", run.store, "run", "--dry-run", job))
    return plan["estimate"]


def test_the_published_recipe_runs_unchanged_on_the_published_base(run, medtune, published_base, reference, tmp_path):
    estimate = dry_run(medtune, run, tmp_path, published_base, reference / "train-gastrovision.yaml")
    parameters = estimate["parameters"]
    assert parameters["total"] == pytest.approx(616.0e6, rel=1e-3)
    # positional and token embedding, and three of sixteen blocks of the text encoder
    width, frozen = 1024, 77 * 1024 + 49408 * 1024
    frozen += 3 * (12 * width * width + 13 * width)
    assert parameters["frozen"] == frozen and parameters["trainable"] == parameters["total"] - frozen
    # the published patterns that match nothing are named
    assert sorted(p.split(": ")[-1].strip("'") for p in estimate["unmatched_patterns"]) == ["^blocks.0\\.", "^convs\\."]
    warnings = "\n".join(estimate["warnings"])
    assert "FP16" in warnings and "IMAGE_ENCODER.SPEC.DROP_RATE" in warnings
    assert estimate["precision"] == "bf16"
    rows = len(run.data("train_image_tsv").read_text().splitlines())
    steps = estimate["steps"]
    assert (steps["optimizer_steps"], steps["passes_a_step"]) == (rows // 48 * 15, 12)
    assert steps["evaluations"] == 2  # the start and the end; there are fewer than 100 steps
    # four forward passes of 48 images, as blocks are computed again, and a little of the text encoder
    assert 48 * 4 * 0.584e12 < estimate["time"]["flop_a_step"] < 48 * 4 * 0.7e12
    memory = estimate["memory"]
    assert memory["weights"] == memory["average"] == 4 * parameters["total"]
    assert memory["moments"] == 2 * memory["gradients"] == 8 * parameters["trainable"]
    assert memory["total"] == pytest.approx(sum(v for k, v in memory.items() if k != "total"), abs=8)


def test_the_configuration_of_the_published_base_is_a_recipe_too(run, medtune, published_base, reference, tmp_path):
    batch = {"TRAIN.BATCH_SIZE_TOTAL": 48, "TRAIN.BATCH_SIZE_PER_GPU": 16}  # the test's rows are fewer than 1024
    estimate = dry_run(medtune, run, tmp_path, published_base, reference / "mi2-config.yaml", training=batch)
    warnings = "\n".join(estimate["warnings"])
    for key in ("user_dir", "EVALUATION_SPLITS", "DATASET.TRAIN_SET", "ZEROSHOT_EVAL_DATASET.FORMAT", "IMAGE_ENCODER.SPEC.DROP_RATE"):
        assert key in warnings, key
    assert estimate["unmatched_patterns"] == []


def test_a_recipe_for_another_base_is_refused_by_the_key(run, binary, reference, tmp_path):
    inputs = {
        "mlflow_model_path": "model:base@latest",
        "label_file": "data:label_file@latest",
        "conf_files": str(reference / "train-gastrovision.yaml"),
        **{key: f"data:train_{key}@latest" for key in ("image_tsv", "text_tsv")},
        **{f"eval_{key}": f"data:validation_{key}@latest" for key in ("image_tsv", "text_tsv")},
    }
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({"version": 1, "kind": "Finetune", "inputs": inputs}))
    done = invoke(binary, "--store", run.store, "run", "--dry-run", job)
    refused(done, 10, "train-gastrovision.yaml", "IMAGE_ENCODER.IMAGE_SIZE", "differs from the base model package")
