"""Bulk embedding: resumed to the byte, only what is new, every other row in its place, and read where the images are."""

import json
import random
import signal
import time

import numpy as np
import pyarrow.parquet
import pytest
from bad_inputs import DATA
from damage import lines
from good_inputs import Bench, image_rows, text_rows
from harness import Events, invoke, jpeg, records, refused, sha256, succeed, write_tsv
from stores import Place

PREEMPTED = 23
ROWS, SHARD = 400, 10
KILLS = 20


@pytest.fixture(scope="module")
def bench(binary, tmp_path_factory):
    return Bench(binary, tmp_path_factory.mktemp("embed"))


@pytest.fixture(scope="module")
def many(bench):
    return write_tsv(bench.folder / "many.tsv", image_rows(ROWS))


def job(bench, name, images, processes=1, threads=1, **parameters):
    document = {
        **bench.embed({"batch_size": 4, "shard_rows": SHARD} | parameters, image_tsv=images, mlflow_model_path=bench.folder / "package"),
        "name": "embed",
        "compute": {"device": "cpu", "threads": threads, "processes": processes},
        "outputs": {"embeddings": "vectors"},
    }
    return bench.write(bench.folder / f"{name}.yaml", document)


def run(bench, store, path, *options):
    """Runs the job; its folder, and the record."""
    record = succeed(bench.binary, "--store", store, "run", path, "--json", *options, env=bench.env)
    reference = record["outputs"]["embeddings"]["reference"]
    return store / "data" / "vectors" / reference.rsplit("@", 1)[1], record


def files(folder):
    return {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}


def table(folder):
    manifest = json.loads((folder / "embeddings.json").read_text())
    found = pyarrow.parquet.read_table(folder / "parquet")
    assert manifest["rows"] == found.num_rows == sum(part["rows"] for part in manifest["parts"])
    assert found.schema.field("features").type.list_size == manifest["dim"]
    return found, manifest


def ledger(folder):
    path = folder / "bad_images.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def vectors(found):
    return np.array(found.column("features").to_pylist(), dtype=np.float32)


@pytest.fixture(scope="module")
def calm(bench, many):
    """A run that nobody disturbed: its files, and how long it took."""
    store = bench.folder / "calm"
    started = time.monotonic()
    folder, record = run(bench, store, job(bench, "calm", many, formats=["npy", "pickle"]))
    assert not list(store.glob("checkpoints/*")), "shards that nobody needs any more are still there"
    return files(folder), folder, record, time.monotonic() - started


def test_the_parts_are_the_rows_in_order(calm, many):
    _, folder, record, _ = calm
    found, manifest = table(folder)
    assert found.column("Name").to_pylist() == [line.split("\t")[0] for line in many.read_text().splitlines()]
    assert found.column("row").to_pylist() == list(range(1, ROWS + 1))
    assert len(manifest["parts"]) == ROWS // SHARD and manifest["bad_rows"] == 0 and not ledger(folder)
    np.testing.assert_array_equal(np.load(folder / "embeddings.npy", allow_pickle=False), vectors(found))
    footer = pyarrow.parquet.read_schema(folder / manifest["parts"][-1]["file"]).metadata[b"medtune.embeddings"]
    space = json.loads(footer)
    assert {k: manifest[k] for k in space} == space and {"model_digest", "pixels", "precision", "code_version"} <= space.keys()
    metrics = record["metrics"]["embed"]
    assert metrics["rows"] == ROWS and metrics["images_per_s"] > 0 and metrics["bytes_per_s"] > 0
    assert 0 <= metrics["data_wait_share"] <= 1 and 0 < metrics["compute_share"] <= 1


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_moments(bench, many, calm, processes):
    """The output is that of an undisturbed run, to the byte; shards that were done are not done again."""
    expected, _, _, took = calm
    seed = random.randrange(1 << 32)
    print(f"seed {seed}, {took:.1f} s")
    rng = random.Random(seed)
    killed = turn = 0
    # a run that is killed often enough ends all the same; then another one begins
    while killed < KILLS // processes:
        turn += 1
        store = bench.folder / f"storm-{processes}-{turn}"
        path = job(bench, f"storm-{processes}-{turn}", many, processes, formats=["npy", "pickle"])
        kept = [0]
        while killed < KILLS // processes and not list(store.glob("registry/data/vectors/*[0-9].json")):
            events = Events(bench.binary, "--store", store, "run", path, env=bench.env)
            time.sleep(rng.uniform(0.05, took / 3))
            killed += events.kill() == -9
            kept.append(len(list(store.glob("checkpoints/*/shard-*.json"))))
        # once the output is there, shards go away
        before = kept[:-1] if list(store.glob("registry/data/vectors/*[0-9].json")) else kept
        assert before == sorted(before), kept
        folder, _ = run(bench, store, path)
        assert files(folder) == expected
        assert not list(store.glob("checkpoints/*"))
        assert [p.name for p in (store / "data" / "vectors").iterdir()] == [folder.name]


