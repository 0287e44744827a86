"""Requirements that stop a pipeline, the package that is made of an evaluation, comparing runs, and what Evaluate is asked for wrongly."""

import json
import subprocess

import pytest
import yaml
from checks import assert_conforms, base64_of, mlflow_predict
from conftest import LABELS, pipeline

REQUIREMENT = 15


def write(run, name, **parameters):
    """The tests' pipeline with parameters of Evaluate, and a package that is made of its report."""
    job = pipeline() | {"name": name}
    job["steps"]["evaluate"]["parameters"] |= parameters
    job["steps"]["evaluate"]["outputs"] = {"report": f"{name}-report"}
    release = job["steps"]["assemble-adapter"]
    job["steps"]["release"] = release | {
        "inputs": release["inputs"] | {"report": "${{ steps.evaluate.outputs.report }}"},
        "outputs": {"classification_mlflow_model": f"{name}-released"},
    }
    path = run.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def newest(run, medtune):
    return medtune("--store", run.store, "runs", "list", "--json")[0]


def names(run, medtune):
    return {entry["name"] for entry in medtune("--store", run.store, "model", "list", "--json")}


@pytest.fixture(scope="module")
def stopped(run, medtune):
    """A run whose requirement was not met: its record."""
    require = {"adapter.accuracy": ">= 1.01", "macro_f1": ">= 0"}
    medtune("--store", run.store, "run", write(run, "stopped", require=require), expect=REQUIREMENT)
    return newest(run, medtune)


@pytest.fixture(scope="module")
def released(run, medtune):
    require = {"adapter.macro_f1": ">= 0", "adapter.accuracy.low": ">= 0", f"knn.recall[{LABELS[0]}]": ">= 0"}
    medtune("--store", run.store, "run", write(run, "released", require=require))
    return newest(run, medtune)


def test_what_is_not_good_enough_stops_the_pipeline(run, medtune, stopped):
    assert (stopped["status"], stopped["exit_code"], stopped["error"]["kind"]) == ("failed", REQUIREMENT, "requirement")
    states = {step["name"]: step["status"] for step in stopped["steps"]}
    assert (states["evaluate"], states["release"]) == ("failed", "skipped")
    assert "adapter.accuracy is 0." in stopped["error"]["message"] and ">= 1.01" in stopped["error"]["message"]
    assert "stopped-released" not in names(run, medtune)
    report = run.data("stopped-report")
    found = {entry["metric"]: entry["met"] for entry in json.loads((report / "report.json").read_text())["requirements"]}
    assert found == {"adapter.accuracy": False, "zero-shot.macro_f1": True, "adapter.macro_f1": True, "knn.macro_f1": True}
    for name in ("report.txt", "report.md", "report.html"):
        assert "adapter.accuracy" in (report / name).read_text().replace("<wbr>", "")  # where a browser may break the line
    assert {"adapter-roc.svg", "knn-confusion.svg", "zero-shot-reliability.svg"} <= {path.name for path in (report / "plots").iterdir()}


def test_it_is_not_taken_for_done(run, medtune, stopped):
    medtune("--store", run.store, "run", run.folder / "stopped.yaml", expect=REQUIREMENT)
    again = newest(run, medtune)
    assert again["run_id"] != stopped["run_id"]
    evaluate = [next(s for s in record["steps"] if s["name"] == "evaluate") for record in (again, stopped)]
    assert evaluate[0]["outputs"] == evaluate[1]["outputs"], "the same report was published twice"


def test_the_package_carries_its_evaluation(run, medtune, released, tmp_path):
    package = run.model("released-released")
    report = json.loads((run.data("released-report") / "report.json").read_text())
    adapter = next(entry for entry in report["methods"] if entry["method"] == "adapter")
    points = json.loads((package / "artifacts/checkpoints/classifier/operating_points.json").read_text())
    assert points["operating_points"] == adapter["operating_points"]
    assert list(points["best_f1"].values()) == adapter["thresholded"]["thresholds"] and list(points["best_f1"]) == LABELS
    card = (package / "README.md").read_text()
    assert f"| adapter | argmax | {adapter['argmax']['macro']['precision']:.3f} |" in card and "Not evaluated" not in card
    assert_conforms(package)
    medtune("model", "verify", package)
    # the same classifier as before
    rows = [[base64_of(path.read_bytes())] for path in run.images()[:8]]
    answers = [mlflow_predict(tmp_path, folder, ["image"], rows)[0] for folder in (package, run.model("adapter-classifier"))]
    assert answers[0] == answers[1]


def test_a_report_of_another_classifier_is_refused(run, medtune, released):
    inputs = {"mlflow_model_path": "model:base@latest", "label_file": str(run.data("label_file")), "report": "data:released-report@latest"}
    job = {"version": 1, "kind": "Assemble", "name": "other", "inputs": inputs, "parameters": {"text_template": "a {} b"}}
    path = run.folder / "other.yaml"
    path.write_text(yaml.safe_dump(job))
    medtune("--store", run.store, "run", path, expect=11)
    assert "not about this zero-shot classifier" in newest(run, medtune)["error"]["message"]
    # one that was found wanting is no ground for a package either
    path.write_text(yaml.safe_dump(job | {"inputs": inputs | {"report": "data:stopped-report@latest"}, "parameters": {}}))
    medtune("--store", run.store, "run", path, expect=REQUIREMENT)


