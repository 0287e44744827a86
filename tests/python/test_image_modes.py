"""Images of every mode, against Pillow: the decoded pixels, and the standardised ones before they are stored as a JPEG.

The pixels come from examples/standardise.rs, a small program over the functions that Prepare and prediction call."""

import json
import subprocess

import numpy as np
import pytest
from handmade import runtime
from image_modes import MAKERS, SIZES, refused
from reference import resized

SIDE = 48
LEVELS = 1


@pytest.fixture(scope="module")
def standardise(binary, tmp_path_factory):
    """What becomes of encoded images: of each the line that was said of it and, where it was not refused, its pixels."""
    program = binary.parent / "examples" / "standardise"
    assert program.is_file(), f"{program} is not built; run cargo build --example standardise"

    def run(images, size=None):
        folder = tmp_path_factory.mktemp("standardise")
        cases = []
        for index, data in enumerate(images):
            (folder / f"{index}").write_bytes(data)
            cases.append({"image": str(folder / f"{index}"), "out": str(folder / f"{index}.rgb")} | ({"size": size} if size else {}))
        (folder / "cases.json").write_text(json.dumps(cases))
        done = subprocess.run([program, folder / "cases.json"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        answers = []
        for line, case in zip(done.stdout.splitlines(), cases, strict=True):
            said = json.loads(line)
            pixels = None if "error" in said else np.fromfile(case["out"], np.uint8).reshape(*said["size"][::-1], 3)
            answers.append((said, pixels))
        return answers

    return run


def difference(got, expected):
    assert got.shape == expected.shape
    return int(np.abs(got.astype(int) - expected.astype(int)).max())


@pytest.mark.parametrize("kind", list(MAKERS))
def test_pixels_are_pillows(standardise, kind):
    samples = [sample for seed, size in enumerate(SIZES) for sample in MAKERS[kind](size, seed)]
    decoded = standardise([sample.data for sample in samples])
    small = standardise([sample.data for sample in samples], SIDE)
    wrong = {}
    for sample, (said, pixels), (_, standard) in zip(samples, decoded, small, strict=True):
        expected = sample.rgb()
        if "error" in said:
            wrong.setdefault(sample.name, []).append((expected.size, said))
            continue
        off = difference(pixels, np.asarray(expected)), difference(standard, np.asarray(resized(expected, SIDE, SIDE)))
        if off[0] > sample.levels or off[1] > max(LEVELS, sample.levels):
            wrong.setdefault(sample.name, []).append((expected.size, off))
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())


@pytest.mark.parametrize("kind", list(MAKERS))
def test_packages_see_the_same_pixels(kind):
    """The Python code of packages reads by Pillow, which does not read all planes of TIFF, but takes no wrong pixels for right ones."""
    images = runtime().images
    for seed, size in enumerate(SIZES):
        for sample in MAKERS[kind](size, seed):
            try:
                got = images.decode(images.image_bytes(sample.data))
            except images.ImageError:
                assert "in planes" in sample.name, sample.name
                continue
            assert difference(np.asarray(got), np.asarray(sample.rgb())) == 0, (sample.name, size)


def test_other_modes_are_refused(standardise):
    """Before anything is decoded, with what is to be done."""
    names, files, expected = zip(*refused(), strict=True)
    for name, fragments, (said, _) in zip(names, expected, standardise(files), strict=True):
        assert "error" in said, name
        assert said["early"] and "\n" not in said["error"], (name, said)
        assert all(fragment in said["error"] for fragment in fragments), (name, said)


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "orientation"])
def test_files_that_are_cut_short_are_refused(standardise, kind):
    samples = list(MAKERS[kind]((130, 93), 1))
    # what a fax ends with are bytes that stand for white lines, and pages and frames beyond the first are not read
    samples = [s for s in samples if not s.name.endswith(("fax", "pages", "frames"))]
    whole = standardise([sample.data for sample in samples])
    cut = standardise([sample.data[: len(sample.data) * 2 // 3] for sample in samples])
    for sample, (said, _), (of_cut, _) in zip(samples, whole, cut, strict=True):
        assert "error" not in said, (sample.name, said)
        assert "error" in of_cut and any(word in of_cut["error"] for word in ("truncated", "damaged")), (sample.name, of_cut)
