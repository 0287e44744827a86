"""The quickstart's pipeline with its store in a bucket: every kind of job, then the packages in real MLflow, straight from S3 too."""

import shutil
import subprocess
import sys

import pytest
import yaml
from checks import base64_of, mlflow_predict
from conftest import ROOT
from stores import Place
from test_store_errors import SECRETS, secrets_of

A_CLASS = 30
STEPS = ["prepare", "finetune", "embed-train", "embed-validation", "embed-test", "adapter", "zero-shot", "classifier", "evaluate", "release"]
PACKAGES = ["digits-zero-shot", "digits-classifier"]


def checkout(folder):
    """What jobs/quickstart.yaml needs, but few images and a short training."""
    shutil.copytree(ROOT / "jobs", folder / "jobs")
    digits = folder / "quickstart" / "digits"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "make_digits.py"), str(digits)], check=True, capture_output=True)
    for of_class in digits.iterdir():
        for path in sorted(of_class.iterdir())[A_CLASS:]:
            path.unlink()
    job = folder / "jobs" / "quickstart.yaml"
    # so short a training is not held to what the whole one reaches
    job.write_text(job.read_text().replace('adapter.macro_f1: ">= 0.8"', 'adapter.macro_f1: ">= 0.1"'))
    training = folder / "jobs" / "digits" / "train.yaml"
    config = yaml.safe_load(training.read_text()) | {"MAX_NUM_EPOCHS": 6, "EVAL_PER_OPTIM_STEPS": 6}
    config["LR_SCHEDULER_PARAMS"]["warmup_steps"] = 2
    training.write_text(yaml.safe_dump(config, sort_keys=False))


class Finished:
    """A place where the pipeline has been run, with what it said."""

    def __init__(self, place, folder):
        self.place, self.folder = place, folder
        digits = folder / "jobs" / "digits"
        place.good("model", "init", "--name", "digits-base", "--config", digits / "model.yaml", "--label-texts", digits / "label_texts.txt")
        self.done = self.run()
        images = sorted((folder / "quickstart" / "digits").rglob("*.png"))
        self.images = images[:: len(images) // 20]

    def run(self):
        done = self.place.call("--store", self.place.uri, "--log-level", "trace", "run", self.folder / "jobs" / "quickstart.yaml")
        assert done.returncode == 0, done.stderr[-4000:]
        return done

    def record(self):
        """The newest run's record."""
        runs = self.place.good("runs", "list", "--json")
        return self.place.good("runs", "show", runs[0]["run_id"], "--json")

    def scores(self, package):
        """Scores by label, image by image, as `medtune predict` gives them."""
        answer = self.place.good("predict", package, *self.images, "--json")
        return [{entry["label"]: entry["score"] for entry in item["labels"]} for item in answer["predictions"]]


@pytest.fixture(scope="module", params=["s3", "azure"])
def finished(request, binary, tmp_path_factory):
    server = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp(f"pipeline-{request.param}")
    checkout(folder)
    extra = SECRETS if request.param == "s3" else {}
    return Finished(Place(binary, server, "team/pipeline", folder, **extra), folder)


def test_everything_is_in_the_bucket(finished):
    record = finished.record()
    assert {step["name"]: step["status"] for step in record["steps"]} == dict.fromkeys(STEPS, "succeeded")
    manifests = finished.place.manifests()
    assert {name for name, _ in manifests} >= {"digits-base", "digits-labels", "digits-report", *PACKAGES}
    finished.place.check_files(*manifests.values())
    # the folder that the job file names is not made
    assert not (finished.folder / "quickstart" / "store").exists()
    for name, number in manifests:
        kind = manifests[name, number]["kind"]
        finished.place.good(kind, "verify", f"{name}@{number}")


def test_a_second_run_does_nothing(finished):
    before = finished.place.manifests()
    finished.run()
    assert {step["status"] for step in finished.record()["steps"]} == {"unchanged"}
    assert finished.place.manifests() == before


def test_no_secret_is_shown_or_stored(finished):
    if finished.place.server.scheme == "az":
        # the emulator's key is in no variable; other ways to Azure are in test_store_errors.py
        assert "AZURE_STORAGE_ACCOUNT_KEY" not in finished.place.env
        return
    hidden = [secret.encode() for secret in secrets_of(finished.place)]
    for key in finished.place.sizes():
        content = finished.place.read(key)
        assert not [secret for secret in hidden if secret in content], key
    said = (finished.done.stdout + finished.done.stderr).encode()
    assert not [secret for secret in hidden if secret in said]


@pytest.mark.parametrize("name", PACKAGES)
def test_mlflow_answers_like_predict(finished, tmp_path, name):
    """From a pulled folder, and for S3 straight from the bucket."""
    place = finished.place
    ours = finished.scores(f"model:{name}@latest")
    pulled = tmp_path / "pulled"
    place.good("model", "pull", f"{name}@latest", pulled)
    packages = {str(pulled): {}}
    if place.server.scheme == "s3":
        settings = place.server.settings()
        extra = {"MLFLOW_S3_ENDPOINT_URL": settings["AWS_ENDPOINT_URL"], "AWS_DEFAULT_REGION": settings["AWS_REGION"]}
        packages[f"{place.uri}/models/{name}/1"] = settings | extra
    rows = [[base64_of(path.read_bytes())] for path in finished.images]
    assert finished.scores(pulled) == ours
    for package, extra in packages.items():
        served, _ = mlflow_predict(tmp_path, package, ["image"], rows, extra=extra)
        assert len(served) == len(ours) == len(finished.images)
        for theirs, scores in zip(served, ours):
            assert {entry["label"]: entry["score"] for entry in theirs} == pytest.approx(scores, abs=1e-4)
