"""Ten kinds of bad input: a clear error with the right exit code, nothing published, and no expensive work before it."""

import base64
import io
import os
import shutil
import subprocess

import pytest
from PIL import Image

import bad_rows  # noqa: F401 - its cases are among CASES
from bad_inputs import CASES, CONFIG, DATA, NO_SPACE, NOT_FOUND, weights
from good_inputs import Bench, image_rows, text_rows
from harness import check_complete, environment, invoke, records, refused, snapshot, succeed, write_tsv


@pytest.fixture(scope="module")
def bench(binary, tmp_path_factory):
    return Bench(binary, tmp_path_factory.mktemp("bad-input"))


@pytest.mark.parametrize("name", CASES)
def test_bad_input(bench, tmp_path, name):
    code, make = CASES[name]
    job, fragments = make(bench, tmp_path)
    path = bench.write(tmp_path / "job.yaml", job)
    before = snapshot(bench.store)
    earlier = set(records(bench.store))
    done = bench.call("run", path)
    line = refused(done, code, *fragments)
    assert snapshot(bench.store) == before, "something was published"
    assert not list((bench.folder / "tmp" / "medtune").glob("*")), "a scratch folder was left"
    made = [record for run_id, record in records(bench.store).items() if run_id not in earlier]
    if not made:
        # a job file that cannot be read has no run
        assert code == CONFIG
        return
    [record] = made
    assert (record["status"], record["exit_code"], record["error"]["exit_code"]) == ("failed", code, code)
    assert record["error"]["message"] in line
    # nothing was run before what could be checked beforehand
    assert all(s["status"] in ("failed", "skipped") for s in record["steps"])


def test_missing_job_file(bench, tmp_path):
    for verb in ("run", "validate"):
        refused(bench.call(verb, tmp_path / "gone.yaml"), NOT_FOUND, tmp_path / "gone.yaml")


def test_unknown_keys_are_found_by_validate_and_set(bench, tmp_path):
    path = bench.write(tmp_path / "job.yaml", bench.embed({"batch_sise": 2}))
    refused(bench.call("validate", path), CONFIG, "job.yaml", "batch_sise", "did you mean 'batch_size'?")
    path = bench.write(tmp_path / "job.yaml", bench.embed())
    refused(bench.call("run", path, "--set", "parameters.batch_sise=2"), CONFIG, "batch_sise", "did you mean 'batch_size'?")


def test_version_in_the_store_that_was_tampered_with(bench, tmp_path):
    """A changed size is found when the version is used; changed content by `model verify`."""
    store = shutil.copytree(bench.store, tmp_path / "store")
    path = weights(store / "models/base/1")
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    job = bench.write(tmp_path / "job.yaml", bench.embed())
    done = invoke(bench.binary, "--store", store, "run", job, "--set", "name=again", env=bench.env)
    refused(done, DATA, "model:base@1", path.name)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused(invoke(bench.binary, "--store", store, "model", "verify", "base@1", env=bench.env), DATA, "model:base@1", path.name)


def test_a_bad_row_is_found_before_the_work(bench, tmp_path):
    """All rows are looked at before the first is decoded: a bad last row is named, not damage that only decoding row 1 finds."""
    rows = image_rows(200)
    picture = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(picture, "PNG")
    half = picture.getvalue()[: len(picture.getvalue()) // 2]
    rows[0] = (rows[0][0], base64.b64encode(half).decode())
    texts = write_tsv(tmp_path / "texts.tsv", text_rows(200))
    one = bench.write(tmp_path / "one.yaml", bench.finetune(image_tsv=write_tsv(tmp_path / "one.tsv", rows), text_tsv=texts))
    refused(bench.call("run", one, "--rerun"), DATA, "one.tsv", "row 1:")
    rows[-1] = (rows[-1][0], rows[-1][1][:-200])
    two = bench.write(tmp_path / "two.yaml", bench.finetune(image_tsv=write_tsv(tmp_path / "two.tsv", rows), text_tsv=texts))
    refused(bench.call("run", two, "--rerun"), DATA, "two.tsv", "row 200")


# 10. a full disk


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of a given size at a new folder; only root can."""
    mounted = []

    def mount(name, size):
        folder = tmp_path / name
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
            why = done.stderr.strip() if done.returncode else ""
        except FileNotFoundError as error:
            why = str(error)
        if why:
            message = f"no small disk for the full-disk tests, run them as root: {why}"
            pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_under_the_store(bench, tmp_path, small_disk):
    """Nothing of the step is listed; with more room the same command ends well."""
    disk = small_disk("disk", "160k")
    store = disk / "store"
    job = bench.write(tmp_path / "job.yaml", bench.prepare({"image_size": 128}))
    done = invoke(bench.binary, "--store", store, "run", job, env=bench.env)
    refused(done, NO_SPACE, "no space left", store)
    # the label file and the text TSVs had room, but the step that made them failed
    assert check_complete(store) == {}
    assert not list((bench.folder / "tmp" / "medtune").glob("*"))
    subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
    succeed(bench.binary, "--store", store, "run", job, env=bench.env)
    after = check_complete(store)
    assert len(after) == 7 and {len(v) for v in after.values()} == {1}


def test_full_disk_under_the_scratch_folder(bench, tmp_path, small_disk):
    scratch, store = small_disk("scratch", "100k"), tmp_path / "store"
    job = bench.write(tmp_path / "job.yaml", bench.prepare({"image_size": 128}))
    done = invoke(bench.binary, "--store", store, "run", job, env=environment(scratch))
    refused(done, NO_SPACE, "no space left", scratch)
    assert check_complete(store) == {}


def test_disk_that_was_full_before(bench, tmp_path, small_disk):
    disk = small_disk("disk", "64k")
    with pytest.raises(OSError), open(disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(b"\0" * 4096)
    job = bench.write(tmp_path / "job.yaml", bench.embed(mlflow_model_path=bench.folder / "package"))
    done = invoke(bench.binary, "--store", disk / "store", "run", job, env=bench.env)
    refused(done, NO_SPACE, "no space left")
