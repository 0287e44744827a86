"""Bad input of ten kinds: jobs that must fail, and what the error must say."""

import base64
import json
import shutil

import yaml
from good_inputs import LABELS, ROWS, TRAINING, image_rows, text_rows
from harness import jpeg, write_tsv

CONFIG, DATA, PACKAGE, NOT_FOUND, NO_SPACE = 10, 11, 12, 13, 21
WEIGHTS = "artifacts/checkpoints/vision_model"

# Each case takes the bench and an empty folder, and returns a job and what the error must say.
CASES = {}


def case(code, *names):
    """Registers a case under its function's name, or one for each of `names`, which it is then given."""

    def register(function):
        base = function.__name__.replace("_", "-")
        if not names:
            CASES[base] = (code, function)
        for name in names:
            CASES[f"{base}-{name}"] = (code, lambda bench, folder, name=name: function(bench, folder, name))
        return function

    return register


# 1. a missing file


@case(NOT_FOUND, "prepare", "finetune", "embed", "adapter", "assemble", "evaluate")
def missing_file(bench, folder, kind):
    gone = {
        "prepare": "text_constants",
        "finetune": "eval_text_tsv",
        "embed": "image_tsv",
        "adapter": "validation_text_tsv",
        "assemble": "label_file",
        "evaluate": "test_text_tsv",
    }[kind]
    return getattr(bench, kind)(**{gone: folder / "gone.tsv"}), (f"input {gone}", folder / "gone.tsv")


@case(NOT_FOUND)
def missing_image_folder(bench, folder):
    return bench.prepare(image_folder=folder / "gone"), ("input image_folder", folder / "gone")


@case(NOT_FOUND)
def missing_training_configuration(bench, folder):
    return bench.finetune(conf_files=folder / "gone.yaml"), ("input conf_files", folder / "gone.yaml")


@case(NOT_FOUND)
def missing_model(bench, folder):
    return bench.embed(mlflow_model_path="model:bass@latest"), ("input mlflow_model_path", "model:bass@latest", "'base'")


@case(NOT_FOUND)
def missing_version(bench, folder):
    return bench.evaluate(test_embeddings="data:vectors@7"), ("input test_embeddings", "data:vectors@7", "its versions are 1")


@case(NOT_FOUND)
def missing_file_of_the_last_step(bench, folder):
    steps = {"first": bench.prepare(), "last": bench.embed(image_tsv=folder / "gone.tsv")}
    return {"kind": "Pipeline", "name": "late", "steps": steps}, ("step last", "input image_tsv", folder / "gone.tsv")


# 2. an unknown key


@case(CONFIG)
def unknown_header_key(bench, folder):
    return bench.embed() | {"paramaters": {}}, ("job.yaml", "paramaters", "did you mean 'parameters'?")


@case(CONFIG)
def unknown_parameter(bench, folder):
    return bench.prepare({"imge_size": 32}), ("job.yaml", "parameters", "'imge_size'", "did you mean 'image_size'?")


@case(CONFIG)
def unknown_nested_parameter(bench, folder):
    return bench.prepare({"split": {"sed": 1}}), ("job.yaml", "parameters.split", "'sed'", "did you mean 'seed'?")


@case(CONFIG)
def unknown_input(bench, folder):
    return bench.embed(image_tvs=bench.images), ("job.yaml", "inputs.image_tvs", "did you mean 'image_tsv'?")


@case(CONFIG)
def unknown_output(bench, folder):
    return bench.embed() | {"outputs": {"embedings": "x"}}, ("job.yaml", "outputs.embedings", "did you mean 'embeddings'?")


@case(CONFIG)
def unknown_key_in_a_step(bench, folder):
    steps = {"one": bench.embed({"batchsize": 2})}
    return {"kind": "Pipeline", "name": "p", "steps": steps}, ("job.yaml", "steps.one", "batchsize", "did you mean 'batch_size'?")


@case(CONFIG)
def unknown_kind(bench, folder):
    return bench.embed() | {"kind": "Embedd"}, ("job.yaml", "unknown kind 'Embedd'", "did you mean 'Embed'?")


@case(CONFIG)
def unknown_training_key(bench, folder):
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(TRAINING | {"START_LERNING_RATE": 1}))
    return bench.finetune(conf_files=path), (path, "START_LERNING_RATE", "did you mean 'START_LEARNING_RATE'?")


@case(CONFIG)
def unknown_training_override(bench, folder):
    return bench.finetune({"training": {"MAX_NUM_EPOCH": 1}}), ("MAX_NUM_EPOCH", "did you mean 'MAX_NUM_EPOCHS'?")


