"""Runtime of a medtune package: what MLflow loads to serve it. Plain torch and Pillow; no network, no pickle.

MLflow calls `_load_pyfunc` with the package's `artifacts/checkpoints` folder and then `predict` of what it returns.

- Embedding package: columns `image` and `text`, either of which may be absent in a row. A row's answer is a dict with `image_features` and
  `text_features` (unit vectors, where the row had the input) and `scaling_factor` (the logarithm of the scale of similarities).
- Classifier package: column `image`. A row's answer is the list of {"label", "score"}, best first; equal scores keep the order of the classes.
"""

import json
import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch
import yaml

from . import images, modeling, onednn
from .weights import read_safetensors

_FORMAT_VERSION = 1
_CHUNK = 16
_MAX_DECODERS = 8
_PRECISIONS = {"f32": torch.float32, "bf16": torch.bfloat16}


def _load_pyfunc(path, model_config=None):
    """The model in the folder `path`.

    `model_config` may hold "device": torch's name of one, or "auto", the GPU if there is one; and "precision", in which images are encoded:
    "f32" or "bf16". MLflow takes them from `config` in MLmodel, where MLFLOW_PYFUNC_INFERENCE_CONFIG, or who loads the package, may say otherwise.
    On a GPU the whole process stops rounding convolutions to TF32, which would cost the agreement with the CPU.
    """
    given = {key: value for key, value in (model_config or {}).items() if value not in (None, "")}
    config = {"device": "auto", "precision": "f32"} | given
    device, precision = config["device"], config["precision"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"the device of a package is 'auto', 'cpu', 'cuda' or 'cuda:N', not {device!r}") from None
    if not isinstance(precision, str) or precision not in _PRECISIONS:
        raise ValueError(f"the precision of a package is 'f32' or 'bf16', not {precision!r}")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    if precision == "bf16" and device.type == "cpu" and not onednn.has_bfloat16_products():
        logging.getLogger(__name__).warning("this CPU has no products in bf16, so images are encoded in f32")
        precision = "f32"
    return Model(path, device, _PRECISIONS[precision])


class Model:
    """A loaded package; `predict` may be called from several threads."""

    def __init__(self, root, device, dtype=torch.float32):
        self.device = device
        settings = _read_json(root, "medtune.json")
        if settings.get("format_version") != _FORMAT_VERSION:
            raise ValueError(f"medtune.json: format_version {settings.get('format_version')} is not {_FORMAT_VERSION}")
        self.task, self.pixel_settings = settings["task"], settings["pixels"]
        with open(_inside(root, "config.yaml"), encoding="utf-8") as file:
            config = yaml.safe_load(file)
        self.unicl = modeling.load_unicl(config, read_safetensors(_inside(root, settings["weights"])), device)
        self.unicl.image_encoder.compute_in(dtype)
        self.images_at_once = _CHUNK
        if device.type == "cpu":
            onednn.pack(self.unicl.image_encoder)
            self.images_at_once = onednn.images_at_once(config["IMAGE_ENCODER"]["SPEC"], *self.pixel_settings["image_size"], dtype.itemsize)
        if self.task == "classification":
            # The classes' text features are in the package, so the text encoder is not needed.
            self.unicl.lang_encoder = self.unicl.lang_projection = None
            self.classify, self.labels = _load_classifier(root, settings["classifier"], self.unicl.logit_scale, device)
        elif self.task == "embeddings":
            self.tokenizer_path = _inside(root, settings["tokenizer"])
            self.context_length, self.tokenizer = config["LANG_ENCODER"]["CONTEXT_LENGTH"], None
        else:
            raise ValueError(f"medtune.json: unknown task {self.task}")

    def predict(self, data, params=None):
        """One answer per row of `data`, as a list (see the module). `params` as in the signature; absent or null means the default."""
        params = {key: value for key, value in (params or {}).items() if value is not None}
        rows = _table(data)
        answers = self._classes(rows, params) if self.task == "classification" else self._embeddings(rows, params)
        output_format = params.get("output_format", "records")
        if output_format not in ("records", "json"):
            raise _bad_request(f"output_format is 'records' or 'json', not {output_format!r}")
        return answers if output_format == "records" else [json.dumps(answer) for answer in answers]

    def _classes(self, rows, params):
        if "image" not in rows:
            raise _bad_request("the input has no column 'image'")
        top_k = _integer(params, "top_k", 0, 0, math.inf) or len(self.labels)
        features = self._image_features(rows["image"], params)
        for row, feature in enumerate(features):
            if feature is None:
                raise _bad_request(f"row {row}: the image is empty")
        answers = []
        for chunk in _chunks(features):
            with torch.inference_mode():
                logits = self.classify(torch.from_numpy(np.stack(chunk)).to(self.device))
                scores = _finite(logits.cpu().double().softmax(dim=-1).numpy())
            order = np.argsort(-scores, axis=1, kind="stable")[:, : int(top_k)]
            for row, ids in zip(scores, order):
                answers.append([{"label": self.labels[i], "score": float(row[i])} for i in ids])
        return answers

    def _embeddings(self, rows, params):
        if "image" not in rows and "text" not in rows:
            raise _bad_request("the input has neither a column 'image' nor a column 'text'")
        answers = [{} for _ in range(len(rows))]
        for name, encode in (("image", self._image_features), ("text", self._text_features)):
            if name in rows:
                for answer, feature in zip(answers, encode(rows[name], params)):
                    if feature is not None:
                        answer[f"{name}_features"] = feature.tolist()
        for row, answer in enumerate(answers):
            if not answer:
                raise _bad_request(f"row {row}: neither an image nor a text")
            if params.get("get_scaling_factor", True):
                answer["scaling_factor"] = float(self.unicl.logit_scale)
        return answers

    def _image_features(self, cells, params):
        """float32 [P] for each cell, None where it is empty. A chunk at a time, so that memory does not grow with the request."""
        size = _integer(params, "image_standardization_image_size", self.pixel_settings, 1, 4096)
        quality = _integer(params, "image_standardization_jpeg_compression_ratio", self.pixel_settings, 1, 100)
        cells = [None if images.is_absent(cell) else cell for cell in cells]
        features = [None] * len(cells)
        for chunk in _chunks([row for row, cell in enumerate(cells) if cell is not None]):
            batch = np.stack(_in_threads(lambda row: self._pixels(row, cells[row], size, quality), chunk))
            for start in range(0, len(chunk), self.images_at_once):
                part = slice(start, start + self.images_at_once)
                with torch.inference_mode():
                    encoded = self.unicl.encode_image(torch.from_numpy(batch[part]).to(self.device))
                for row, feature in zip(chunk[part], _finite(encoded.cpu().numpy())):
                    features[row] = feature
        return features

    def _pixels(self, row, cell, size, quality):
        try:
            return images.pixels(images.image_bytes(cell), self.pixel_settings, size, quality)
        except images.ImageError as error:
            raise _bad_request(f"row {row}: {error}") from None

    def _text_features(self, cells, _params):
        """float32 [P] for each cell, None where it is empty."""
        texts = [None if images.is_absent(cell) else cell for cell in cells]
        features = [None] * len(texts)
        for chunk in _chunks([row for row, text in enumerate(texts) if text is not None]):
            ids, mask = self._tokens([(row, texts[row]) for row in chunk])
            with torch.inference_mode():
                encoded = self.unicl.encode_text(ids.to(self.device), mask.to(self.device))
            for row, feature in zip(chunk, _finite(encoded.cpu().numpy())):
                features[row] = feature
        return features

    def _tokens(self, rows):
        """Token ids and attention mask, both int64 [B, longest]; padded with the end token, cut at the context length."""
        if self.tokenizer is None:
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(self.tokenizer_path)
            tokenizer.no_padding()
            tokenizer.no_truncation()
            self.tokenizer = tokenizer
        start, end = (self.tokenizer.token_to_id(token) for token in ("<|startoftext|>", "<|endoftext|>"))
        if start is None or end is None:
            raise ValueError("tokenizer.json: no <|startoftext|> or no <|endoftext|>")
        encoded = []
        for row, text in rows:
            if not isinstance(text, str):
                raise _bad_request(f"row {row}: a text is a string, not {type(text).__name__}")
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids[: self.context_length - 2]
            encoded.append([start, *ids, end])
        longest = max(map(len, encoded))
        ids = torch.tensor([row + [end] * (longest - len(row)) for row in encoded])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in encoded])
        return ids, mask


