"""What a CSV says of images: which of them Prepare takes, under what label, whose they are, and what their text rows say."""

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import yaml
from conftest import model_config
from harness import environment, invoke, jpeg, refused, small_pixels, succeed

CONFIG, DATA = 10, 11
SPLITS = ("train", "validation", "test")
LABELS = {"akiec": "actinic keratosis", "mel": "melanoma", "nv": "a naevus"}
ROW = {"class_id", "class_name", "source", "task"}


def cohort(count=180):
    """A table as dermatology publishes it: lesions of one or more images, names without extension, blanks, quotes, line ends in cells."""
    rng = np.random.default_rng(17)
    lesions = np.sort(rng.integers(0, count // 2, count))
    classes = sorted(LABELS)
    rows = {
        "lesion_id": [f"LES_{lesion:04}" for lesion in lesions],
        "image_id": [f"IMG_{number:05}" for number in rng.permutation(10 * count)[:count]],
        "dx": [classes[lesion % 3] for lesion in lesions],
        "age": [str(rng.integers(20, 80)) if rng.random() > 0.1 else "" for _ in lesions],
        "sex": [("male", "female", "")[rng.integers(3)] for _ in lesions],
        "note": [('said "ow"', "scalp; left", "one comma, and no more", "über", "")[rng.integers(5)] for _ in lesions],
        "comment": ["two\nlines, one \"comma\"" if lesion % 3 else "" for lesion in lesions],
        "name": [f"Roe {lesion}" for lesion in lesions],
    }
    return pandas.DataFrame(rows)


class Cohort:
    """Images of all classes in two folders that say nothing of them, a table, and a store."""

    def __init__(self, binary, folder):
        self.binary, self.folder, self.store, self.table = binary, folder, folder / "store", cohort()
        self.env = environment(folder / "tmp")
        self.keys = {}
        for number, name in enumerate(self.table["image_id"]):
            key = f"part {number % 2}/{name}.jpg"
            self.keys[name] = key
            self.image(key, number)
        (folder / "constants.yaml").write_text(yaml.safe_dump({"folder_to_label": LABELS}))

    def image(self, key, number):
        path = self.folder / "images" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))

    def write(self, table=None, **form):
        """The table as a CSV of that form."""
        (self.table if table is None else table).to_csv(self.folder / "about.csv", index=False, **form)

    def job(self, inputs=(), **parameters):
        inputs = {"image_folder": "images", "text_constants": "constants.yaml", "image_metadata": "about.csv"} | dict(inputs)
        inputs = {name: path for name, path in inputs.items() if path}
        return {"kind": "Prepare", "inputs": inputs, "parameters": {"image_size": 16} | parameters}

    def run(self, job, *more):
        (self.folder / "job.yaml").write_text(yaml.safe_dump({"version": 1, "name": "prepare"} | job, sort_keys=False))
        return invoke(self.binary, "--store", self.store, "run", self.folder / "job.yaml", *more, env=self.env)

    def prepare(self, inputs=(), **parameters):
        return self.run(self.job(inputs, **parameters))

    def ask(self, *arguments):
        """What a verb answers."""
        return succeed(self.binary, "--store", self.store, *arguments, env=self.env)

    def file(self, name):
        """The TSV or label file of a dataset's newest version."""
        version = self.ask("data", "show", f"{name}@latest", "--json")
        [path] = [p for p in Path(version["uri"].removeprefix("file://")).rglob("*") if p.suffix in (".tsv", ".txt")]
        return path

    def rows(self):
        """{split: {key: text row}} of the newest version."""
        lines = {split: self.file(f"prepare-{split}_text_tsv").read_text().splitlines() for split in SPLITS}
        return {split: {key: json.loads(text) for key, text in (line.split("\t") for line in part)} for split, part in lines.items()}


@pytest.fixture
def images(binary, tmp_path):
    return Cohort(binary, tmp_path)


def line_of(table, row):
    """The line on which a row begins, which cells before it may have spread over several."""
    return table[:row].to_csv(index=False).count("\n") + 1