@case(CONFIG)
def unknown_training_key_of_a_later_step(bench, folder):
    job, fragments = unknown_training_key(bench, folder)
    steps = {"first": bench.prepare(), "second": job}
    return {"kind": "Pipeline", "name": "late", "steps": steps}, ("step second", *fragments)


# 3. bad base64


def damaged_row(bench, folder, damage, row=ROWS):
    """An image TSV whose row (from 1) went through `damage`; the path and the row's key."""
    rows = image_rows()
    key, bytes_ = rows[row - 1]
    rows[row - 1] = (key, damage(bytes_))
    return write_tsv(folder / "images.tsv", rows), key


def broken_base64(bytes_):
    text = base64.b64encode(bytes_).decode()
    return text[:40] + "*" + text[41:]


@case(DATA, "image_tsv", "eval_image_tsv")
def bad_base64_in_finetune(bench, folder, name):
    path, key = damaged_row(bench, folder, broken_base64)
    return bench.finetune(**{name: path}), (path, f"row {ROWS}", key, "base64")


@case(DATA, "last", "first")
def bad_base64_in_embed(bench, folder, which):
    row = {"last": ROWS, "first": 1}[which]
    path, key = damaged_row(bench, folder, broken_base64, row)
    return bench.embed(image_tsv=path), (path, f"row {row}", key, "base64")


@case(DATA)
def base64_cut_short(bench, folder):
    path, key = damaged_row(bench, folder, lambda b: base64.b64encode(b).decode()[:-3])
    return bench.embed(image_tsv=path), (path, f"row {ROWS}", key, "base64")


# 3b. images that are in two sets


@case(DATA, "Finetune", "kNN", "names", "Adapter", "Evaluate", "thresholds")
def an_image_in_two_sets(bench, folder, kind):
    key = image_rows()[0][0]
    if kind in ("kNN", "names"):
        # under its name another image, of the training set or of what kNN compares with
        rows = [(f"other/{n}", jpeg(100 + n)) for n in range(2)]
        rows[1] = (key, rows[1][1])
        texts = write_tsv(folder / "texts.tsv", [(name, text_rows()[0][1]) for name, _ in rows])
        evaluation = {"eval_image_tsv": write_tsv(folder / "images.tsv", rows), "eval_text_tsv": texts}
        if kind == "names":
            return bench.finetune({"repeated": "error"}, **evaluation), ("1 key of eval_image_tsv names another image, or one whose content is not known, in image_tsv", key)
        # the training set has other names
        train = [(f"train/{name}", image) for name, image in image_rows()]
        training = {"image_tsv": write_tsv(folder / "train.tsv", train), "text_tsv": write_tsv(folder / "train_texts.tsv", [(f"train/{name}", text) for name, text in text_rows()])}
        compared = {"eval_train_image_tsv": bench.images, "eval_train_text_tsv": bench.texts}
        job = bench.finetune({"repeated": "error"}, **evaluation, **training, **compared)
        return job, ("1 key of eval_image_tsv names another image, or one whose content is not known, in eval_train_image_tsv", key)
    if kind == "Finetune":
        # the same image under another name
        rows = [(f"other/{key}", image_rows()[-1][1])]
        images, texts = write_tsv(folder / "images.tsv", rows), write_tsv(folder / "texts.tsv", [(f"other/{key}", text_rows()[-1][1])])
        job = bench.finetune({"repeated": "error"}, eval_image_tsv=images, eval_text_tsv=texts)
        return job, ("1 image of eval_image_tsv is in image_tsv too", f"it is 'other/{key}'", image_rows()[-1][0], "parameters.repeated")
    if kind == "Adapter":
        return bench.adapter({"repeated": "error"}), (f"{ROWS} images of validation_embeddings are in train_embeddings too", key)
    if kind == "thresholds":
        sets = {f"{name}_{what}": bench.texts if what == "text_tsv" else "data:vectors@1" for name in ("train", "validation") for what in ("embeddings", "text_tsv")}
        test = {"test_embeddings": "data:others@1", "test_text_tsv": bench.other_texts}
        return bench.evaluate(**sets, **test), ("validation_embeddings", "train_embeddings", key)
    job = bench.evaluate(train_embeddings="data:vectors@1", train_text_tsv=bench.texts)
    return job, (f"{ROWS} images of test_embeddings are in train_embeddings too", key)


# 4. a truncated JPEG


