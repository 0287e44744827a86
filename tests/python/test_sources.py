"""Where images may lie: TSVs by list, pattern and folder, folders of images, versions of these, here and in a bucket. Whatever they lie in,
an image gets the same vector."""

import json
import os
import shutil
import time

import numpy as np
import pytest
import yaml
from bad_inputs import CONFIG, DATA, NOT_FOUND
from good_inputs import Bench, image_rows
from harness import Events, invoke, refused, succeed, write_tsv
from stores import Place, contents
from test_embed import job, ledger, run, table, vectors

ROWS = 40


@pytest.fixture(scope="module")
def bench(binary, tmp_path_factory):
    bench = Bench(binary, tmp_path_factory.mktemp("sources"))
    rows = image_rows(ROWS)
    bench.one = write_tsv(bench.folder / "one.tsv", rows)
    bench.several = bench.folder / "several"
    bench.several.mkdir()
    for n, (start, end) in enumerate(((0, 17), (17, 17), (17, ROWS))):
        write_tsv(bench.several / f"part-{n}.tsv", rows[start:end])
    (bench.several / "part-0.lineidx").write_text(starts(bench.several / "part-0.tsv"))
    (bench.several / "notes.txt").write_text("not an image\n")
    bench.tree = bench.folder / "tree"
    for key, image in rows:
        (bench.tree / key).parent.mkdir(parents=True, exist_ok=True)
        (bench.tree / key).write_bytes(image)
    bench.folder_of_one, _ = run(bench, bench.folder / "store-one", job(bench, "one", bench.one))
    bench.vectors = by_key(bench.folder_of_one)
    assert len(bench.vectors) == ROWS
    return bench


def starts(tsv):
    at, found = 0, []
    for line in tsv.read_bytes().splitlines(keepends=True):
        found.append(at)
        at += len(line)
    return "".join(f"{at}\n" for at in found)


class Vector:
    """Equal to one that differs by rounding alone: sums depend on which images are together in a forward pass."""

    def __init__(self, values):
        self.values = values

    def __eq__(self, other):
        return np.allclose(self.values, other.values, rtol=0, atol=1e-6)

    def __repr__(self):
        return f"Vector({self.values[:3]}...)"


def by_key(folder):
    """The vector of each key, in the order of the rows."""
    found, _ = table(folder)
    return dict(zip(found.column("Name").to_pylist(), map(Vector, vectors(found)), strict=True))


def with_images(path, images):
    """The job with a list or a pattern in the place of its images."""
    document = yaml.safe_load(path.read_text())
    document["inputs"]["image_tsv"] = images
    path.write_text(json.dumps(document))
    return path


PARTS = ["part-0.tsv", "part-1.tsv", "part-2.tsv"]


@pytest.mark.parametrize("how", ["list", "pattern", "folder", "list of patterns"])
def test_several_tsvs_are_one_after_the_other(bench, how):
    several = str(bench.several)
    images = {
        "list": [f"{several}/{name}" for name in PARTS],
        "pattern": f"{several}/part-?.tsv",
        "folder": several,
        "list of patterns": [f"{several}/*-[01].tsv", f"{several}/part-2*"],
    }[how]
    store = bench.folder / f"store-{how}"
    path = with_images(job(bench, f"several {how}".replace(" ", "-"), bench.one), images)
    folder, record = run(bench, store, path)
    assert list(by_key(folder).items()) == list(bench.vectors.items())
    assert table(folder)[0].column("row").to_pylist() == list(range(1, ROWS + 1))
    entry = record["inputs"]["image_tsv"]
    sizes = [(bench.several / name).stat().st_size for name in PARTS]
    assert entry["size"] == sum(sizes) and len(entry["sha256"]) == 64
    # the same again is the same
    again = succeed(bench.binary, "--store", store, "run", path, "--json", env=bench.env)
    assert [step["status"] for step in again["steps"]] == ["unchanged"]