HAM = {"file_name_column": "image_id", "label_column": "dx"}


@pytest.mark.parametrize(
    "form",
    [{}, {"sep": ";", "encoding": "utf-8-sig", "lineterminator": "\r\n"}, {"sep": "\t", "quoting": 1}],
    ids=["commas", "as a spreadsheet in Europe writes it", "tabs, all quoted"],
)
def test_rows_say_what_the_table_says(images, form):
    """Against pandas: labels, named fields and no others; whole lesions in one split; what the table does not name is left out."""
    images.write(**form)
    images.image("part 1/IMG_unlisted.jpg", 999)
    done = images.prepare(**HAM, fields=["sex", "age", "note"], split={"group_column": "lesion_id"})
    assert done.returncode == 0, done.stderr
    assert "no row in image_metadata and are left out count=1" in done.stderr and "Roe" not in done.stderr + done.stdout
    table = pandas.read_csv(images.folder / "about.csv", dtype=str, keep_default_na=False, **{k: v for k, v in form.items() if k in ("sep", "encoding")})
    assert len(table) == len(images.keys) and set(table["note"]) == set(images.table["note"])
    parts = images.rows()
    seen = {key: row for part in parts.values() for key, row in part.items()}
    assert sorted(seen) == sorted(images.keys.values())
    texts = images.file("prepare-label_file").read_text().splitlines()
    for said in table.to_dict("records"):
        row = seen[images.keys[said["image_id"]]]
        known = {name: said[name] for name in ("sex", "age", "note") if said[name]}
        assert row == {"class_id": texts.index(LABELS[said["dx"]]), "class_name": LABELS[said["dx"]], "source": "medtune", "task": "classification"} | known
        # in the order asked for, after those of every row
        assert list(row)[4:] == list(known)
    lesion = dict(zip(images.keys.values(), table["lesion_id"], strict=True))
    groups = [{lesion[key] for key in parts[split]} for split in SPLITS]
    assert all(groups) and sum(map(len, groups)) == len(set(lesion.values()))
    [record] = images.ask("runs", "list", "--json")
    metrics = images.ask("runs", "show", record["run_id"], "--json")["steps"][0]["metrics"]
    assert (metrics["images"], metrics["left_out"]) == (len(table), 1)
    assert [metrics[f"{split}_groups"] for split in SPLITS] == [len(part) for part in groups]


def test_class_folders_with_a_table(images):
    """Folders give the labels; another table is another data set, the same one is not prepared again."""
    for number, key in enumerate([f"{folder}/{n:02}.jpg" for folder in ("nv", "mel") for n in range(12)]):
        images.image(key, 1000 + number)
    table = pandas.DataFrame({"site": ["Basel", "Bern"] * 11, "file_name": [f"{folder}/{n:02}.jpg" for folder in ("nv", "mel") for n in range(11)]})
    images.write(table)
    done = images.prepare(fields=["site"])
    # of the folders without a label the table names no image
    assert done.returncode == 0, done.stderr
    rows = {key: row for part in images.rows().values() for key, row in part.items()}
    assert {key: row["site"] for key, row in rows.items()} == dict(zip(table["file_name"], table["site"], strict=True))
    assert all(row["class_name"] == LABELS[key.split("/")[0]] for key, row in rows.items())
    assert "unchanged" in images.prepare(fields=["site"]).stdout
    images.write(table.replace("Bern", "Genf"))
    assert "unchanged" not in images.prepare(fields=["site"]).stdout
    assert {row["site"] for part in images.rows().values() for row in part.values()} == {"Basel", "Genf"}
    assert images.prepare().returncode == 0
    assert all(set(row) == ROW for part in images.rows().values() for row in part.values())


