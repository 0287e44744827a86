"""Augmented pixels against torchvision on Pillow images, and mixed batches against timm: each runs in the test.

The pixels come from examples/augment.rs, a small program over the same functions that training calls."""

import json
import math
import subprocess

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from timm.data import mixup as timm_mixup
from torchvision.transforms import autoaugment, functional
from torchvision.transforms.functional import InterpolationMode
import torch

# Shows 3 of the plan: half a level on average for operations, one level anywhere for crop and resize
MEAN_LEVELS, CROP_LEVELS = 0.5, 1
SIGNED = {
    "ShearX": [0.033, 0.5, 0.99],
    "ShearY": [0.066, 0.4, 0.99],
    "TranslateX": [1.07, 17.9, 32.0],
    "TranslateY": [3.2, 16.0, 31.9],
    "Rotate": [4.5, 45.0, 90.0, 121.5, 135.0],
    "Brightness": [0.033, 0.5, 0.99],
    "Color": [0.099, 0.5, 0.99],
    "Contrast": [0.033, 0.5, 0.99],
    "Sharpness": [0.066, 0.5, 0.99],
}
PLAIN = {
    "Identity": [0.0],
    "Posterize": [8, 7, 5, 2],
    "Solarize": [255.0, 200.5, 128.0, 51.0, 0.0],
    "AutoContrast": [0.0],
    "Equalize": [0.0],
}
OPERATIONS = {name: [s * m for m in values for s in (1, -1)] for name, values in SIGNED.items()} | PLAIN


def photo(width, height, seed):
    """Smooth colour with some noise: neighbouring pixels are alike, as in a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray(np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8))


def pictures():
    """Colour, grey-ish with a narrow range, a drawing of few flat colours; square, odd-sized, long, tiny."""
    rng = np.random.default_rng(3)
    narrow = photo(64, 64, 2).convert("L").point(lambda v: 90 + v // 6).convert("RGB")
    tinted = np.asarray(narrow).astype(int) + rng.integers(-3, 4, (64, 64, 3))
    flat = Image.fromarray((rng.integers(0, 3, (8, 9, 3)) * 120).astype(np.uint8)).resize((72, 64), Image.Resampling.NEAREST)
    noise = Image.fromarray(rng.integers(0, 256, (31, 47, 3), dtype=np.uint8))
    return {
        "colour": photo(96, 96, 1),
        "grey-ish": Image.fromarray(tinted.astype(np.uint8)),
        "grey": photo(40, 40, 4).convert("L").convert("RGB"),
        "odd": photo(83, 57, 5),
        "long": photo(150, 11, 6),
        "noise": noise,
        "flat": flat,
        "one colour": Image.new("RGB", (33, 20), (12, 200, 90)),
        "tiny": photo(2, 5, 7),
    }


@pytest.fixture(scope="module")
def augment(binary, tmp_path_factory):
    """Does a list of cases; what each wrote, as a path."""
    program = binary.parent / "examples" / "augment"
    assert program.is_file(), f"{program} is not built; run cargo build --example augment"

    def run(cases):
        folder = tmp_path_factory.mktemp("augment")
        for index, case in enumerate(cases):
            case["out"] = str(folder / f"{index}{case.pop('kind')}")
        (folder / "cases.json").write_text(json.dumps(cases))
        done = subprocess.run([program, folder / "cases.json"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return [case["out"] for case in cases]

    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: (path of a PNG, Pillow image)}"""
    folder = tmp_path_factory.mktemp("pictures")
    saved = {}
    for name, image in pictures().items():
        path = folder / f"{name}.png"
        image.save(path)
        saved[name] = (str(path), image)
    return saved


def difference(path, expected):
    """Mean and largest absolute difference of a written picture and a Pillow image, in levels."""
    got, expected = np.asarray(Image.open(path)).astype(int), np.asarray(expected).astype(int)
    assert got.shape == expected.shape
    return np.abs(got - expected).mean(), np.abs(got - expected).max()