@case(DATA, "image_tsv", "eval_image_tsv")
def truncated_jpeg_in_finetune(bench, folder, name):
    path, key = damaged_row(bench, folder, lambda b: b[: len(b) * 2 // 3])
    return bench.finetune(**{name: path}), (path, f"row {ROWS}", key)


@case(DATA, "two-thirds", "end-marker", "header")
def truncated_jpeg_in_embed(bench, folder, part):
    kept = {"two-thirds": lambda b: b[: len(b) * 2 // 3], "end-marker": lambda b: b[:-2], "header": lambda b: b[:30]}[part]
    path, key = damaged_row(bench, folder, kept)
    return bench.embed(image_tsv=path), (path, f"row {ROWS}", key)


@case(DATA)
def truncated_jpeg_in_a_folder(bench, folder):
    images = shutil.copytree(bench.folder / "images", folder / "images")
    path = images / "c2" / "017.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    return bench.prepare(image_folder=images), (path,)


@case(DATA)
def no_image_at_all(bench, folder):
    path, key = damaged_row(bench, folder, lambda b: b"GIF89a, they said")
    return bench.embed(image_tsv=path), (path, f"row {ROWS}", key)


# 5. keys that do not match


@case(DATA, "text_tsv", "eval_text_tsv")
def other_order_in_finetune(bench, folder, name):
    rows = text_rows()
    rows[-1], rows[-2] = rows[-2], rows[-1]
    path = write_tsv(folder / "texts.tsv", rows)
    return bench.finetune(**{name: path}), (path, bench.images, f"row {ROWS - 1}", rows[-1][0], rows[-2][0])


@case(DATA)
def fewer_texts_in_finetune(bench, folder):
    path = write_tsv(folder / "texts.tsv", text_rows()[:-1])
    return bench.finetune(text_tsv=path), (bench.images, f"row {ROWS}", image_rows()[-1][0], path)


@case(DATA, "adapter", "evaluate")
def other_keys_than_the_embeddings(bench, folder, kind):
    rows = text_rows()
    rows[-1] = ("someone/else.jpg", rows[-1][1])
    path = write_tsv(folder / "texts.tsv", rows)
    name = {"adapter": "validation_text_tsv", "evaluate": "test_text_tsv"}[kind]
    return getattr(bench, kind)(**{name: path}), (path, f"row {ROWS}", "someone/else.jpg", text_rows()[-1][0])


@case(DATA, "adapter", "evaluate")
def fewer_texts_than_embeddings(bench, folder, kind):
    path = write_tsv(folder / "texts.tsv", text_rows()[:-1])
    name = {"adapter": "train_text_tsv", "evaluate": "test_text_tsv"}[kind]
    return getattr(bench, kind)(**{name: path}), (path, f"{ROWS}")


@case(DATA, "image_tsv", "text_tsv")
def the_same_key_twice(bench, folder, name):
    rows = {"image_tsv": image_rows, "text_tsv": text_rows}[name]()
    rows[-1] = (rows[0][0], rows[-1][1])
    path = write_tsv(folder / "twice.tsv", rows)
    return bench.finetune(**{name: path}), (path, f"row {ROWS}", rows[0][0], "row 1")


# 6. a class id out of range


@case(DATA, "finetune", "adapter", "evaluate")
def class_id_out_of_range(bench, folder, kind):
    rows = text_rows()
    key, text = rows[-1]
    rows[-1] = (key, text | {"class_id": 3})
    path = write_tsv(folder / "texts.tsv", rows)
    name = {"finetune": "text_tsv", "adapter": "train_text_tsv", "evaluate": "test_text_tsv"}[kind]
    return getattr(bench, kind)(**{name: path}), (path, f"row {ROWS}", key, "class_id 3")


@case(DATA)
def negative_class_id(bench, folder):
    rows = text_rows()
    key, text = rows[4]
    rows[4] = (key, text | {"class_id": -1})
    path = write_tsv(folder / "texts.tsv", rows)
    return bench.finetune(text_tsv=path), (path, "row 5", key)


# 7. an empty class


@case(DATA)
def empty_class_folder(bench, folder):
    images = shutil.copytree(bench.folder / "images", folder / "images")
    (images / "c3").mkdir()
    return bench.prepare(image_folder=images), (images / "c3", "no image")


@case(DATA)
def class_too_small_to_split(bench, folder):
    images = shutil.copytree(bench.folder / "images", folder / "images")
    for path in sorted((images / "c1").iterdir())[2:]:
        path.unlink()
    return bench.prepare(image_folder=images), (images, LABELS[1], "2 images")


@case(CONFIG)
def folder_without_label(bench, folder):
    images = shutil.copytree(bench.folder / "images", folder / "images")
    shutil.copytree(images / "c2", images / "c3")
    return bench.prepare(image_folder=images), (bench.constants, "'c3'")


@case(DATA, "finetune", "adapter")
def class_without_rows(bench, folder, kind):
    labels = folder / "labels.txt"
    labels.write_text("\n".join([*LABELS, "yellow spot"]) + "\n")
    return getattr(bench, kind)(label_file=labels), (bench.texts, "yellow spot")


# 8. a label file that is shorter than the ids


@case(DATA, "finetune", "adapter", "evaluate")
def short_label_file(bench, folder, kind):
    labels = folder / "labels.txt"
    labels.write_text("\n".join(LABELS[:2]) + "\n")
    key = text_rows()[2][0]
    return getattr(bench, kind)(label_file=labels), (bench.texts, "row 3", key, "class_id 2", "label")


@case(DATA)
def fewer_labels_than_the_adapter_has_classes(bench, folder):
    labels = folder / "labels.txt"
    labels.write_text("\n".join(LABELS[:2]) + "\n")
    return bench.assemble(label_file=labels, adapter="data:adapter@1"), ("label_file", "2 labels", "3 classes")


@case(DATA)
def label_twice(bench, folder):
    labels = folder / "labels.txt"
    labels.write_text("\n".join([LABELS[0], LABELS[1], LABELS[0]]) + "\n")
    return bench.assemble(label_file=labels), (labels, "line 3", LABELS[0])


# 9. an unreadable package


def package(bench, folder, source="package"):
    return shutil.copytree(bench.folder / source, folder / source)


def weights(folder):
    return next((folder / WEIGHTS).iterdir())


@case(PACKAGE, "empty", "no-manifest", "no-settings")
def not_a_package(bench, folder, how):
    copy = package(bench, folder)
    if how == "empty":
        shutil.rmtree(copy)
        copy.mkdir()
    named = {"empty": "", "no-manifest": "medtune-manifest.json", "no-settings": "artifacts/checkpoints/medtune.json"}[how]
    if named:
        (copy / named).unlink()
    return bench.embed(mlflow_model_path=copy), ("input mlflow_model_path", copy / named if named else copy)


@case(PACKAGE, "weights", "tokenizer", "config")
def package_without(bench, folder, what):
    copy = package(bench, folder)
    path = {
        "weights": weights(copy),
        "tokenizer": copy / "artifacts/checkpoints/language_model/clip_tokenizer_4.16.2/tokenizer.json",
        "config": copy / "artifacts/checkpoints/config.yaml",
    }[what]
    path.unlink()
    return bench.assemble(mlflow_model_path=copy), ("input mlflow_model_path", path)


@case(PACKAGE, "cut", "header", "values", "pickle")
def damaged_weights(bench, folder, how):
    copy = package(bench, folder)
    path = weights(copy)
    bytes_ = bytearray(path.read_bytes())
    if how == "cut":
        bytes_ = bytes_[:-100]
    elif how == "header":
        bytes_[:8] = b"\xff" * 8
    elif how == "values":
        bytes_[-1000] ^= 0x40
    else:
        bytes_[:4] = b"PK\x03\x04"
    path.write_bytes(bytes_)
    return bench.embed(mlflow_model_path=copy), ("input mlflow_model_path", copy, path.relative_to(copy))


@case(PACKAGE)
def cut_weights_of_a_later_step(bench, folder):
    job, _ = damaged_weights(bench, folder, "cut")
    steps = {"first": bench.prepare(), "second": job}
    return {"kind": "Pipeline", "name": "late", "steps": steps}, ("step second", weights(folder / "package"))


@case(PACKAGE)
def damaged_class_embeddings(bench, folder):
    copy = package(bench, folder, "classifier")
    path = copy / "artifacts/checkpoints/classifier/class_embeddings.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    return bench.evaluate(zero_shot_mlflow_model=copy), ("input zero_shot_mlflow_model", copy, path.relative_to(copy))


@case(PACKAGE)
def package_of_a_newer_format(bench, folder):
    copy = package(bench, folder)
    path = copy / "artifacts/checkpoints/medtune.json"
    settings = json.loads(path.read_text())
    size = path.stat().st_size
    path.write_text(json.dumps(settings | {"format_version": 2}, indent=2).ljust(size)[:size])
    return bench.embed(mlflow_model_path=copy), (path,)


@case(PACKAGE)
def embedding_package_where_a_classifier_is_needed(bench, folder):
    return bench.evaluate(zero_shot_mlflow_model="model:base@1"), ("input zero_shot_mlflow_model", "models/base/1")


@case(PACKAGE)
def damaged_adapter(bench, folder):
    bench.good("data", "show", "adapter@1")
    copy = shutil.copytree(bench.store / "data/adapter/1", folder / "adapter")
    path = copy / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    return bench.assemble(adapter=copy), ("adapter.safetensors",)
