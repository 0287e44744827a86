"""How Prepare divides images: scikit-learn's rows, whole groups, and no image in two splits."""

import json
import subprocess

import numpy as np
import pytest
import yaml
from harness import environment, invoke, jpeg, refused, succeed
from sklearn.model_selection import train_test_split

CONFIG, DATA = 10, 11
SPLITS = ("train", "validation", "test")
SHARES = [(0.6, 0.2, 0.2), (0.7, 0.15, 0.15), (0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.7, 0.1, 0.2), (0.34, 0.33, 0.33)]


def by_scikit_learn(classes, shares, seed):
    """The rows of the three parts as a notebook makes them; None where scikit-learn refuses."""
    _, validation, test = shares
    rows = np.arange(len(classes))
    try:
        train, rest = train_test_split(rows, test_size=round(validation + test, 10), stratify=classes, random_state=seed)
        parts = train_test_split(rest, test_size=round(test / (validation + test), 10), stratify=classes[rest], random_state=seed)
    except ValueError:
        return None
    return [part.tolist() for part in (train, *parts)]


def test_a_thousand_splits_are_scikit_learns(binary, tmp_path):
    """Row for row and in its order; what it refuses is refused."""
    program = binary.parent / "examples" / "split"
    assert program.is_file(), f"{program} is not built; run cargo build --example split"
    rng = np.random.default_rng(8)
    cases = []
    for number in range(1000):
        count = int(rng.integers(1, 26))
        # some classes are rare, some equally frequent, so that ties are drawn too
        weights = rng.choice([1, 1, 2, 5, 20], count)
        classes = rng.choice(count, int(rng.integers(8, 900)), p=weights / weights.sum())
        seed = int(rng.choice([0, 1, 42, number, 2**32 - 1]))
        cases.append({"classes": classes.tolist(), "shares": SHARES[number % len(SHARES)], "seed": seed})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    subprocess.run([program, tmp_path / "cases.json", tmp_path / "parts.json"], check=True)
    found = json.loads((tmp_path / "parts.json").read_text())
    expected = [by_scikit_learn(np.array(case["classes"]), case["shares"], case["seed"]) for case in cases]
    different = [n for n in range(len(cases)) if found[n] != expected[n]]
    assert not different, (len(different), cases[different[0]], found[different[0]], expected[different[0]])
    refusals = sum(parts is None for parts in expected)
    assert 100 < refusals < 900, refusals


class Images:
    """Class folders, and a store."""

    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder
        self.env = environment(folder / "tmp")

    def write(self, names):
        """Images by the names of their files, `class/file`; the same number is the same image."""
        for name, number in names.items():
            path = self.folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number))
        folders = sorted({name.split("/")[0] for name in names})
        constants = {"folder_to_label": {folder: f"a {folder}" for folder in folders}}
        (self.folder / "constants.yaml").write_text(yaml.safe_dump(constants))

    def prepare(self, **split):
        inputs = {"image_folder": "images", "text_constants": "constants.yaml"}
        job = {"version": 1, "kind": "Prepare", "name": "prepare", "inputs": inputs, "parameters": {"image_size": 16, "split": split}}
        (self.folder / "job.yaml").write_text(yaml.safe_dump(job))
        return invoke(self.binary, "--store", self.folder / "store", "run", self.folder / "job.yaml", env=self.env)

    def keys(self):
        """The keys of the newest splits, in order."""
        found = {}
        for split in SPLITS:
            version = succeed(self.binary, "--store", self.folder / "store", "data", "show", f"prepare-{split}_text_tsv@latest", "--json", env=self.env)
            folder = version["uri"].removeprefix("file://")
            [path] = [p for p in self.folder.glob("store/**/*.tsv") if str(p).startswith(folder)]
            found[split] = [line.split("\t")[0] for line in path.read_text().splitlines()]
        return found


@pytest.fixture
def images(binary, tmp_path):
    return Images(binary, tmp_path)


def test_the_rows_of_a_notebook(images):
    """Labels count by their text there, whatever the order in which folders come."""
    names = {f"{folder}/{n:03}.jpg": 100 * which + n for which, (folder, count) in enumerate((("b", 31), ("c", 12), ("a", 23))) for n in range(count)}
    images.write(names)
    constants = {"folder_to_label": {"a": "zebra", "b": "ant", "c": "mole"}}
    (images.folder / "constants.yaml").write_text(yaml.safe_dump(constants))
    done = images.prepare(method="scikit_learn", seed=7)
    assert done.returncode == 0, done.stderr
    keys = sorted(names)
    texts = np.array([constants["folder_to_label"][key.split("/")[0]] for key in keys])
    expected = by_scikit_learn(texts, (0.6, 0.2, 0.2), 7)
    assert images.keys() == {split: [keys[row] for row in part] for split, part in zip(SPLITS, expected, strict=True)}


def test_patients_are_not_divided(images):
    rng = np.random.default_rng(4)
    patients = {f"P{n:02}": int(rng.integers(1, 9)) for n in range(40)}
    names = {f"{folder}/{patient}_{n}.jpg": 1 for patient, count in patients.items() for n in range(count) for folder in ("left", "right")}
    images.write({name: number for number, name in enumerate(names)})
    done = images.prepare(group_pattern="/(P[0-9]+)_")
    assert done.returncode == 0, done.stderr
    keys = images.keys()
    assert sorted(sum(keys.values(), [])) == sorted(names)
    seen = {split: {key.split("/")[1].split("_")[0] for key in part} for split, part in keys.items()}
    assert not (seen["train"] & seen["validation"] or seen["train"] & seen["test"] or seen["validation"] & seen["test"])
    for split, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        for folder in ("left", "right"):
            count = sum(key.startswith(folder) for key in keys[split])
            assert count / (len(names) / 2) == pytest.approx(share, abs=0.05)
    refused(images.prepare(group_pattern="/(Q[0-9]+)_"), DATA, "left/P00_0.jpg", "group_pattern")
    refused(images.prepare(group_pattern="P[0-9]+"), CONFIG, "parentheses")
    refused(images.prepare(group_pattern="(P)", method="scikit_learn"), CONFIG, "group_pattern")


def test_a_class_of_two_patients(images):
    images.write({f"{folder}/P{patient}_{n}.jpg": number for number, (folder, patient, n) in enumerate([("many", p, n) for p in range(9) for n in range(3)] + [("rare", p, n) for p in range(2) for n in range(3)])})
    refused(images.prepare(group_pattern="/(P[0-9]+)_"), DATA, "a rare", "2 groups")


def test_the_same_image_in_two_splits(images):
    """Refused before anything is made; or the second one is left out; or both stay."""
    names = {f"{folder}/{n:02}.jpg": 100 * which + n for which, folder in enumerate("ab") for n in range(20)}
    # half of a class is there twice
    names |= {f"a/{n + 20:02}.jpg": n for n in range(10)}
    # and one under another label
    names["b/99.jpg"] = 3
    images.write(names)
    said = refused(images.prepare(), DATA, "images are in two splits", "repeated")
    assert "a/" in said and not (images.folder / "store" / "data").exists()
    done = images.prepare(repeated="drop")
    assert done.returncode == 0, done.stderr
    kept = sorted(sum(images.keys().values(), []))
    assert kept == [f"{folder}/{n:02}.jpg" for folder in "ab" for n in range(20)]
    assert "'b/99.jpg' is the same image as 'a/03.jpg', which has another label" in done.stderr
    done = images.prepare(repeated="allow")
    assert done.returncode == 0 and "images are in two splits" in done.stderr, done.stderr
    assert sorted(sum(images.keys().values(), [])) == sorted(names)
