"""More bad input: text rows that are malformed, and rows of captions and tags where a class is needed."""

import json

from bad_inputs import CONFIG, DATA, case
from good_inputs import LABELS, ROWS, text_rows
from harness import write_tsv

MALFORMED = {
    "no-json": ("{", "not valid JSON"),
    "no-object": ("[1]", "not a JSON object"),
    "nothing": ("{}", "has none of"),
    "captions-number": (json.dumps({"captions": [1]}), "'captions' must be a text or a list of texts"),
    "captions-empty": (json.dumps({"captions": []}), "'captions' has no text"),
    "tags-blank": (json.dumps({"tags": ["a", " "]}), "'tags' has no text"),
    "two-kinds": (json.dumps({"tags": "a", "captions": "b"}), "has both 'captions' and 'tags'"),
    "class-and-captions": (json.dumps(text_rows()[0][1] | {"captions": "b"}), "has both 'class_id' and 'captions'"),
    "queries": (json.dumps({"captions": "a", "queries": {"a": 1}}), "'queries' must be a text or a list of texts"),
    "other-task": (json.dumps(text_rows()[0][1] | {"task": "detection"}), "task 'detection'"),
}


def replaced(folder, value, row=ROWS):
    """A text TSV in which the row (from 1) holds `value`; its path and the row's key."""
    rows = text_rows()
    key = rows[row - 1][0]
    rows[row - 1] = (key, value)
    return write_tsv(folder / "texts.tsv", rows), key


@case(DATA, *MALFORMED)
def malformed_text_row(bench, folder, name):
    value, said = MALFORMED[name]
    path, key = replaced(folder, value)
    return bench.finetune(text_tsv=path), (path, f"row {ROWS}", key, said)


@case(DATA, "finetune", "adapter", "evaluate")
def captions_where_a_class_is_needed(bench, folder, kind):
    path, key = replaced(folder, {"captions": ["a red spot on a grey ground"]}, 5)
    name = {"finetune": "eval_text_tsv", "adapter": "train_text_tsv", "evaluate": "test_text_tsv"}[kind]
    return getattr(bench, kind)(**{name: path}), (path, "row 5", key, "a row of captions has no class")


@case(DATA)
def tags_in_the_set_that_knn_compares_with(bench, folder):
    path, key = replaced(folder, {"tags": ["spot"]}, 2)
    return bench.finetune(text_tsv=path), (path, "row 2", key, "a row of tags has no class", "kNN", "eval_train_image_tsv")


@case(DATA)
def class_of_a_mixed_set_that_the_labels_have_not(bench, folder):
    rows = text_rows()
    rows[0] = (rows[0][0], {"captions": "a spot"})
    rows[3] = (rows[3][0], rows[3][1] | {"class_id": len(LABELS)})
    path = write_tsv(folder / "texts.tsv", rows)
    return bench.finetune(text_tsv=path), (path, "row 4", rows[3][0], "class_id 3 is out of range")


@case(CONFIG)
def rotation_of_more_than_half_a_turn(bench, folder):
    return bench.finetune({"rotation": 200}), ("rotation", "180")
