"""Models out of a bucket: equal to what went in, whatever the network does, and never twice over the network for nothing."""

import subprocess
import time

import pytest
from harness import refused
from servers import counts, faulty
from stores import Place, contents, random_file, register_model

DATA, STORAGE = 11, 20
# nothing is fetched by ranges below 16 MiB; the largest file is
SIZES = {"MLmodel": 900, "empty/none": 1, "weights/large.bin": 40 << 20, **{f"parts/{n:02}.bin": 2 << 20 for n in range(12)}}
TOTAL = sum(SIZES.values())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder that stands for a model package."""
    folder = tmp_path_factory.mktemp("source")
    for seed, (name, size) in enumerate(SIZES.items()):
        random_file(folder / name, size, seed)
    return folder


@pytest.fixture(scope="module")
def packed(binary, s3, source, tmp_path_factory):
    """The same in a bucket."""
    place = Place(binary, s3, "transfer", tmp_path_factory.mktemp("packed"))
    register_model(place, "big", source)
    return place


def behind(packed, proxied, folder, **extra):
    """The same store, through a proxy."""
    return Place(packed.binary, proxied, packed.prefix, folder, **extra)


def of_models(counted):
    """Bytes that came down by file of the model."""
    start = "transfer/models/big/1/"
    return {key.removeprefix(start): size for key, size in counted["down"].items() if key.startswith(start)}


def test_a_pulled_model_equals_its_source(packed, source, tmp_path):
    packed.good("model", "pull", "big@1", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == contents(source)


def test_what_was_uploaded_equals_its_source(packed, source):
    for path, content in contents(source).items():
        assert packed.read(f"data/big/1/{path}") == content, path


def test_cut_connections_and_one_flipped_byte(packed, s3, source, tmp_path):
    with faulty(s3, "--cut", 5_000_000, "--flip", "models/big/1/weights/large.bin@20000000:1") as proxied:
        place = behind(packed, proxied, tmp_path)
        done = place.call("model", "pull", "big@1", tmp_path / "pulled")
        counted = counts(proxied)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "pulled") == contents(source)
    assert counted["cut"] >= TOTAL // 5_000_000 and counted["flip"] == 1
    assert "large.bin" in done.stderr, "a wrong content that was fetched again is worth a line"
    # cuts cost little: what had arrived is not fetched again
    down = of_models(counted)
    assert sum(size for name, size in down.items() if name != "weights/large.bin") < 1.5 * (TOTAL - SIZES["weights/large.bin"])


def test_uploads_that_are_cut_or_flipped(binary, s3, source, tmp_path):
    options = ["--cut", 30_000_000, "--flip-up", "weights/large.bin@1000:1", "--flip-up", "parts/03.bin@77:1"]
    with faulty(s3, *options) as proxied:
        place = Place(binary, proxied, "flipped-up", tmp_path)
        manifest = place.good("data", "register", "--name", "big", source, "--json")
        counted = counts(proxied)
    assert counted["flip_up"] == 2 and counted["cut"] > 1
    Place(binary, s3, "flipped-up", tmp_path).check_files(manifest)


@pytest.mark.parametrize("name", ["weights/large.bin", "parts/05.bin"])
def test_always_flipped(packed, s3, tmp_path, name):
    with faulty(s3, "--flip", f"models/big/1/{name}@1500000:always") as proxied:
        done = behind(packed, proxied, tmp_path).call("model", "pull", "big@1", tmp_path / "pulled")
        assert counts(proxied)["flip"] > 0
    assert done.returncode in (DATA, STORAGE), done.stderr
    refused(done, done.returncode, name, "sha256")
    assert not (tmp_path / "pulled").exists()


def test_a_pull_that_is_killed_goes_on(packed, s3, source, tmp_path):
    """Twice, at a third and at two thirds of the way; then it comes to its end, having fetched nearly nothing twice."""
    target = tmp_path / "here" / "pulled"
    target.parent.mkdir()
    down = {name: 0 for name in SIZES}
    for share in (1 / 3, 2 / 3, None):
        with faulty(s3, "--latency", 0.05) as proxied:
            place = behind(packed, proxied, tmp_path)
            command = [place.binary, "model", "pull", "big@1", target]
            errors = open(tmp_path / "errors", "w+")
            process = subprocess.Popen(list(map(str, command)), env=place.env, stdout=subprocess.DEVNULL, stderr=errors)
            while share and process.poll() is None:
                if sum(down.values()) + sum(of_models(counts(proxied)).values()) > share * TOTAL:
                    process.kill()
                time.sleep(0.01)
            status = process.wait(120)
            errors.seek(0)
            assert status == (-9 if share else 0), errors.read()
            errors.close()
            for name, size in of_models(counts(proxied)).items():
                down[name] += size
        assert target.exists() == (share is None)
    assert contents(target) == contents(source)
    assert [path.name for path in target.parent.iterdir()] == ["pulled"], "something was left behind"
    # four ranges of 16 MiB may be on their way when it is killed, or a few small files
    again = {name: down[name] - size for name, size in SIZES.items()}
    print(f"{sum(down.values())} bytes for {TOTAL}; again: { {k: v for k, v in again.items() if v} }")
    assert sum(1 for name in SIZES if name.startswith("parts/") and again[name] > 0) <= 4, again
    assert sum(down.values()) <= TOTAL + 2 * (64 << 20)


def test_a_pull_onto_what_is_there(packed, source, tmp_path):
    """The same again moves no file; other content is left alone."""
    packed.good("model", "pull", "big@1", tmp_path / "pulled")
    with faulty(packed.server) as proxied:
        behind(packed, proxied, tmp_path).good("model", "pull", "big@1", tmp_path / "pulled")
        assert not of_models(counts(proxied))
    (tmp_path / "pulled" / "MLmodel").write_bytes(b"mine")
    refused(packed.call("model", "pull", "big@1", tmp_path / "pulled"), 14, tmp_path / "pulled")
    assert (tmp_path / "pulled" / "MLmodel").read_bytes() == b"mine"
