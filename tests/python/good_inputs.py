"""Good input of every kind, in one folder and one store: what bad inputs are made from."""

import conftest
import yaml
from harness import environment, invoke, jpeg, small_pixels, succeed, write_tsv

LABELS = ["red spot", "green spot", "blue spot"]
ROWS = 18
TRAINING = {"MAX_NUM_EPOCHS": 1, "TRAIN": {"BATCH_SIZE_TOTAL": 6, "BATCH_SIZE_PER_GPU": 6}}


def image_rows(rows=ROWS):
    return [(f"c{i % 3}/{i:03}.jpg", jpeg(i)) for i in range(rows)]


def text_rows(rows=ROWS):
    def text(class_id):
        return {"class_id": class_id, "class_name": LABELS[class_id], "source": "test", "task": "classification"}

    return [(f"c{i % 3}/{i:03}.jpg", text(i % 3)) for i in range(rows)]


class Bench:
    """Good input of every kind, in one folder and one store."""

    def __init__(self, binary, folder):
        self.binary, self.folder, self.store = binary, folder, folder / "store"
        self.env = environment(folder / "tmp")
        self.images = write_tsv(folder / "images.tsv", image_rows())
        self.texts = write_tsv(folder / "texts.tsv", text_rows())
        others = [(f"other/{n}", jpeg(200 + n)) for n in range(ROWS)]
        self.other_images = write_tsv(folder / "other_images.tsv", others)
        self.other_texts = write_tsv(folder / "other_texts.tsv", [(key, text) for (key, _), (_, text) in zip(others, text_rows(), strict=True)])
        self.labels = folder / "labels.txt"
        self.labels.write_text("\n".join(LABELS) + "\n")
        self.training = folder / "train.yaml"
        self.training.write_text(yaml.safe_dump(TRAINING))
        self.constants = folder / "constants.yaml"
        self.constants.write_text(yaml.safe_dump({"folder_to_label": {f"c{i}": label for i, label in enumerate(LABELS)}}))
        for key, bytes_ in image_rows():
            path = folder / "images" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes_)
        (folder / "model.yaml").write_text(yaml.safe_dump(small_pixels(conftest.model_config())))
        self.good("model", "init", "--name", "base", "--config", folder / "model.yaml", "--label-texts", self.labels)
        self.good("run", self.write(folder / "good.yaml", self.good_pipeline()))
        self.good("model", "pull", "base@latest", folder / "package")
        self.good("model", "pull", "spots@latest", folder / "classifier")

    def good(self, *arguments):
        return succeed(self.binary, "--store", self.store, *arguments, env=self.env)

    def call(self, *arguments):
        return invoke(self.binary, "--store", self.store, *arguments, env=self.env)

    @staticmethod
    def write(path, job):
        path.write_text(yaml.safe_dump({"version": 1, **job}, sort_keys=False))
        return path

    def good_pipeline(self):
        adapter = self.adapter()
        adapter["inputs"] |= dict.fromkeys(("train_embeddings", "validation_embeddings"), "${{ steps.embed.outputs.embeddings }}")
        steps = {
            "embed": self.embed() | {"outputs": {"embeddings": "vectors"}},
            "others": self.embed(image_tsv=self.other_images) | {"outputs": {"embeddings": "others"}},
            "adapter": adapter | {"outputs": {"adapter": "adapter"}},
            "assemble": self.assemble() | {"outputs": {"classification_mlflow_model": "spots"}},
        }
        return {"kind": "Pipeline", "name": "good", "steps": steps}

    def prepare(self, parameters=(), **inputs):
        inputs = {"image_folder": self.folder / "images", "text_constants": self.constants} | inputs
        return step("Prepare", inputs, {"image_size": 32} | dict(parameters))

    def finetune(self, parameters=(), **inputs):
        pairs = {"image_tsv": self.images, "text_tsv": self.texts, "eval_image_tsv": self.images, "eval_text_tsv": self.texts}
        rest = {"label_file": self.labels, "conf_files": self.training, "mlflow_model_path": "model:base@1"}
        return step("Finetune", pairs | rest | inputs, {"repeated": "allow"} | dict(parameters))

    def embed(self, parameters=(), **inputs):
        return step("Embed", {"image_tsv": self.images, "mlflow_model_path": "model:base@1"} | inputs, parameters)

    def adapter(self, parameters=(), **inputs):
        parts = ("train", "validation")
        good = {f"{p}_embeddings": "data:vectors@1" for p in parts} | {f"{p}_text_tsv": self.texts for p in parts}
        small = {"hidden_dimensions": 8, "max_epochs": 1, "repeated": "allow"}
        return step("Adapter", good | {"label_file": self.labels} | inputs, small | dict(parameters))

    def assemble(self, parameters=(), **inputs):
        return step("Assemble", {"mlflow_model_path": "model:base@1", "label_file": self.labels} | inputs, parameters)

    def evaluate(self, parameters=(), **inputs):
        good = {"test_embeddings": "data:vectors@1", "test_text_tsv": self.texts, "label_file": self.labels}
        return step("Evaluate", good | {"zero_shot_mlflow_model": "model:spots@1"} | inputs, parameters)


def step(kind, inputs, parameters):
    """A step; inputs that are None are left out."""
    inputs = {k: str(v) for k, v in inputs.items() if v is not None}
    return {"kind": kind, "inputs": inputs, "parameters": dict(parameters)}