def test_operations(augment, files):
    chosen = [(o, m, n) for o, values in OPERATIONS.items() for m in values for n in files]
    cases = [{"apply": o, "magnitude": m, "image": files[n][0], "kind": ".png"} for o, m, n in chosen]
    worst, changed = 0, {}
    for (operation, magnitude, name), path in zip(chosen, augment(cases), strict=True):
        image = files[name][1]
        expected = autoaugment._apply_op(image, operation, magnitude, InterpolationMode.NEAREST, None)
        mean, _ = difference(path, expected)
        assert mean < MEAN_LEVELS, f"{operation} {magnitude} on {name}: {mean} levels"
        worst = max(worst, mean)
        changed[operation] = changed.get(operation, 0) + (np.asarray(expected) != np.asarray(image)).mean()
    # better than asked for: every byte is the same, and should stay so
    assert worst == 0
    # an operation that changed nothing would prove nothing
    assert all(share > 0.1 for operation, share in changed.items() if operation != "Identity"), changed


def test_magnitudes(augment):
    [path] = augment([{"bins": 31, "kind": ".json"}])
    space = autoaugment.TrivialAugmentWide()._augmentation_space(31)
    got = json.load(open(path))
    assert [name for name, _, _ in got] == list(space)
    for name, values, signed in got:
        expected, expects_sign = space[name]
        assert signed == expects_sign, name
        assert values == (expected.tolist() if expected.ndim else [0.0] * 31), name


@pytest.mark.parametrize("degrees", [0.4, 10.0, -33.3, 90.0, 179.0, 180.0])
def test_rotation(augment, files, degrees):
    """RandomRotation with bilinear interpolation and black corners."""
    cases = [{"rotate": degrees, "image": path, "kind": ".png"} for path, _ in files.values()]
    for (name, (_, image)), path in zip(files.items(), augment(cases), strict=True):
        mean, most = difference(path, functional.rotate(image, degrees, InterpolationMode.BILINEAR))
        assert mean < MEAN_LEVELS and most <= 1, f"{name}: {mean} on average, {most} at most"


def test_crop_and_resize(augment, files):
    """RandomResizedCrop with bicubic interpolation, at given rectangles."""
    rectangles = {
        "colour": [(0, 0, 96, 96), (5, 9, 80, 61), (30, 2, 20, 90)],
        "odd": [(0, 0, 83, 57), (11, 7, 50, 50)],
        "noise": [(3, 0, 31, 31), (46, 30, 1, 1)],
        "flat": [(1, 1, 70, 62)],
    }
    chosen = [(name, r, size) for name, rs in rectangles.items() for r in rs for size in [(48, 48), (41, 60), (120, 97)]]
    cases = [{"crop": r, "size": size, "image": files[n][0], "kind": ".png"} for n, r, size in chosen]
    for (name, (x, y, w, h), (width, height)), path in zip(chosen, augment(cases), strict=True):
        expected = functional.resized_crop(files[name][1], y, x, h, w, [height, width], InterpolationMode.BICUBIC)
        assert difference(path, expected)[1] <= CROP_LEVELS, f"{name} {x, y, w, h} to {width} x {height}"


def test_what_training_sees(augment, tmp_path):
    """With everything on, a sample is the same for its key and another for every other; nothing leaves 0 to 1."""
    path = tmp_path / "photo.jpg"
    photo(90, 80, 8).save(path, quality=95)
    sample = {"scale": [0.5, 1], "ratio": [0.75, 1.33], "hflip": 0.5, "erase_probability": 0.25, "rotation": 20, "auto_augment": True}
    keys = [(s, e, r) for s in (1, 2) for e in (0, 1) for r in range(12)]
    cases = [
        {"sample": sample, "seed": s, "epoch": e, "row": r, "size": [40, 44], "image": str(path), "kind": ".f32"}
        for s, e, r in keys + keys[::-1]
    ]
    tensors = [np.fromfile(out, "<f4") for out in augment(cases)]
    assert all(t.shape == (3 * 40 * 44,) and t.min() >= 0 and t.max() <= 1 for t in tensors)
    one, again = tensors[: len(keys)], tensors[: len(keys) - 1 : -1]
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert len({t.tobytes() for t in one}) == len(keys)


