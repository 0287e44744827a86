"""Jobs whose files are elsewhere: the job file, the configuration and the images in a bucket, under names that other tools gave them."""

import io

import numpy as np
import pytest
from harness import refused
from PIL import Image
from stores import Place, random_file

CONFIG, NOT_FOUND = 10, 13
JOB = """version: 1
kind: Prepare
inputs:
  image_folder: pictures
  text_constants: s3://{bucket}/elsewhere/constants.yaml
parameters: {{image_size: 32}}
"""
CONSTANTS = "folder_to_label:\n  no class: nothing\n  b: bee\n"


@pytest.fixture(scope="module")
def bucket(s3):
    """The bucket with a job file, its images beside it, and its configuration somewhere else."""
    client, rng = s3.client(), np.random.default_rng(0)

    def put(key, body):
        client.put_object(Bucket=s3.bucket, Key=key, Body=body)

    for label in ("no class", "b"):
        for number in range(12):
            out = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)).save(out, "PNG")
            put(f"jobs/pictures/{label}/ü {number}.png", out.getvalue())
    put("elsewhere/constants.yaml", CONSTANTS.encode())
    put("jobs/prepare.yaml", JOB.format(bucket=s3.bucket).encode())
    return s3


def run(place, *options):
    return place.good("run", f"s3://{place.server.bucket}/jobs/prepare.yaml", "--json", *options)


def test_everything_is_read_where_it_is(binary, bucket, tmp_path):
    place = Place(binary, bucket, "inputs", tmp_path)
    # a dry run needs a store
    random_file(tmp_path / "some.bin", 10, 1)
    place.good("data", "register", "--name", "some", tmp_path / "some.bin")
    [plan] = run(place, "--dry-run")
    assert plan["action"] == "run"
    record = run(place)
    assert record["status"] == "succeeded"
    uris = {name: entry["uri"] for name, entry in record["inputs"].items()}
    top = f"s3://{bucket.bucket}"
    assert uris == {"image_folder": f"{top}/jobs/pictures", "text_constants": f"{top}/elsewhere/constants.yaml"}
    assert [step["status"] for step in run(place)["steps"]] == ["unchanged"]

    # new content under the same name is another input
    client = bucket.client()
    client.put_object(Bucket=bucket.bucket, Key="elsewhere/constants.yaml", Body=CONSTANTS.replace("bee", "wasp").encode())
    assert [step["status"] for step in run(place)["steps"]] == ["succeeded"]


def test_what_is_not_there_is_named(binary, bucket, tmp_path):
    place = Place(binary, bucket, "inputs-missing", tmp_path)
    top = f"s3://{bucket.bucket}"
    refused(place.call("run", f"{top}/jobs/none.yaml"), NOT_FOUND, f"{top}/jobs/none.yaml", "does not exist")
    for setting, code, telling in [
        ("inputs.image_folder=nothing", NOT_FOUND, f"there is nothing below '{top}/jobs/nothing/'"),
        ("inputs.image_folder=prepare.yaml", CONFIG, "is a file; this input takes a folder"),
        ("inputs.text_constants=pictures", CONFIG, "is a folder; this input takes a file"),
        ("inputs.text_constants=none.yaml", NOT_FOUND, f"there is no '{top}/jobs/none.yaml'"),
    ]:
        refused(place.call("run", f"{top}/jobs/prepare.yaml", "--set", setting), code, telling)
    del place.env["MEDTUNE_STORE"]
    done = place.call("run", f"{top}/jobs/prepare.yaml", "--set", "store=relative/folder")
    refused(done, CONFIG, f"relative to a job file in '{top}/jobs'")


def test_files_are_registered_from_where_they_are(binary, bucket, tmp_path):
    place = Place(binary, bucket, "inputs-data", tmp_path)
    uri = f"s3://{bucket.bucket}/jobs/prepare.yaml"
    made = place.good("data", "register", "--name", "job", uri, "--json")
    assert [file["path"] for file in made["files"]] == ["prepare.yaml"]
    assert place.read(f"{made['prefix']}/prepare.yaml") == bucket.read("jobs/prepare.yaml")