def test_what_does_not_fit_is_refused(images):
    """By file, line and column, without a word of what somebody's row says, and before anything is made."""
    table = images.table
    where = images.folder / "about.csv"
    doubled, blank, unknown, gone = (table.copy() for _ in range(4))
    doubled.loc[5, "image_id"] = table["image_id"][3]
    blank.loc[7, "lesion_id"] = ""
    unknown.loc[4, "dx"] = "nw"
    gone.loc[2, "image_id"] = "IMG_gone"
    grouped = HAM | {"split": {"group_column": "lesion_id"}}
    for changed, parameters, code, parts in (
        (doubled, HAM, DATA, [images.keys[table["image_id"][3]], "has a row already"]),
        (blank, grouped, DATA, ["nothing in the column 'lesion_id'"]),
        (unknown, HAM, CONFIG, ["constants.yaml': folder_to_label", f"label_column in '{where}' line {line_of(unknown, 4)}: "]),
        (table, HAM | {"label_column": "name"}, CONFIG, [f"label_column in '{where}' line 2 and {len(table) - 1} other rows"]),
        (table, HAM | {"file_name_column": "name"}, DATA, ["no image of that name", f"line 2 and {len(table) - 1} other rows"]),
        (table, HAM | {"fields": ["comment"]}, DATA, ["a line end in the column 'comment'"]),
        (gone, HAM, DATA, ["'IMG_gone'", "'image_id'"]),
        (table, {"label_column": "dx"}, DATA, [f"'{where}': no column 'file_name'", "first line"]),
        (table, HAM | {"fields": ["sexe"]}, DATA, ["no column 'sexe'", "did you mean 'sex'"]),
        (table[:0], HAM, DATA, ["names no image"]),
        (table, HAM | {"fields": ["class_id"]}, CONFIG, ["parameters.fields", "'class_id'"]),
        (table, HAM | {"split": {"group_column": "lesion_id", "method": "scikit_learn"}}, CONFIG, ["group_column"]),
    ):
        images.write(changed)
        said = refused(images.prepare(**parameters), code, *parts)
        assert "Roe" not in said, said
    # in a trial run too, and before a step that comes first
    images.write(gone)
    first = images.job({"image_metadata": None, "image_folder": "others", "text_constants": "others.yaml"})
    for number in range(9):
        path = images.folder / "others" / "one" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    (images.folder / "others.yaml").write_text("folder_to_label: {one: one}\n")
    late = {"kind": "Pipeline", "name": "late", "steps": {"first": first, "last": images.job(**HAM)}}
    for more in ([], ["--dry-run"]):
        refused(images.run(late, *more), DATA, "step last", f"'{where}' line {line_of(gone, 2)}", "'IMG_gone'")
    # a cell cannot swallow those of others
    images.write(table[["image_id", "dx", "name", "note"]])
    text = where.read_text().split("\n")
    where.write_text("\n".join([*text[:9], f'{table["image_id"][0]},nv,Roe 0,"open', *text[9:]]))
    said = refused(images.prepare(**HAM, fields=["note"]), DATA, f"'{where}' line ", "quote")
    assert "Roe" not in said
    # with the job, before a step of it is run
    late = {"kind": "Pipeline", "name": "late", "steps": {"first": images.job(**HAM), "last": images.job(**HAM, fields=["sexe"])}}
    images.write(table)
    refused(images.run(late), DATA, "step last", "input image_metadata", "did you mean 'sex'")
    refused(images.prepare({"image_metadata": None}, **HAM), CONFIG, "parameters.file_name_column", "image_metadata")
    refused(images.prepare({"image_metadata": "none.csv"}, **HAM), 13, "image_metadata", "none.csv")
    assert not (images.store / "data").exists()