def _load_classifier(root, settings, logit_scale, device):
    """(function from features [B, P] to logits [B, classes], labels)"""
    labels = _read_json(root, settings["labels"])
    if settings["kind"] == "zero-shot":
        classes = read_safetensors(_inside(root, settings["class_embeddings"]))["class_embeddings"].to(device)
        count = classes.shape[0]

        def classify(features):
            return logit_scale.exp() * features @ classes.T

    elif settings["kind"] == "adapter":
        path = settings["adapter"]
        config = _read_json(root, os.path.join(os.path.dirname(path), "config.json"))
        count = config["classes"]
        classify = modeling.load(lambda: modeling.Adapter(config), read_safetensors(_inside(root, path)), device)
    else:
        raise ValueError(f"medtune.json: unknown kind of classifier {settings['kind']}")
    if len(labels) != count:
        raise ValueError(f"{settings['labels']}: {len(labels)} labels for {count} classes")
    return classify, labels


def _table(data):
    """A data frame of whatever MLflow or a caller passes: frame, series, list of dicts, dict of lists, or bare images."""
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, pd.Series):
        return data.to_frame(data.name or "image")
    if isinstance(data, np.ndarray):
        data = data.ravel().tolist()
    if isinstance(data, (list, tuple)) and all(isinstance(item, (str, bytes)) for item in data):
        data = {"image": list(data)}
    try:
        return pd.DataFrame(data)
    except (ValueError, TypeError) as error:
        raise _bad_request(f"the input is not a table: {error}") from None


def _integer(params, key, default, low, high):
    """The parameter `key`, whole and within low..high; `default` is its value, or the settings that hold it under the same name."""
    value = params.get(key, default[key] if isinstance(default, dict) else default)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise _bad_request(f"{key} is a whole number from {low} to {high}, not {value!r}")
    return int(value)


def _in_threads(function, items):
    """[function(item) for item in items], several at once; of errors that of the first item is raised."""
    threads = min(len(items), _MAX_DECODERS, torch.get_num_threads())
    if threads < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def _chunks(items):
    return [items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)]


def _finite(values):
    if not np.isfinite(values).all():
        raise RuntimeError("the model's output is not finite: the weights are damaged")
    return values


def _inside(root, relative):
    """The path of a file of the package; refuses one that leads out of it."""
    root = os.path.realpath(root)
    path = os.path.realpath(os.path.join(root, relative))
    if os.path.commonpath([root, path]) != root:
        raise ValueError(f"{relative}: outside the package")
    return path


def _read_json(root, relative):
    with open(_inside(root, relative), encoding="utf-8") as file:
        return json.load(file)


def _bad_request(message):
    """The error that MLflow's servers answer with status 400 and without a stack trace."""
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
    except ImportError:
        return ValueError(message)
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)
