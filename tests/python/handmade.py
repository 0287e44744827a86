"""Writes small packages with random weights by plain file writes, and finds the runtime's source, for tests that need no binary."""

import base64
import hashlib
import importlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

RUNTIME = Path(__file__).resolve().parents[2] / "src" / "package" / "runtime"
SOURCES = ("__init__.py", "images.py", "modeling.py", "onednn.py", "weights.py")
LABELS = ["endoscopy gastrointestinal colon polyp", "endoscopy gastrointestinal stomach ulcer", "x-ray chest normal"]


def runtime():
    """The runtime package of the source tree, imported."""
    if str(RUNTIME.parent) not in sys.path:
        sys.path.insert(0, str(RUNTIME.parent))
    return importlib.import_module("runtime")


def config(**changes):
    """A small model configuration in the base model's format; `changes` go into IMAGE_ENCODER.SPEC, LANG_ENCODER or IMAGE_ENCODER."""
    spec = {
        "PATCH_SIZE": [7, 3],
        "PATCH_STRIDE": [4, 2],
        "PATCH_PADDING": [3, 1],
        "PATCH_PRENORM": [False, True],
        "DIM_EMBED": [16, 32],
        "NUM_HEADS": [2, 4],
        "NUM_GROUPS": [2, 4],
        "DEPTHS": [1, 2],
        "WINDOW_SIZE": 3,
    }
    image = {"IMAGE_SIZE": [44, 52], "IMAGE_MEAN": [0.485, 0.456, 0.406], "IMAGE_STD": [0.229, 0.224, 0.225], "SPEC": spec}
    text = {"CONTEXT_LENGTH": 20, "WIDTH": 32, "HEADS": 4, "LAYERS": 2, "AUTOGRESSIVE": False}
    for key, value in changes.items():
        next(part for part in (spec, text, image) if key in part)[key] = value
    return {"IMAGE_ENCODER": image, "LANG_ENCODER": text, "UNICL_MODEL": {"DIM_PROJECTION": 24}}


def random_state(model_config, vocabulary, seed=0):
    """Random weights under the checkpoint's names, large enough that every branch of the network matters."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in runtime().modeling.UniCL(model_config, vocabulary).state_dict().items()}
    state = random_tensors(shapes, seed)
    state["logit_scale"] = torch.tensor(2.75)
    return state


def random_tensors(shapes, seed):
    """{name: tensor} of normal numbers scaled by fan-in; weights of norms are near one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        fan_in = shape[1:].numel() if len(shape) > 1 else 1
        is_norm = name.endswith("weight") and len(shape) == 1
        state[name] = 1 + 0.1 * values if is_norm else values * (fan_in**-0.5 if len(shape) > 1 else 0.1)
    return state


SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
# sizes of an image encoder with the stages of the base model
FOUR_STAGES = {
    "PATCH_SIZE": [7, 3, 3, 3],
    "PATCH_STRIDE": [4, 2, 2, 2],
    "PATCH_PADDING": [3, 1, 1, 1],
    "PATCH_PRENORM": [False, True, True, True],
    "DIM_EMBED": [8, 16, 32, 64],
    "NUM_HEADS": [1, 2, 4, 8],
    "NUM_GROUPS": [1, 2, 4, 8],
    "DEPTHS": [1, 1, 3, 1],
    "WINDOW_SIZE": 5,
}