def test_runs_are_compared(run, medtune, stopped, released, tmp_path):
    store = ["--store", run.store, "runs", "compare", stopped["run_id"], "data:released-report@latest"]
    found = medtune(*store, "--json")
    by_name = {(entry["method"], entry["figure"]): entry for entry in found["figures"]}
    assert {"accuracy", "macro_f1", "mcc", "mauc", "ece", f"recall[{LABELS[0]}]"} <= {figure for _, figure in by_name}
    # both evaluated the same models on the same images
    assert all(entry["first"] == entry["second"] and entry["apart"] is not True for entry in found["figures"])
    text = medtune(*store, "--require", "adapter.accuracy >= 0")
    assert "macro_f1" in text and "overlap" in text and "yes" in text
    page = tmp_path / "comparison.html"
    assert medtune(*store, "--require", "adapter.accuracy > 1", "--html", page, expect=REQUIREMENT).rstrip().endswith("NO")
    shown = page.read_text()
    assert "gate failed, 1 of 1 requirement not met" in shown and "data:released-report@" in shown and "data:stopped-report@" in shown
    medtune(*store, "--html", tmp_path / "missing" / "comparison.html", expect=13)
    medtune(*store, "--require", "adapter.accurracy > 1", expect=2)


def test_subgroups_and_groups_come_from_the_texts(run, medtune):
    lines = [line.split("\t") for line in run.data("test_text_tsv").read_text().splitlines()]
    sexes = ["f" if number % 3 else "m" for number in range(len(lines))]
    rows = [(key, json.loads(text) | {"sex": sex, "patient": number // 4}) for number, ((key, text), sex) in enumerate(zip(lines, sexes))]
    texts = run.folder / "with-sex.tsv"
    texts.write_text("".join(f"{key}\t{json.dumps(value)}\n" for key, value in rows))
    inputs = {
        "adapter_mlflow_model": "model:adapter-classifier@latest",
        "test_embeddings": "data:test-embeddings@latest",
        "test_text_tsv": str(texts),
        "label_file": str(run.data("label_file")),
    }
    parameters = {"subgroups": ["sex"], "bootstrap": {"resamples": 100, "group": "patient"}}
    job = {"version": 1, "kind": "Evaluate", "name": "groups", "inputs": inputs, "parameters": parameters, "outputs": {"report": "groups"}}
    path = run.folder / "groups.yaml"
    path.write_text(yaml.safe_dump(job))
    medtune("--store", run.store, "run", path)
    [entry] = json.loads((run.data("groups") / "report.json").read_text())["methods"]
    [table] = entry["subgroups"]
    assert [(g["value"], g["n"]) for g in table["groups"]] == [("f", sexes.count("f")), ("m", sexes.count("m"))]
    assert entry["intervals"]["group"] == "patient" and entry["intervals"]["units"] == len({value["patient"] for _, value in rows})
    assert entry["thresholded"] is None and entry["operating_points"] == []
    for wrong, part in (
        ({"subgroups": ["age"]}, "no row has a value of 'age'"),
        ({"bootstrap": {"group": "visit"}}, "no 'visit'"),
        ({"bootstrap": {"group": "class_name"}}, None),
    ):
        path.write_text(yaml.safe_dump(job | {"parameters": wrong}))
        medtune("--store", run.store, "run", path, expect=11 if part else 0)
        assert part is None or part in newest(run, medtune)["error"]["message"]


def test_what_can_never_be_answered_is_found_with_the_job(run, binary, medtune):
    """Without a step being run, so that nobody waits for a training to hear of it."""
    for change, part in (
        ({"require": {"adapter.recall[number siks]": "> 0"}}, "number siks"),
        ({"subgroups": ["sex"]}, "no field 'sex'"),
        ({"require": {"macro_fl": "> 0"}}, "did you mean 'macro_f1'"),
    ):
        done = refused(binary, "run", write(run, "wrong", **change), store=run.store)
        assert part in done and ("siks" in part or "steps.evaluate" in done)
    job = yaml.safe_load(write(run, "wrong", require={"knn.accuracy": "> 0", "thresholded_macro_f1": "> 0"}).read_text())
    inputs = job["steps"]["evaluate"]["inputs"]
    for names, part in (
        (["train_embeddings", "train_text_tsv"], "knn is not evaluated"),
        (["validation_embeddings", "validation_text_tsv"], "validation_embeddings"),
        (["train_text_tsv"], "belong together"),
    ):
        job["steps"]["evaluate"]["inputs"] = {k: v for k, v in inputs.items() if k not in names}
        (run.folder / "wrong.yaml").write_text(yaml.safe_dump(job))
        assert part in refused(binary, "validate", run.folder / "wrong.yaml")


def refused(binary, verb, path, store=None):
    """What the program says of a job that it does not take."""
    command = [binary, *(["--store", store] if store else []), verb, path]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 10, done.stderr
    return done.stderr
