"""The embedding that inference computes, with weights laid out for the processor, against the independent implementation.

The vectors come from examples/encode.rs, a small program over the same functions that the jobs call."""

import hashlib
import json
import subprocess

import numpy as np
import pytest
import torch
from handmade import FOUR_STAGES, config, png, tokenizer, write_package
from harness import write_tsv
from reference import Package

# grids that windows do not divide, windows larger than the grid, channels that no vector register divides
CASES = {
    "two stages": {},
    "four stages": {**FOUR_STAGES, "IMAGE_SIZE": [97, 65]},
    "a grid of whole windows": {"IMAGE_SIZE": [48, 48]},
    "windows larger than the grid": {"WINDOW_SIZE": 12, "IMAGE_SIZE": [29, 61]},
    "uneven channels": {"DIM_EMBED": [20, 36], "NUM_HEADS": [2, 3], "NUM_GROUPS": [5, 4], "IMAGE_SIZE": [45, 37]},
}
IMAGES = 5


@pytest.fixture(scope="module")
def encode(binary, tmp_path_factory):
    """Unit vectors [n, P] of encoded images by the package in a folder; and what the program says."""
    program = binary.parent / "examples" / "encode"
    assert program.is_file(), f"{program} is not built; run cargo build --example encode"

    def run(package, images, *arguments):
        folder = tmp_path_factory.mktemp("encode")
        write_tsv(folder / "images.tsv", [(str(n), image) for n, image in enumerate(images)])
        command = [program, package, folder / "images.tsv", folder / "out.f32", *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        return torch.from_numpy(np.fromfile(folder / "out.f32", np.float32)).reshape(len(images), said["dim"]), said

    return run


def write_manifest(folder):
    """The list of a package's files, which medtune asks for."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [{"path": str(p.relative_to(folder)), "size": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for p in paths]
    (folder / "medtune-manifest.json").write_text(json.dumps({"format_version": 1, "files": files}))


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(package folder, encoded images, vectors by the independent implementation)"""
    folder = tmp_path_factory.mktemp("package") / "package"
    model_config = config(**CASES[request.param])
    model_config["LANG_ENCODER"]["VOCAB_SIZE"] = tokenizer(complete=True).get_vocab_size()
    write_package(folder, "embeddings", model_config=model_config, complete=True)
    write_manifest(folder)
    images = [png(40 + 9 * n, 60 - 5 * n, seed=n) for n in range(IMAGES)]
    return folder, images, Package(folder).image_features(images)


def test_f32(case, encode):
    folder, images, expected = case
    for batch, threads in ((1, 1), (2, 2), (IMAGES, 2)):
        ours, said = encode(folder, images, "--batch", batch, "--threads", threads)
        assert said["precision"] == "f32"
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
        assert torch.nn.functional.cosine_similarity(ours, expected).min() > 1 - 1e-6
        assert torch.allclose(ours.norm(dim=1), torch.ones(IMAGES), atol=1e-5)
    # The comparison means something only if images differ by much more than the tolerance.
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_bf16(case, encode):
    """Also where the processor has no products in bf16, and the program says that it took f32."""
    folder, images, expected = case
    together, said = encode(folder, images, "--precision", "bf16", "--batch", IMAGES)
    alone, _ = encode(folder, images, "--precision", "bf16", "--batch", 1)
    assert said["precision"] in ("bf16", "f32")
    for ours in (together, alone):
        assert torch.nn.functional.cosine_similarity(ours, expected).min() > 0.999
        assert torch.allclose(ours.norm(dim=1), torch.ones(IMAGES), atol=1e-5)