def tokenizer(complete=False):
    """A byte-level tokenizer with CLIP's special tokens; its end token has the highest id, as in CLIP.

    `complete`: the vocabulary itself holds the special tokens too, as CLIP's does and as medtune reads it.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *(SPECIAL if complete else [])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    result = Tokenizer(models.BPE(vocab=vocabulary, merges=[], end_of_word_suffix="</w>"))
    result.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    result.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens(SPECIAL)
    return result


def png(height=40, width=60, seed=0, mode="RGB"):
    """A PNG of random blocks, so that resizing has edges to work on."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(height // 4, 1), max(width // 4, 1), 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_package(folder, task, classifier=None, seed=0, model_config=None, complete=False, labels=LABELS):
    """A package of `task` ("embeddings", or "classification" with classifier "zero-shot" or "adapter"). Returns (config, state, extra).

    `extra` is the class embeddings [classes, P] or the adapter's state dict.
    """
    checkpoints = Path(folder) / "artifacts" / "checkpoints"
    words = checkpoints / "language_model" / "clip_tokenizer_4.16.2"
    words.mkdir(parents=True)
    (checkpoints / "vision_model").mkdir()
    tokens = tokenizer(complete)
    tokens.save(str(words / "tokenizer.json"))
    model_config = model_config or config()
    (checkpoints / "config.yaml").write_text(yaml.safe_dump(model_config))
    state = random_state(model_config, tokens.get_vocab_size(), seed)
    save_file(state, checkpoints / "vision_model" / "model.pt")
    image = model_config["IMAGE_ENCODER"]
    settings = {
        "format_version": 1,
        "task": task,
        "weights": "vision_model/model.pt",
        "tokenizer": "language_model/clip_tokenizer_4.16.2/tokenizer.json",
        "pixels": {
            "image_standardization_jpeg_compression_ratio": 75,
            "image_standardization_image_size": 64,
            "image_size": image["IMAGE_SIZE"],
            "mean": image["IMAGE_MEAN"],
            "std": image["IMAGE_STD"],
            "interpolation": "bicubic",
        },
        "classifier": None,
        "provenance": {},
    }
    extra = None
    if classifier:
        extra = _write_classifier(checkpoints, classifier, model_config["UNICL_MODEL"]["DIM_PROJECTION"], seed, labels)
        settings["classifier"] = {
            "kind": classifier,
            "labels": "classifier/labels.json",
            "text_template": "{}.",
            "class_embeddings": "classifier/class_embeddings.safetensors" if classifier == "zero-shot" else None,
            "adapter": "adapter/adapter.safetensors" if classifier == "adapter" else None,
        }
    (checkpoints / "medtune.json").write_text(json.dumps(settings))
    _write_mlflow_files(Path(folder), task)
    return model_config, state, extra


def _write_classifier(checkpoints, kind, dim, seed, labels):
    (checkpoints / "classifier").mkdir()
    (checkpoints / "classifier" / "labels.json").write_text(json.dumps(labels))
    if kind == "zero-shot":
        generator = torch.Generator().manual_seed(seed + 1)
        classes = torch.nn.functional.normalize(torch.randn(len(labels), dim, generator=generator), dim=1)
        save_file({"class_embeddings": classes}, checkpoints / "classifier" / "class_embeddings.safetensors")
        return classes
    (checkpoints / "adapter").mkdir()
    settings = {"input_channels": dim, "hidden_dimensions": 40, "classes": len(labels)}
    (checkpoints / "adapter" / "config.json").write_text(json.dumps(settings))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in runtime().modeling.Adapter(settings).state_dict().items()}
    state = random_tensors(shapes, seed + 2)
    save_file(state, checkpoints / "adapter" / "adapter.safetensors")
    return state


def _write_mlflow_files(folder, task):
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((RUNTIME / name).read_bytes())
    module = f"medtune_rt_{digest.hexdigest()[:12]}"
    code = folder / "code" / module
    code.mkdir(parents=True)
    for name in SOURCES:
        (code / name).write_bytes((RUNTIME / name).read_bytes())
    params = [
        {"name": "image_standardization_jpeg_compression_ratio", "type": "long", "default": 75, "shape": None},
        {"name": "image_standardization_image_size", "type": "long", "default": 64, "shape": None},
    ]
    inputs = [{"type": "binary", "name": "image", "required": task == "classification"}]
    outputs = [{"type": "string", "name": "predictions", "required": False}]
    if task == "embeddings":
        inputs.append({"type": "string", "name": "text", "required": False})
        outputs = [{"type": "string", "name": n, "required": False} for n in ("image_features", "text_features", "scaling_factor")]
        params.append({"name": "get_scaling_factor", "type": "boolean", "default": True, "shape": None})
    else:
        params.append({"name": "top_k", "type": "long", "default": 0, "shape": None})
    params.append({"name": "output_format", "type": "string", "default": "records", "shape": None})
    image = base64.b64encode(png()).decode()
    example = {"columns": ["image"], "index": [0], "data": [[image]]}
    if task == "embeddings":
        example = {"columns": ["image", "text"], "index": [0], "data": [[image, LABELS[0]]]}
    (folder / "input_example.json").write_text(json.dumps(example))
    serving = {"dataframe_split": example, "params": {p["name"]: p["default"] for p in params}}
    (folder / "serving_input_example.json").write_text(json.dumps(serving))
    model = {
        "flavors": {
            "python_function": {
                "code": "code",
                "config": {"device": "auto", "precision": "f32"},
                "data": "artifacts/checkpoints",
                "loader_module": module,
                "python_version": "3.11.0",
                "streamable": False,
            }
        },
        "mlflow_version": "2.22.5",
        "saved_input_example_info": {
            "artifact_path": "input_example.json",
            "pandas_orient": "split",
            "serving_input_path": "serving_input_example.json",
            "type": "dataframe",
        },
        "signature": {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), "params": json.dumps(params)},
        "utc_time_created": "2025-01-15 18:05:59.362746",
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(model))
