"""The program that is built without libtorch: small, quick to start, and as good with stores as the other."""

import subprocess
import time

from harness import environment
from stores import Place, contents, random_file, register_model


def test_needs_no_libtorch(core_binary):
    needed = subprocess.run(["ldd", str(core_binary)], capture_output=True, text=True, check=True).stdout
    assert "torch" not in needed and "libc10" not in needed and "not found" not in needed, needed


def test_starts_quickly(core_binary):
    times = []
    for _ in range(10):
        begun = time.perf_counter()
        done = subprocess.run([str(core_binary), "--version"], capture_output=True, text=True, env=environment())
        times.append(time.perf_counter() - begun)
        assert done.returncode == 0 and done.stdout.startswith("medtune ")
    print(f"best of 10: {min(times) * 1000:.1f} ms")
    assert min(times) < 0.050


def test_works_with_stores(core_binary, s3, tmp_path):
    place = Place(core_binary, s3, "core", tmp_path)
    random_file(tmp_path / "source" / "a.bin", 100_000, 1)
    register_model(place, "some", tmp_path / "source")
    place.good("model", "pull", "some@1", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == contents(tmp_path / "source")
    place.good("data", "verify", "some@1")
    place.good("data", "pull", "some", tmp_path / "data")
    assert contents(tmp_path / "data") == contents(tmp_path / "source")
    place.good("gc", "--older-than", "0s")
    assert [entry["name"] for entry in place.good("model", "list", "--json")] == ["some"]
