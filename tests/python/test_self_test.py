"""The self-test of packages: real MLflow answers it, and nothing is published that fails it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checks import PYTHONS, mlflow_predict
from harness import environment, invoke, refused, sha256, stub
from safetensors.torch import load_file, save_file

NAMES = ["base", "zero-shot", "adapter-classifier"]
USAGE, PACKAGE = 2, 12  # exit codes
CHECKPOINTS = "artifacts/checkpoints"
LOADER = "code/*/__init__.py"


def copy_of(run, name, folder):
    """The package `name`, without what other tests left in it."""
    return Path(shutil.copytree(run.model(name), folder / name, ignore=shutil.ignore_patterns("__pycache__")))


def sealed(package):
    """Makes the manifest fit the files again, as whoever forges a package would."""
    path = package / "medtune-manifest.json"
    manifest = json.loads(path.read_text())
    files = sorted(p for p in package.rglob("*") if p.is_file() and p != path and p.parent.name != "__pycache__")
    manifest["files"] = [
        {"path": p.relative_to(package).as_posix(), "size": p.stat().st_size, "sha256": sha256(p)}
        for p in files
    ]
    path.write_text(json.dumps(manifest))
    return package


def weights_of(package):
    return package / CHECKPOINTS / json.loads((package / CHECKPOINTS / "medtune.json").read_text())["weights"]


def change_weights(package, change):
    path = weights_of(package)
    state = load_file(path)
    change(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def models(medtune, store):
    return medtune("--store", store, "model", "list", "--json") if store.exists() else []


@pytest.mark.parametrize(("name", "mlflow"), [*((name, "3") for name in NAMES), ("base", "2")])
def test_medtune_and_mlflow_answer_it(run, medtune, tmp_path, name, mlflow):
    package = copy_of(run, name, tmp_path)
    said = medtune("model", "verify", package, "--python", PYTHONS[mlflow]).splitlines()
    # the classifiers have ONNX models too
    assert len(said) == (3 if name == "base" else 4) and "every file is as it was written" in said[0]
    assert "self-test passed by medtune, largest difference" in said[1]
    assert f"self-test passed by MLflow {mlflow}." in said[2] and f"torch {torch.__version__}" in said[2]
    assert all("self-test passed by ONNX Runtime" in line for line in said[3:])
    assert all(float(line.split()[-1]) < 1e-4 for line in said[1:])
    # nothing was written beside the files
    assert "every file" in medtune("model", "verify", package, "--no-self-test") and not list(package.rglob("__pycache__"))


@pytest.mark.parametrize("name", NAMES)
def test_the_expected_answers_are_those_of_mlflow(run, tmp_path, name):
    """Without medtune: whoever serves a package can check the served model by hand."""
    package = copy_of(run, name, tmp_path)
    test = json.loads((package / "self-test.json").read_text())
    expected = test["expected"]
    assert [image["name"] for image in test["images"]] == ["colours", "rings", "noise"]
    rows = [[image["base64"], ""] for image in test["images"]] + [["", text] for text in test["texts"]]
    if name == "base":
        answers, _ = mlflow_predict(tmp_path, package, ["image", "text"], rows)
        found = [answer.get("image_features") or answer["text_features"] for answer in answers]
        torch.testing.assert_close(
            torch.tensor(found), torch.tensor(expected["image_features"] + expected["text_features"]), rtol=0, atol=1e-5
        )
        assert answers[0]["scaling_factor"] == pytest.approx(expected["scaling_factor"], abs=1e-6)
        return
    answers, _ = mlflow_predict(tmp_path, package, ["image"], [row[:1] for row in rows])
    labels = json.loads((package / CHECKPOINTS / "classifier/labels.json").read_text())
    found = [[{entry["label"]: entry["score"] for entry in answer}[label] for label in labels] for answer in answers]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected["scores"]), rtol=0, atol=1e-5)
    assert not torch.allclose(torch.tensor(expected["scores"])[0], torch.tensor(expected["scores"])[2], atol=1e-4)


def test_changed_weights_are_found(run, binary, medtune, tmp_path):
    """Although every hash fits: `verify` fails, and `import` registers nothing."""
    package = copy_of(run, "base", tmp_path)

    def turned(state):
        state["image_projection"][0] *= -1

    change_weights(package, turned)
    sealed(package)
    refused(invoke(binary, "model", "verify", package), PACKAGE, "self-test", "image 'colours'", "image_features differ by")
    store = tmp_path / "store"
    refused(invoke(binary, "--store", store, "model", "import", "--name", "forged", package), PACKAGE, "image 'colours'")
    assert models(medtune, store) == []
    medtune("--store", store, "model", "import", "--name", "forged", package, "--no-self-test")
    assert "every file" in invoke(binary, "model", "verify", "--no-self-test", package).stdout


def test_changed_expectations_are_found(run, binary, tmp_path):
    package = copy_of(run, "adapter-classifier", tmp_path)
    path = package / "self-test.json"
    test = json.loads(path.read_text())
    test["expected"]["scores"][1][2] += 3e-4
    path.write_text(json.dumps(test))
    refused(invoke(binary, "model", "verify", package), PACKAGE, "changed 'self-test.json'")
    refused(invoke(binary, "model", "verify", sealed(package)), PACKAGE, "image 'rings': scores differ by 3.0e-4")
    hollow = json.dumps(test | {"images": [], "expected": {}})
    for damaged, why in [("{}", "not a self-test"), (hollow, "no expected answer"), (json.dumps(test | {"format_version": 2}), "newer")]:
        path.write_text(damaged)
        refused(invoke(binary, "model", "verify", sealed(package)), PACKAGE, "self-test.json", why)


@pytest.mark.parametrize("parameter", ["image_projection", "logit_scale", "lang_encoder.token_embedding.weight"])
def test_weights_that_are_no_numbers_are_not_published(run, binary, medtune, tmp_path, parameter):
    """In the image tower, in the scale, and in the row of a token that no text of the self-test has."""
    source = tmp_path / "published"
    shutil.copytree(run.model("base") / CHECKPOINTS, source)
    package = source / "medtune.json"
    weights = source / json.loads(package.read_text())["weights"]
    package.unlink()
    state = load_file(weights)
    assert parameter in state, sorted(state)
    state[parameter].view(-1)[-1] = float("nan")
    save_file(state, weights)
    store = tmp_path / "store"
    refused(invoke(binary, "--store", store, "model", "import", "--name", "damaged", source), PACKAGE, "self-test", parameter, "not finite")
    assert models(medtune, store) == []


def test_a_classifier_that_fails_ends_its_job(run, binary, medtune, tmp_path):
    """An adapter of weights that are no numbers: the step fails, and no version of the classifier is there."""
    adapter, store = tmp_path / "adapter", tmp_path / "store"
    shutil.copytree(run.model("adapter-classifier") / CHECKPOINTS / "adapter", adapter)
    state = load_file(adapter / "adapter.safetensors")
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_file(state, adapter / "adapter.safetensors")
    job = tmp_path / "job.yaml"
    inputs = {"mlflow_model_path": str(run.model("base")), "label_file": str(run.folder / "labels.txt"), "adapter": str(adapter)}
    outputs = {"classification_mlflow_model": "damaged"}
    job.write_text(json.dumps({"version": 1, "kind": "Assemble", "name": "assemble", "inputs": inputs, "outputs": outputs}))
    refused(invoke(binary, "--store", store, "run", job), PACKAGE, "self-test", "not finite")
    assert models(medtune, store) == []


def test_a_job_asks_mlflow(run, binary, medtune, tmp_path):
    """Named by the environment: what cannot load a package keeps it from being published, what can lets it through."""
    store, job = tmp_path / "store", tmp_path / "job.yaml"
    base = copy_of(run, "base", tmp_path)
    inputs = {"mlflow_model_path": str(base), "label_file": str(run.folder / "labels.txt")}
    outputs = {"classification_mlflow_model": "asked"}
    job.write_text(json.dumps({"version": 1, "kind": "Assemble", "name": "assemble", "inputs": inputs, "outputs": outputs}))
    broken = stub(tmp_path, "echo 'ImportError: no such thing' >&2; exit 3")
    done = invoke(binary, "--store", store, "run", job, env=environment(MEDTUNE_PYTHON=broken))
    refused(done, PACKAGE, "cannot be used in Python", "ImportError: no such thing")
    assert models(medtune, store) == []
    done = invoke(binary, "--store", store, "run", job, env=environment(MEDTUNE_PYTHON=sys.executable))
    assert done.returncode == 0, done.stderr
    assert "self-test passed by=MLflow 3" in done.stderr, done.stderr
    assert [model["name"] for model in models(medtune, store)] == ["asked"]


def test_other_answers_of_mlflow_are_refused(run, binary, medtune, tmp_path):
    """A loader that loads, and answers what it should not."""
    store = tmp_path / "store"
    spoil = "import json,sys; f=sys.argv[1]; a=json.load(open(f)); a['programs'][0]['answers']['text_features'][1][0]+=.01; json.dump(a,open(f,'w'))"
    other = stub(tmp_path, f'{sys.executable} "$@" || exit 1\nexec {sys.executable} -c "{spoil}" "$5"')
    package = copy_of(run, "base", tmp_path)
    done = invoke(binary, "--store", store, "model", "import", "--name", "other", package, "--python", other)
    refused(done, PACKAGE, "self-test by MLflow 3", "text 'x-ray of the left knee", "text_features differ by 1.0e-2")
    assert models(medtune, store) == []


def test_the_loader_gets_no_credentials(run, binary, tmp_path):
    package = copy_of(run, "base", tmp_path)
    spy = stub(tmp_path, f"env > {tmp_path}/seen; exec {sys.executable} \"$@\"")
    names = ["AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_KEY", "AZUREML_RUN_TOKEN", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN", "HTTPS_PROXY", "ANYTHING"]
    secrets = {name: "abc-secret" for name in names}
    done = invoke(binary, "model", "verify", package, "--python", spy, env=environment(PYTHONSAFEPATH=1, PYTHONHASHSEED=7, CUDA_VISIBLE_DEVICES=0, **secrets))
    assert done.returncode == 0, done.stderr
    seen = (tmp_path / "seen").read_text()
    assert "PYTHONHASHSEED=7\n" in seen and "PATH=" in seen and "abc-secret" not in seen
    # whatever else this machine has, the self-test was made on the CPU
    assert "CUDA_VISIBLE_DEVICES=\n" in seen


@pytest.mark.parametrize("where", ["text", "compiled", "beside", "named"])
def test_code_that_came_with_a_package_is_not_run(run, binary, tmp_path, where):
    """A forged package whose hashes fit. Its weights are tried, its Python is not."""
    package, marker = copy_of(run, "base", tmp_path), tmp_path / "was-run"
    loader = next(package.glob(LOADER))
    evil = f"open({str(marker)!r}, 'w').close()\n"
    if where == "text":
        loader.write_text(evil + loader.read_text())
    elif where == "compiled":
        import py_compile

        (tmp_path / "evil.py").write_text(evil)
        compiled = loader.parent / "__pycache__" / f"__init__.{sys.implementation.cache_tag}.pyc"
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(tmp_path / "evil.py"), cfile=str(compiled), invalidation_mode=mode)
    elif where == "beside":
        (package / "code/torch.py").write_text(evil)
    else:
        (package / "other").mkdir()
        shutil.copytree(loader.parent, package / "other" / loader.parent.name)
        copied = package / "other" / loader.parent.name / "__init__.py"
        copied.write_text(evil + copied.read_text())
        mlmodel = package / "MLmodel"
        mlmodel.write_text(mlmodel.read_text().replace("    code: code\n", "    code: other\n"))
    done = invoke(binary, "model", "verify", sealed(package), "--python", sys.executable)
    assert done.returncode == 0, done.stderr
    assert "passed by medtune" in done.stdout and not marker.exists()
    # what Python or anybody else compiled is left alone, the text beside it is what was checked
    asked = where == "compiled"
    assert ("passed by MLflow" in done.stdout, "neither MLflow nor ONNX Runtime was asked" in done.stdout) == (asked, not asked)


def test_a_python_without_mlflow_is_refused_first(run, binary, medtune, tmp_path):
    """With the job, before anything runs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    bare, store = tmp_path / "bare/bin/python", tmp_path / "store"
    done = invoke(binary, "--store", store, "run", run.folder / "job.yaml", "--python", bare)
    refused(done, USAGE, str(bare), "lacks mlflow, torch", "pip install -r")
    assert not list(store.glob("runs/*"))
    refused(invoke(binary, "--store", store, "run", run.folder / "job.yaml", "--dry-run", env=environment(MEDTUNE_PYTHON=bare)), USAGE, "lacks mlflow")
    # where no package is made or asked, nobody looks
    assert "every file" in invoke(binary, "model", "verify", "--no-self-test", run.model("base"), "--python", bare).stdout
    # an empty variable names none
    done = invoke(binary, "model", "verify", run.model("base"), env=environment(MEDTUNE_PYTHON=""))
    assert done.returncode == 0 and "passed by medtune" in done.stdout and "MLflow" not in done.stdout, done.stderr
    refused(invoke(binary, "model", "verify", run.model("base"), "--python", tmp_path / "none"), USAGE, str(tmp_path / "none"))


def test_a_package_of_before_says_so(run, medtune, tmp_path):
    package = copy_of(run, "base", tmp_path)
    (package / "self-test.json").unlink()
    assert "it has no self-test" in medtune("model", "verify", sealed(package))
    store = tmp_path / "store"
    medtune("--store", store, "model", "import", "--name", "earlier", package)
    assert [model["name"] for model in models(medtune, store)] == ["earlier"]


def test_the_program_without_libtorch_asks_mlflow(run, core_binary, tmp_path):
    package = copy_of(run, "zero-shot", tmp_path)
    done = invoke(core_binary, "model", "verify", package, "--python", sys.executable)
    assert done.returncode == 0 and "passed by MLflow 3" in done.stdout, (done.stdout, done.stderr)
    assert "passed by medtune" not in done.stdout and "without libtorch" in done.stderr