SETTINGS = {"probability": 1.0, "mixup_alpha": 0.8, "cutmix_alpha": 0.0, "cutmix_minmax": None, "switch_probability": 0.5}


def timm_mixed(monkeypatch, batch, lam, centre):
    """timm's batch and lambda for a given lambda and, for cutmix, centre of the rectangle (row, column)."""
    numbers = iter(centre or ())
    monkeypatch.setattr(timm_mixup.np.random, "randint", lambda low, high, size=None: next(numbers))
    mixer = timm_mixup.Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, label_smoothing=0, num_classes=len(batch))
    monkeypatch.setattr(mixer, "_params_per_batch", lambda: (lam, centre is not None))
    mixed, target = mixer(torch.from_numpy(batch.copy()), torch.arange(len(batch)))
    return mixed.numpy(), target[0, 0].item()


@pytest.mark.parametrize("lam", [0.9, 0.5, 0.123456789, 1e-9])
@pytest.mark.parametrize("centre", [None, (10, 12), (0, 0), (19, 29), (7, 28)])
def test_mixing(augment, monkeypatch, tmp_path, lam, centre):
    batch = np.random.default_rng(1).normal(size=(6, 3, 20, 30)).astype(np.float32)
    batch.tofile(tmp_path / "batch.f32")
    expected, share = timm_mixed(monkeypatch, batch, lam, centre)
    case = {"mix": lam, "shape": batch.shape, "pixels": str(tmp_path / "batch.f32"), "kind": ".f32"}
    if centre:
        [around] = augment([{"around": centre, "lambda": lam, "size": [20, 30], "kind": ".json"}])
        box = json.load(open(around))
        case |= {"mix": box["lambda"], "cut": box["cut"]}
    [path] = augment([case])
    np.testing.assert_array_equal(np.fromfile(path, "<f4").reshape(batch.shape), expected)
    assert share == pytest.approx(case["mix"], abs=1e-7)


def test_draws_of_mixing(augment):
    """Lambdas are of the Beta distribution, rectangles where timm's are, kinds and batches in their shares."""
    cutmix = SETTINGS | {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}
    minmax = cutmix | {"cutmix_minmax": [0.2, 0.8]}
    both = SETTINGS | {"cutmix_alpha": 1.0, "switch_probability": 0.3, "probability": 0.6}
    settings = [SETTINGS, SETTINGS | {"mixup_alpha": 0.2}, SETTINGS | {"mixup_alpha": 3.0}, minmax, cutmix, both]
    cases = [{"draws": s, "count": 4000, "size": [200, 300], "kind": ".json"} for s in settings]
    draws = [json.load(open(path)) for path in augment(cases)]
    for chosen, drawn in zip(settings[:3], draws[:3]):
        lambdas = [d["lambda"] for d in drawn]
        alpha = chosen["mixup_alpha"]
        assert all(d["cut"] is None for d in drawn)
        # a uniform stream passes by far, a wrong sampler does not: 4,000 numbers tell alpha 0.8 from 0.9
        assert stats.kstest(lambdas, stats.beta(alpha, alpha).cdf).pvalue > 1e-3, alpha
    assert stats.kstest([d["lambda"] for d in draws[0]], stats.beta(1.0, 1.0).cdf).pvalue < 1e-3

    def sides(drawn):
        boxes = np.array([d["cut"] for d in drawn])
        return boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]

    heights, widths = sides(draws[3])
    assert (heights.min(), heights.max(), widths.min(), widths.max()) == (40, 159, 60, 239)
    np.random.seed(0)
    theirs = [timm_mixup.cutmix_bbox_and_lam((3, 200, 300), lam)[1] for lam in np.random.beta(1, 1, 4000)]
    assert stats.ks_2samp([d["lambda"] for d in draws[4]], theirs).pvalue > 1e-3
    kinds = [None if d is None else d["cut"] is not None for d in draws[5]]
    share = [kinds.count(kind) / len(kinds) for kind in (None, True, False)]
    for got, expected in zip(share, (0.4, 0.6 * 0.3, 0.6 * 0.7)):
        assert abs(got - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)
