"""Training on rows of captions and tags among classification rows, with everything that varies images switched on."""

import pytest
import yaml

from good_inputs import LABELS, TRAINING, Bench, text_rows
from harness import manifests, write_tsv

# without kNN, which would need a class in every row of the training set
VARIED = TRAINING | {
    "EVALDATASET_A": {"ZS_MODE": 2},
    "AUG": {"MIXUP_PROB": 0.5, "MIXUP": 0.8, "MIXCUT": 1.0, "TORCHVISION_AUG": {"AUTO_AUGMENT": "ta_wide", "RE_PROB": 0.25}},
}


@pytest.fixture(scope="module")
def bench(binary, tmp_path_factory):
    return Bench(binary, tmp_path_factory.mktemp("text-rows"))


def mixed_rows(caption):
    """A third of each kind. The last label has no row with a class: only a caption speaks of it."""
    rows = []
    for index, (key, text) in enumerate(text_rows()):
        other = [{"captions": [caption, f"{LABELS[2]}, small"]}, {"tags": ["spot", "ground"], "queries": ["what"]}]
        rows.append((key, text if index % 3 == 0 else other[index % 3 - 1]))
    return rows


def train(bench, folder, name, rows):
    """Runs a training on these rows; the SHA-256 of its weights and the log."""
    folder = folder / name
    folder.mkdir()
    texts, config = write_tsv(folder / "texts.tsv", rows), folder / "train.yaml"
    config.write_text(yaml.safe_dump(VARIED))
    job = bench.finetune({"rotation": 10}, text_tsv=texts, conf_files=config) | {"name": name, "outputs": {"save_dir": name}}
    done = bench.call("run", bench.write(folder / "job.yaml", job))
    assert done.returncode == 0, done.stderr
    [manifest] = manifests(bench.store)["data", name]
    return {f["path"]: f["sha256"] for f in manifest["files"]}["last.safetensors"], done.stderr


def test_captions_and_tags_are_trained_on(bench, tmp_path):
    weights, log = train(bench, tmp_path, "one", mixed_rows("a picture"))
    assert "labels without a classification row" in log
    # the same again is the same; another caption is another training
    assert train(bench, tmp_path, "two", mixed_rows("a picture"))[0] == weights
    assert train(bench, tmp_path, "three", mixed_rows("something else"))[0] != weights
    # a label nobody speaks of is an error where every row has a class
    rows = [(key, text | {"class_id": 0, "class_name": LABELS[0]}) for key, text in text_rows()]
    with pytest.raises(AssertionError, match="has no row of class 1"):
        train(bench, tmp_path, "four", rows)