def test_a_pipeline_reports_by_the_table(images):
    """From the table to the figures of each sex, with intervals that draw whole lesions; fields that are not written are missed with the job."""
    images.write()
    (images.folder / "model.yaml").write_text(yaml.safe_dump(small_pixels(model_config())))
    (images.folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS.values()))
    images.ask("model", "init", "--name", "base", "--config", images.folder / "model.yaml", "--label-texts", images.folder / "labels.txt")
    prepared = {name: f"${{{{ steps.prepare.outputs.{name} }}}}" for name in ("test_image_tsv", "test_text_tsv", "label_file")}
    steps = {
        "prepare": images.job(**HAM, fields=["sex"], split={"group_column": "lesion_id"}),
        "embed": {"kind": "Embed", "inputs": {"image_tsv": prepared["test_image_tsv"], "mlflow_model_path": "model:base@latest"}},
        "assemble": {"kind": "Assemble", "inputs": {"mlflow_model_path": "model:base@latest", "label_file": prepared["label_file"]}},
        "evaluate": {
            "kind": "Evaluate",
            "inputs": {
                "zero_shot_mlflow_model": "${{ steps.assemble.outputs.classification_mlflow_model }}",
                "test_embeddings": "${{ steps.embed.outputs.embeddings }}",
                "test_text_tsv": prepared["test_text_tsv"],
                "label_file": prepared["label_file"],
            },
            "parameters": {"subgroups": ["sex"], "bootstrap": {"resamples": 100, "group": "lesion_id"}},
        },
    }
    job = {"kind": "Pipeline", "name": "pipeline", "steps": steps}
    refused(images.run(job), CONFIG, "steps.evaluate", "no field 'lesion_id'", "task, sex", "parameters.fields")
    steps["prepare"]["parameters"]["fields"].append("lesion_id")
    done = images.run(job)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line.split("\t")[1]) for line in images.file("pipeline-prepare-test_text_tsv").read_text().splitlines()]
    [report] = images.store.glob("**/report.json")
    [entry] = json.loads(report.read_text())["methods"]
    [table] = entry["subgroups"]
    counts = pandas.Series([row.get("sex", "(none)") for row in rows]).value_counts().to_dict()
    assert {group["value"]: group["n"] for group in table["groups"]} == counts and set(counts) == {"male", "female", "(none)"}
    assert entry["intervals"]["group"] == "lesion_id" and entry["intervals"]["units"] == len({row["lesion_id"] for row in rows})
    # and where people read it
    for name in ("report.md", "report.txt"):
        lines = [" ".join(line.replace("|", " ").split()) for line in report.with_name(name).read_text().splitlines()]
        for group in table["groups"]:
            share = group["accuracy"]
            assert f"{group['value']} {group['n']} {share['value']:.3f} {share['low']:.3f} to {share['high']:.3f} {group['macro_f1']:.3f}" in " ".join(lines), lines
        assert f"intervals: 100 samples of {entry['intervals']['units']} values of lesion_id" in lines


def test_labels_do_not_depend_on_which_image_comes_first(images):
    """The label file is in the order of the column's values, so that one more image changes no class id; patients in two spellings are warned of."""
    images.write()
    assert images.prepare(**HAM).returncode == 0
    before = images.file("prepare-label_file").read_text()
    assert before.splitlines() == [LABELS[value] for value in sorted(LABELS)]
    images.image("a first one.jpg", 4242)
    row = {"image_id": "a first one", "dx": "nv", "lesion_id": images.table["lesion_id"][0].lower()}
    images.write(pandas.concat([images.table, pandas.DataFrame([row])]))
    done = images.prepare(**HAM, split={"group_column": "lesion_id"})
    assert done.returncode == 0 and "letter case only" in done.stderr, done.stderr
    assert images.file("prepare-label_file").read_text() == before


def test_only_classes_that_are_kept_need_a_patient(images):
    table = images.table[(images.table["dx"] != "akiec") | (images.table["dx"] == "akiec").cumsum().between(1, 5)].copy()
    table.loc[table["dx"] == "akiec", "lesion_id"] = ""
    images.write(table)
    grouped = HAM | {"split": {"group_column": "lesion_id"}}
    refused(images.prepare(**grouped), DATA, "nothing in the column 'lesion_id'")
    done = images.prepare(**grouped, keep_most_frequent=2)
    assert done.returncode == 0, done.stderr
    assert sum(map(len, images.rows().values())) == (table["dx"] != "akiec").sum()