def test_stopped_and_a_damaged_shard(bench, many, calm):
    """SIGTERM ends it between two batches; what was done is taken up, unless it is not what was written."""
    store = bench.folder / "stopped"
    path = job(bench, "stopped", many, formats=["npy", "pickle"])
    events = Events(bench.binary, "--store", store, "run", path, env=bench.env)
    while len(list(store.glob("checkpoints/*/shard-*.json"))) < 3 and events.process.poll() is None:
        time.sleep(0.01)
    events.process.send_signal(signal.SIGTERM)
    assert events.finish() == PREEMPTED, events.seen[-3:]
    done = sorted(store.glob("checkpoints/*/shard-*.parquet"))
    assert 3 <= len(done) < ROWS // SHARD
    content = bytearray(done[1].read_bytes())
    content[len(content) // 2] ^= 1
    done[1].write_bytes(content)
    marker = done[2].with_suffix(".json")
    marker.write_text(marker.read_text()[:-5])
    events = Events(bench.binary, "--store", store, "run", path, env=bench.env)
    assert events.finish() == 0, events.seen[-3:]
    markers = len(done) - 2
    assert any(e.get("message") == "shards of an earlier run are taken up" and e["done"] == markers for e in events.seen)
    assert files(store / "data" / "vectors" / "1") == calm[0]


def test_only_what_is_new(bench, tmp_path):
    """Vectors of known images are taken over, whatever their key and place; other pixels or a rerun compute all."""
    store, rows = bench.folder / "grown", image_rows(70)
    run(bench, store, job(bench, "grown-1", write_tsv(tmp_path / "first.tsv", rows[:40])))
    again = [(f"moved/{key}", value) for key, value in reversed(rows)]
    path = job(bench, "grown-2", write_tsv(tmp_path / "second.tsv", again))
    folder, record = run(bench, store, path)
    found, manifest = table(folder)
    assert record["metrics"]["embed"]["reused_rows"] == 40
    assert manifest["reused"] == {"from": "data:vectors@1", "rows": 40}
    fresh, record = run(bench, store, path, "--rerun")
    assert record["metrics"]["embed"]["reused_rows"] == 0 and "reused" not in json.loads((fresh / "embeddings.json").read_text())
    assert found.column("Name").equals(table(fresh)[0].column("Name"))
    np.testing.assert_allclose(vectors(found), vectors(table(fresh)[0]), atol=1e-6)
    first, _ = table(store / "data" / "vectors" / "1")
    np.testing.assert_array_equal(vectors(found)[-40:][::-1], vectors(first))
    _, record = run(bench, store, path, "--set", "parameters.image_standardization_image_size=32")
    assert record["metrics"]["embed"]["reused_rows"] == 0
    _, record = run(bench, store, path, "--set", "parameters.reuse=false")
    assert record["metrics"]["embed"]["reused_rows"] == 0


def test_fifty_kinds_of_damage(bench, tmp_path):
    """Every other row is embedded, in its place; the ledger lists exactly the damaged ones, each with a reason."""
    rows, count = image_rows(100), 100_000
    good = [(key, value) for key, value in rows]
    bad = lines("good/0")
    assert len(bad) >= 50
    places = sorted(random.Random(3).sample(range(1000, count), len(bad)))
    at = dict(zip(places, bad.items()))
    encoded = [line.split("\t")[1] for line in write_tsv(tmp_path / "good.tsv", good).read_text().splitlines()]
    path = tmp_path / "damaged.tsv"
    with open(path, "wb") as file:
        for row in range(count):
            line = at[row][1] if row in at else f"good/{row}\t{encoded[row % len(encoded)]}".encode()
            file.write(line + b"\n")
    store = bench.folder / "damaged"
    # small, since much of the time of so many images is the standardisation
    quick = {"batch_size": 64, "shard_rows": 4096, "image_standardization_image_size": 8}
    folder, record = run(bench, store, job(bench, "damaged", path, threads=0, **quick))
    found, manifest = table(folder)
    entries = ledger(folder)
    assert [entry["row"] - 1 for entry in entries] == places, set(places) ^ {entry["row"] - 1 for entry in entries}
    for entry in entries:
        name, line = at[entry["row"] - 1]
        key = line.split(b"\t")[0] if b"\t" in line else b""
        readable = name != "key-no-utf8" and key
        assert entry["key"] == (key.decode() if readable else None), (name, entry)
        assert entry["reason"] and len(entry["reason"]) < 300, (name, entry)
    assert "row 1 already" in next(e["reason"] for e in entries if e["key"] == "good/0")
    kept = [row for row in range(count) if row not in at]
    assert found.column("row").to_pylist() == [row + 1 for row in kept]
    assert found.column("Name").to_pylist() == [f"good/{row}" for row in kept]
    assert manifest["image_tsv_rows"] == count and manifest["bad_rows"] == record["metrics"]["embed"]["bad_rows"] == len(bad)
    # each vector is that of its own image
    one, _ = run(bench, bench.folder / "undamaged", job(bench, "undamaged", tmp_path / "good.tsv", **quick))
    expected = vectors(table(one)[0])[np.array(kept) % len(encoded)]
    np.testing.assert_allclose(vectors(found), expected, atol=1e-6)


@pytest.mark.parametrize("limit", [{"max_bad_images": 2}, {"max_bad_share": 0.04}, {}])
def test_too_many_bad_images(bench, tmp_path, limit):
    rows = [(key, value[:50] if n in (5, 6, 17) else value) for n, (key, value) in enumerate(image_rows(60))]
    path = job(bench, "too-many", write_tsv(tmp_path / "bad.tsv", rows), **limit)
    store = tmp_path / "store"
    done = invoke(bench.binary, "--store", store, "run", path, env=bench.env)
    key = next(iter(limit), "max_bad_share")
    line = refused(done, DATA, tmp_path / "bad.tsv", "row 6", rows[5][0], f"parameters.{key}", "bad_images.jsonl")
    assert not (store / "data").exists()
    [record] = records(store).values()
    lines_ = (store / "runs" / record["run_id"] / "embed" / "bad_images.jsonl").read_text().splitlines()
    assert [json.loads(text)["row"] for text in lines_][:2] == [6, 7] and f"{len(lines_)} of 60" in line
    # with a higher limit it goes on with what was done
    done = len(list(store.glob("checkpoints/*/shard-*.json")))
    higher = ("--set", "parameters.max_bad_share=0.5", "--set", "parameters.max_bad_images=null")
    events = Events(bench.binary, "--store", store, "run", path, *higher, env=bench.env)
    assert events.finish() == 0, events.seen[-3:]
    assert done and any(e.get("message") == "shards of an earlier run are taken up" and e["done"] == done for e in events.seen)
    folder = store / "data" / "vectors" / "1"
    assert table(folder)[0].num_rows == 57 and [entry["row"] for entry in ledger(folder)] == [6, 7, 18]
    assert not list(store.glob("checkpoints/*"))


def test_bad_rows_are_left_out_of_what_follows(bench, tmp_path):
    """An adapter is trained on the rows that have a vector, each with its own class; other texts are refused."""
    rows = [(key, value[:50] if n in (0, 7) else value) for n, (key, value) in enumerate(image_rows())]
    store = tmp_path / "store"
    run(bench, store, job(bench, "some", write_tsv(tmp_path / "some.tsv", rows), max_bad_share=0.5))
    adapter = bench.adapter(train_embeddings="data:vectors@1", validation_embeddings="data:vectors@1")
    path = bench.write(tmp_path / "adapter.yaml", {**adapter, "name": "adapter"})
    succeed(bench.binary, "--store", store, "run", path, env=bench.env)
    texts = text_rows()
    swapped = write_tsv(tmp_path / "swapped.tsv", [*texts[:7], texts[8], texts[7], *texts[9:]])
    done = invoke(bench.binary, "--store", store, "run", path, "--set", f"inputs.train_text_tsv={swapped}", env=bench.env)
    refused(done, DATA, swapped, "row 8", texts[8][0], texts[7][0])


@pytest.mark.parametrize("indexed", [True, False])
def test_images_in_a_bucket_stay_there(binary, bench, s3, many, tmp_path, calm, indexed):
    """The same vectors; nothing of the TSV is kept on this machine; new content under the same name is another input."""
    client, key = s3.client(), f"embed/{indexed}/many.tsv"
    client.put_object(Bucket=s3.bucket, Key=key, Body=many.read_bytes())
    if indexed:
        starts = np.cumsum([0, *[len(line) + 1 for line in many.read_bytes().split(b"\n")[:-1]]])[:-1]
        client.put_object(Bucket=s3.bucket, Key=key.replace(".tsv", ".lineidx"), Body="".join(f"{at}\n" for at in starts).encode())
    place = Place(binary, s3, f"embed-{indexed}", tmp_path)
    path = job(bench, f"bucket-{indexed}", f"s3://{s3.bucket}/{key}")
    record = place.good("run", path, "--json")
    [manifest] = place.manifests().values()
    content = {f["path"]: f["sha256"] for f in manifest["files"] if f["path"].startswith("parquet/")}
    assert content == {name: digest for name, digest in calm[0].items() if name.startswith("parquet/")}
    entry = record["inputs"]["image_tsv"]
    assert entry["uri"] == f"s3://{s3.bucket}/{key}" and entry["etag"] and not entry["sha256"]
    large = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size >= many.stat().st_size]
    assert not large, large
    assert [step["status"] for step in place.good("run", path, "--json")["steps"]] == ["unchanged"]
    body = many.read_bytes() + many.read_bytes().split(b"\n")[0].replace(b"c0/", b"new/") + b"\n"
    client.put_object(Bucket=s3.bucket, Key=key, Body=body)
    client.delete_object(Bucket=s3.bucket, Key=key.replace(".tsv", ".lineidx"))
    record = place.good("run", path, "--json")
    metrics = record["metrics"]["embed"]
    assert (metrics["rows"], metrics["reused_rows"]) == (ROWS + 1, ROWS + 1)


def test_a_version_in_a_bucket_stays_there(binary, bench, s3, many, tmp_path, calm):
    place = Place(binary, s3, "embed-version", tmp_path)
    place.good("data", "register", "--name", "many", many)
    path = job(bench, "bucket-version", "data:many@1")
    record = place.good("run", path, "--json")
    [manifest] = [m for (name, _), m in place.manifests().items() if name == "vectors"]
    assert {f["path"]: f["sha256"] for f in manifest["files"] if f["path"] == "parquet/part-00007.parquet"}.items() <= calm[0].items()
    assert record["inputs"]["image_tsv"]["reference"] == "data:many@1"
    large = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size >= many.stat().st_size]
    assert not large, large


def test_one_row_without_a_line_end(bench, tmp_path):
    path = write_tsv(tmp_path / "one.tsv", [("only", jpeg(3))])
    path.write_text(path.read_text().rstrip("\n"))
    folder, _ = run(bench, tmp_path / "store", job(bench, "one", path))
    assert table(folder)[0].column("Name").to_pylist() == ["only"]
