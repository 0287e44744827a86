"""Images in ZIP archives and in tables: every one gets the vector that it gets from a TSV, here and from a bucket; damage is told from what is good."""

import random
import zipfile

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from bad_inputs import CONFIG, DATA, NOT_FOUND
from good_inputs import image_rows
from harness import invoke, refused, succeed
from stores import Place
from test_embed import job, ledger, run
from test_sources import ROWS, bench, by_key, with_images  # noqa: F401


def rows():
    return image_rows(ROWS)


def archive(path, images, compression=zipfile.ZIP_STORED, others=()):
    with zipfile.ZipFile(path, "w", compression) as out:
        for name, content in others:
            out.writestr(name, content)
        for name, content in images:
            out.writestr(name, content)
    return path


def table(rows, **columns):
    """Keys and images as a table whose other columns must not matter."""
    keys, images = zip(*rows, strict=True)
    found = {"label": pyarrow.array([1] * len(rows)), "key": pyarrow.array(keys), "image": pyarrow.array(images, pyarrow.binary())}
    found |= columns
    return pyarrow.table({name: column for name, column in found.items() if column is not None})


def structures(rows):
    """The column of a dataset of Hugging Face."""
    of = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    return pyarrow.array([{"bytes": image, "path": key} for key, image in rows], of)


def expected(bench, rows):  # noqa: F811
    return [(key, bench.vectors[key]) for key, _ in rows]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive(bench, tmp_path, compression):  # noqa: F811
    """Its images in its own order, by their names in it; nothing else of it."""
    shuffled = random.Random(3).sample(rows(), ROWS)
    others = [("notes.txt", b"text"), ("__MACOSX/x.jpg", b"no image"), ("c0/.hidden.jpg", b"no image"), ("c0/", b"")]
    path = archive(tmp_path / "images.zip", shuffled, compression, others)
    folder, record = run(bench, tmp_path / "store", job(bench, f"archive-{compression}", path))
    assert list(by_key(folder).items()) == expected(bench, shuffled)
    assert record["inputs"]["image_tsv"]["size"] == path.stat().st_size