def test_a_folder_of_images(bench, tmp_path):
    """Keys are paths in their order; what is no image is left out; a folder that grows gets vectors for what is new."""
    tree, store = tmp_path / "tree", tmp_path / "store"
    shutil.copytree(bench.tree, tree)
    (tree / "notes.txt").write_text("not an image\n")
    (tree / ".hidden").mkdir()
    (tree / ".hidden" / "x.jpg").write_bytes(b"hidden")
    path = job(bench, "tree", tree)
    folder, _ = run(bench, store, path)
    assert list(by_key(folder).items()) == sorted(bench.vectors.items())
    deep = tree / "c0" / "deeper" / "new.jpg"
    deep.parent.mkdir()
    deep.write_bytes(image_rows(ROWS + 1)[-1][1])
    folder, record = run(bench, store, path)
    assert record["metrics"]["embed"]["reused_rows"] == ROWS
    assert by_key(folder).keys() == bench.vectors.keys() | {"c0/deeper/new.jpg"}


def test_versions_of_tsvs_and_of_images(bench, tmp_path):
    store = tmp_path / "store"
    for name, content in (("parts", bench.several), ("tree", bench.tree)):
        if name == "parts":
            content = tmp_path / "parts"
            content.mkdir()
            for part in PARTS:
                shutil.copy(bench.several / part, content)
        succeed(bench.binary, "--store", store, "data", "register", "--name", name, content, env=bench.env)
        folder, record = run(bench, store, with_images(job(bench, f"version-{name}", bench.one), f"data:{name}@1"))
        assert by_key(folder) == bench.vectors
        assert record["inputs"]["image_tsv"]["reference"] == f"data:{name}@1"
        shutil.rmtree(store / "data" / "vectors")
        shutil.rmtree(store / "registry" / "data" / "vectors")
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text("text\n")
    succeed(bench.binary, "--store", store, "data", "register", "--name", "texts", tmp_path / "texts", env=bench.env)
    path = with_images(job(bench, "version-texts", bench.one), "data:texts@1")
    done = invoke(bench.binary, "--store", store, "run", path, env=bench.env)
    refused(done, CONFIG, "input image_tsv", "data:texts@1 has no files with rows and no images")


def test_bad_rows_are_named_by_their_source(bench, tmp_path):
    several = tmp_path / "several"
    shutil.copytree(bench.several, several)
    os.symlink(several / "gone", several / "part-3.tsv")
    refused(invoke(bench.binary, "--store", tmp_path / "store", "run", job(bench, "bad", several), env=bench.env), NOT_FOUND, "part-3.tsv")
    (several / "part-3.tsv").unlink()
    rows = image_rows(ROWS)
    rows[20] = (rows[20][0], "not base64")
    rows[30] = rows[3]
    write_tsv(several / "part-2.tsv", rows[17:])
    store = tmp_path / "store"
    path = job(bench, "bad", several)
    done = invoke(bench.binary, "--store", store, "run", path, env=bench.env)
    refused(done, DATA, "part-0.tsv' and 2 more", "row 21: key", "(row 4 of '", "part-2.tsv')", "max_bad_share")
    path = job(bench, "bad", several, max_bad_share=0.5)
    folder, _ = run(bench, store, path)
    assert [entry["row"] for entry in ledger(folder)] == [21, 31]
    expected = {key: vector for n, (key, vector) in enumerate(bench.vectors.items(), 1) if n not in (21, 31)}
    assert by_key(folder) == expected

    tree = tmp_path / "tree"
    shutil.copytree(bench.tree, tree)
    keys = sorted(bench.vectors)
    (tree / keys[2]).write_bytes((tree / keys[2]).read_bytes()[:200])
    (tree / keys[5]).write_bytes(b"")
    folder, _ = run(bench, tmp_path / "store-tree", job(bench, "bad-tree", tree, max_bad_share=0.5))
    assert [(entry["row"], entry["key"]) for entry in ledger(folder)] == [(3, keys[2]), (6, keys[5])]
    assert by_key(folder) == {key: bench.vectors[key] for key in keys if key not in (keys[2], keys[5])}