def mapped(folder, lines):
    """Two archives and a map of their images; `lines` may change what the map says."""
    parts = {"a.zip": rows()[: ROWS // 2], "b.zip": rows()[ROWS // 2 :]}
    for name, images in parts.items():
        archive(folder / name, [*images, ("c0/not-named.jpg", b"not in the map")])
    named = [(f"{name}@/{key}", key) for name, images in parts.items() for key, _ in images]
    random.Random(5).shuffle(named)
    text = lines([f"{name}\t{n % 3}" for n, (name, _) in enumerate(named)])
    (folder / "train_map.txt").write_text("".join(f"{line}\n" for line in text))
    return folder / "train_map.txt", named


def test_a_map_of_archives(bench, tmp_path):  # noqa: F811
    path, named = mapped(tmp_path, lambda lines: lines)
    store = tmp_path / "store"
    folder, record = run(bench, store, job(bench, "map", path))
    assert list(by_key(folder).items()) == [(name, bench.vectors[key]) for name, key in named]
    assert record["inputs"]["image_tsv"]["size"] == sum(p.stat().st_size for p in tmp_path.glob("*.*"))
    # a version of both is the same
    version = tmp_path / "version"
    version.mkdir()
    for file in (path, tmp_path / "a.zip", tmp_path / "b.zip"):
        (version / file.name).write_bytes(file.read_bytes())
    succeed(bench.binary, "--store", store, "data", "register", "--name", "mapped", version, env=bench.env)
    again, _ = run(bench, tmp_path / "store-2", job(bench, "map-again", path))
    of_version, record = run(bench, store, with_images(job(bench, "map-version", path), "data:mapped@1"))
    assert by_key(of_version) == by_key(again) and record["inputs"]["image_tsv"]["reference"] == "data:mapped@1"
    # other content of an archive is another input
    archive(tmp_path / "b.zip", rows())
    assert run(bench, tmp_path / "store-2", job(bench, "map-again", path))[1]["steps"][0]["status"] == "succeeded"


def test_a_version_with_archives_and_a_text_that_is_no_map(bench, tmp_path):  # noqa: F811
    version, store = tmp_path / "version", tmp_path / "store"
    version.mkdir()
    archive(version / "images.zip", rows())
    (version / "labels.txt").write_text("red spot\ngreen spot\n")
    succeed(bench.binary, "--store", store, "data", "register", "--name", "zipped", version, env=bench.env)
    folder, _ = run(bench, store, with_images(job(bench, "zipped", bench.one), "data:zipped@1"))
    assert list(by_key(folder).items()) == expected(bench, rows())


def test_keys_that_no_text_could_have(bench, tmp_path):  # noqa: F811
    """A tab or a line end in a key would make two of it."""
    path = tmp_path / "images.parquet"
    keys = [key for key, _ in rows()]
    torn = [keys[0] + "\n", "a\tb", None, "", *keys[4:]]
    pyarrow.parquet.write_table(table(rows(), key=pyarrow.array(torn)), path)
    folder, _ = run(bench, tmp_path / "store", job(bench, "torn-keys", path, max_bad_share=0.5))
    assert [(entry["row"], entry["key"]) for entry in ledger(folder)] == [(n, None) for n in (1, 2, 3, 4)]
    assert list(by_key(folder).items()) == expected(bench, rows())[4:]


def test_two_tables_of_one_name(bench, tmp_path):  # noqa: F811
    """Without keys the name of a file is in the keys, and so in what an input is known by."""
    store = tmp_path / "store"
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table(rows(), key=None), path)
    step = job(bench, "named", path)
    run(bench, store, step)
    path.rename(tmp_path / "b.parquet")
    folder, _ = run(bench, store, with_images(step, str(tmp_path / "b.parquet")))
    assert list(by_key(folder))[:2] == ["b.parquet/1", "b.parquet/2"]


def test_maps_that_name_what_is_not_there(bench, tmp_path):  # noqa: F811
    path, named = mapped(tmp_path, lambda lines: ["a.zip@/c0/none.jpg", *lines])
    folder, _ = run(bench, tmp_path / "store", job(bench, "map-missing", path, max_bad_share=0.5))
    assert [(e["row"], e["key"], "has no 'c0/none.jpg'" in e["reason"]) for e in ledger(folder)] == [(1, "a.zip@/c0/none.jpg", True)]
    assert len(by_key(folder)) == ROWS
    for n, (line, code, *said) in enumerate([
        ("gone.zip@/x.jpg\t1", NOT_FOUND, "gone.zip", "train_map.txt"),
        ("../a.zip@/x.jpg\t1", DATA, "row 41", "beside the map"),
        ("no archive", DATA, "row 41", "ARCHIVE.zip@/IMAGE"),
    ]):
        folder = tmp_path / str(n)
        folder.mkdir()
        path, _ = mapped(folder, lambda lines, line=line: [*lines, line])
        refused(invoke(bench.binary, "--store", tmp_path / "other", "run", job(bench, f"map-{n}", path), env=bench.env), code, *said)


PARQUET = ["none", "snappy", "gzip", "zstd", "lz4"]


@pytest.mark.parametrize("compression", PARQUET)
def test_parquet(bench, tmp_path, compression):  # noqa: F811
    """Row groups and pages of any size, read in shards of another."""
    path = tmp_path / "images.parquet"
    options = {"row_group_size": 7, "data_page_size": 2000, "use_dictionary": compression == "snappy"}
    pyarrow.parquet.write_table(table(rows()), path, compression=compression, **options)
    folder, _ = run(bench, tmp_path / "store", job(bench, f"parquet-{compression}", path, shard_rows=6))
    assert list(by_key(folder).items()) == expected(bench, rows())


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_arrow_files(bench, tmp_path, compression):  # noqa: F811
    path = tmp_path / "images.arrow"
    pyarrow.feather.write_feather(table(rows()), path, compression=compression, chunksize=9)
    folder, _ = run(bench, tmp_path / "store", job(bench, f"arrow-{compression}", path, shard_rows=6))
    assert list(by_key(folder).items()) == expected(bench, rows())


@pytest.mark.parametrize("kind", ["structures", "large", "views", "numbers", "no keys", "named"])
def test_columns(bench, tmp_path, kind):  # noqa: F811
    """What holds images and keys is found out where only one column can, else the job says it."""
    keys, images = zip(*rows(), strict=True)
    parameters = {}
    if kind == "structures":
        content = table(rows(), key=None, image=structures(rows()))
    elif kind == "large":
        content = table(rows(), key=pyarrow.array(keys, pyarrow.large_string()).dictionary_encode(), image=pyarrow.array(images, pyarrow.large_binary()))
    elif kind == "views":
        content = table(rows(), key=pyarrow.array(keys, pyarrow.string_view()), image=pyarrow.array(images, pyarrow.binary_view()))
    elif kind == "numbers":
        content = table(rows(), key=None, image_id=pyarrow.array(range(100, 100 + ROWS)))
    elif kind == "no keys":
        content = table(rows(), key=None)
    else:
        content = table(rows(), mask=pyarrow.array([b"mask"] * ROWS, pyarrow.binary()), photo=pyarrow.array(images), image=None, study=pyarrow.array(keys))
        parameters = {"image_column": "photo", "key_column": "study"}
    names = {
        "numbers": [str(n) for n in range(100, 100 + ROWS)],
        "no keys": [f"images.parquet/{n}" for n in range(1, ROWS + 1)],
    }.get(kind, list(keys))
    path = tmp_path / "images.parquet"
    pyarrow.parquet.write_table(content, path, row_group_size=16)
    folder, _ = run(bench, tmp_path / "store", job(bench, f"columns-{kind.replace(' ', '-')}", path, **parameters))
    assert list(by_key(folder).items()) == [(name, bench.vectors[key]) for name, key in zip(names, keys, strict=True)]


def test_columns_that_nobody_can_tell(bench, tmp_path):  # noqa: F811
    two = table(rows(), image=None, one=pyarrow.array([b"1"] * ROWS), other=pyarrow.array([b"2"] * ROWS))
    none = table(rows(), image=pyarrow.array(["text"] * ROWS))
    for name, content, parameters, code, *said in [
        ("two", two, {}, DATA, "several columns of bytes", "parameters.image_column", "'one', 'other'"),
        ("none", none, {}, DATA, "no column of bytes", "'label', 'key', 'image'"),
        ("no-such", two, {"image_column": "photo"}, CONFIG, "parameters.image_column", "'photo'", "'other'"),
        ("no-key", table(rows()), {"key_column": "image"}, CONFIG, "parameters.key_column", "'image'", "texts or whole numbers"),
    ]:
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(content, path)
        done = invoke(bench.binary, "--store", tmp_path / "store", "run", job(bench, f"tell-{name}", path, **parameters), env=bench.env)
        refused(done, code, *said)


@pytest.mark.parametrize("kind", ["zip", "parquet", "arrow"])
def test_damage(bench, tmp_path, kind):  # noqa: F811
    """One bad image concerns its own row; a file that is cut off or torn is refused by name, and nothing is published."""
    some = rows()
    keys = [key for key, _ in some]
    some[4] = (some[4][0], some[4][1][:300])
    path = tmp_path / f"images.{kind}"
    if kind == "zip":
        archive(path, some)
        whole = bytearray(path.read_bytes())
        at = whole.index(some[9][1]) + 500
        whole[at] ^= 0xFF
        path.write_bytes(whole)
        bad = [5, 10]
    else:
        images = [image for _, image in some]
        images[9] = None
        content = table(some, image=pyarrow.array(images, pyarrow.binary()))
        (pyarrow.parquet.write_table if kind == "parquet" else pyarrow.feather.write_feather)(content, path, compression="zstd")
        bad = [5, 10]
    folder, _ = run(bench, tmp_path / "store", job(bench, f"damage-{kind}", path, max_bad_share=0.5))
    assert [(entry["row"], entry["key"]) for entry in ledger(folder)] == [(row, keys[row - 1]) for row in bad]
    assert by_key(folder) == {key: bench.vectors[key] for n, key in enumerate(keys, 1) if n not in bad}

    whole, rng = path.read_bytes(), random.Random(11)
    torn = {"half": whole[: len(whole) // 2], "empty": b"", "text": b"not a table\n" * 50}
    for n in range(40):
        content = bytearray(whole)
        for _ in range(3):
            content[rng.randrange(len(content) - len(content) // 10, len(content))] = rng.randrange(256)
        torn[f"end-{n}"] = bytes(content)
    store = tmp_path / "torn"
    outcomes = {}
    for name, content in torn.items():
        path.write_bytes(content)
        done = invoke(bench.binary, "--store", store, "run", job(bench, f"torn-{kind}", path, max_bad_images=1), "--rerun", env=bench.env)
        outcomes[name] = done.returncode
        if done.returncode:
            refused(done, DATA, f"images.{kind}")
    assert outcomes["half"] and outcomes["empty"] and outcomes["text"], outcomes


def test_a_stream_of_arrow_is_refused(bench, tmp_path):  # noqa: F811
    path = tmp_path / "images.arrow"
    content = table(rows())
    with pyarrow.ipc.new_stream(path, content.schema) as out:
        out.write_table(content)
    done = invoke(bench.binary, "--store", tmp_path / "store", "run", job(bench, "stream", path), env=bench.env)
    refused(done, DATA, "images.arrow", "stream of Arrow")


def test_a_bomb_is_one_bad_row(bench, tmp_path):  # noqa: F811
    """An entry that unpacks to gigabytes is not unpacked."""
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for key, image in rows():
            out.writestr(key, image)
        info = zipfile.ZipInfo("c0/bomb.jpg")
        info.compress_type = zipfile.ZIP_DEFLATED
        with out.open(info, "w", force_zip64=True) as bomb:
            for _ in range(1200):
                bomb.write(bytes(1 << 20))
    folder, _ = run(bench, tmp_path / "store", job(bench, "bomb", path, max_bad_share=0.5))
    [entry] = ledger(folder)
    assert entry["row"] == ROWS + 1 and entry["key"] == "c0/bomb.jpg" and "more than" in entry["reason"]


@pytest.mark.parametrize("kind", ["zip", "map", "parquet", "arrow", "folder"])
def test_in_a_bucket(binary, bench, s3, tmp_path, kind):  # noqa: F811
    """Read where they are; nothing of them is kept on this machine."""
    source = tmp_path / "source"
    source.mkdir()
    names = {key: key for key, _ in rows()}
    if kind in ("zip", "map"):
        path, named = mapped(source, lambda lines: lines)
        names = dict(named)
        if kind == "zip":
            for file in source.iterdir():
                file.unlink()
            path = archive(source / "images.zip", rows(), zipfile.ZIP_DEFLATED)
            names = {key: key for key, _ in rows()}
    elif kind == "arrow":
        path = source / "images.arrow"
        pyarrow.feather.write_feather(table(rows()), path, compression="zstd", chunksize=9)
    else:
        path = source / "images.parquet"
        pyarrow.parquet.write_table(table(rows()), path, row_group_size=7)
    if kind == "folder":
        path.unlink()
        for n in range(4):
            pyarrow.parquet.write_table(table(rows()[n * 10 : n * 10 + 10]), source / f"part-{n}.parquet")
    client, top = s3.client(), f"tables/{kind}"
    for file in source.iterdir():
        client.put_object(Bucket=s3.bucket, Key=f"{top}/{file.name}", Body=file.read_bytes())
    uri = f"s3://{s3.bucket}/{top}" + ("" if kind == "folder" else f"/{path.name}")
    place = Place(binary, s3, f"tables-{kind}", tmp_path)
    record = place.good("run", with_images(job(bench, f"table-bucket-{kind}", path), uri), "--json")
    place.good("data", "pull", "vectors@1", tmp_path / "vectors")
    assert by_key(tmp_path / "vectors") == {name: bench.vectors[key] for name, key in names.items()}
    entry = record["inputs"]["image_tsv"]
    assert entry["etag"] and not entry["sha256"] and entry["size"] == sum(file.stat().st_size for file in source.iterdir())
    sizes = [file.stat().st_size for file in source.iterdir() if file.stat().st_size > 10_000]
    kept = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size in sizes]
    assert not kept, kept