def test_what_cannot_be_read_is_refused_early(bench, tmp_path):
    """Before a model is loaded, and with what to do."""
    store = tmp_path / "store"
    other = bench.adapter() | {"name": "adapter"}
    other["inputs"]["train_embeddings"] = ["a", "b"]
    leaving = tmp_path / "leaving"
    (leaving / "c").mkdir(parents=True)
    os.symlink(bench.one, leaving / "c" / "x.jpg")
    (tmp_path / "empty").mkdir()
    for name, images, code, *said in [
        ("none", f"{bench.several}/other-*.tsv", NOT_FOUND, "no file matches", "other-*.tsv"),
        ("pattern", f"{bench.several}/part-[0.tsv", CONFIG, "no pattern of file names", "part-[0.tsv"),
        ("missing", [str(bench.one), str(tmp_path / "gone.tsv")], NOT_FOUND, "gone.tsv"),
        ("empty", [], CONFIG, "inputs.image_tsv"),
        ("number", [str(bench.one), 3], CONFIG, "inputs.image_tsv[1]", "one path"),
        ("step", [str(bench.one), "${{ steps.a.outputs.b }}"], CONFIG, "inputs.image_tsv[1]", "stands alone"),
        ("leaving", str(leaving), DATA, "leaves the image folder"),
        ("nothing", str(tmp_path / "empty"), DATA, "has no rows"),
    ]:
        path = with_images(job(bench, f"refused-{name}", bench.one), images)
        refused(invoke(bench.binary, "--store", store, "run", path, env=bench.env), code, *said)
    done = invoke(bench.binary, "--store", store, "run", bench.write(tmp_path / "list.yaml", other), env=bench.env)
    refused(done, CONFIG, "inputs.train_embeddings", "must be one path")
    assert not list(store.glob("data/*"))


@pytest.mark.parametrize("how", ["pattern", "folder", "list", "tree"])
def test_sources_in_a_bucket(binary, bench, s3, tmp_path, how):
    """TSVs stay there, whole folders of them; images are fetched."""
    client, top = s3.client(), f"sources/{how}"
    for folder, prefix in ((bench.several, "several"), (bench.tree, "tree")):
        for name, content in contents(folder).items():
            client.put_object(Bucket=s3.bucket, Key=f"{top}/{prefix}/{name}", Body=content)
    uri = f"s3://{s3.bucket}/{top}"
    images = {
        "pattern": f"{uri}/several/part-*.tsv",
        "folder": f"{uri}/several",
        "list": [f"{uri}/several/{PARTS[0]}", str(bench.several / PARTS[2])],
        "tree": f"{uri}/tree",
    }[how]
    place = Place(binary, s3, f"sources-{how}", tmp_path)
    path = with_images(job(bench, f"bucket-{how}", bench.one), images)
    record = place.good("run", path, "--json")
    place.good("data", "pull", "vectors@1", tmp_path / "vectors")
    assert by_key(tmp_path / "vectors") == bench.vectors
    kept = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and b"/9j/" in p.read_bytes()[:60]]
    assert not kept, kept
    entry = record["inputs"]["image_tsv"]
    assert bool(entry.get("etag")) == (how != "tree") and bool(entry["sha256"]) == (how == "tree")
    assert [step["status"] for step in place.good("run", path, "--json")["steps"]] == ["unchanged"]
    # other content under one of the names is another input
    changed = f"{top}/tree/{next(iter(bench.vectors))}" if how == "tree" else f"{top}/several/{PARTS[0]}"
    body = client.get_object(Bucket=s3.bucket, Key=changed)["Body"].read()
    lines = body.splitlines(keepends=True)
    client.put_object(Bucket=s3.bucket, Key=changed, Body=body + b" " if how == "tree" else b"".join(lines[:-1]))
    if how != "tree":
        client.delete_object(Bucket=s3.bucket, Key=changed.replace(".tsv", ".lineidx"))
    assert [step["status"] for step in place.good("run", path, "--json")["steps"]] == ["succeeded"]
    if how == "folder":
        client.delete_object(Bucket=s3.bucket, Key=changed)
        refused(place.call("run", path, "--set", f"inputs.image_tsv={uri}/none/*.tsv"), NOT_FOUND, "no object matches")


def test_killed_between_two_sources(bench, tmp_path):
    """A run goes on with the shards that are done, across the border of two files."""
    store = tmp_path / "store"
    path = job(bench, "killed", bench.several, shard_rows=3)
    events = Events(bench.binary, "--store", store, "run", path, env=bench.env)
    while len(list(store.glob("checkpoints/*/shard-*.json"))) < 2 and events.process.poll() is None:
        time.sleep(0.01)
    events.kill()
    folder, _ = run(bench, store, path)
    assert list(by_key(folder).items()) == list(bench.vectors.items())
