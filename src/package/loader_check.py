"""Asks the package in argv[2] the questions of its self-test, by MLflow's loader and, of ONNX models, by ONNX Runtime; the answers go to the file argv[3]
as JSON.

The package's Python is the module argv[1], of which a copy lies beside this file: MLflow finds it imported, and takes nothing of what is in the
package's own folder of code.
"""

import base64
import contextlib
import importlib
import json
import os
import sys

import mlflow.pyfunc
import numpy as np
import pandas as pd
import torch


def main(module, package, answers_file):
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # which PYTHONSAFEPATH leaves out
    importlib.import_module(module)
    with contextlib.suppress(ImportError):  # wanted by some packages only; later it could be another of that name
        global tokenizers
        import tokenizers
    checkpoints = os.path.join(package, "artifacts", "checkpoints")
    test, settings = _read(package, "self-test.json"), _read(checkpoints, "medtune.json")
    onnxruntime, not_asked = _onnxruntime() if settings.get("onnx") else (None, None)
    programs = [(f"MLflow {mlflow.__version__}, torch {torch.__version__}", _by_mlflow(package, checkpoints, test, settings))]
    if onnxruntime:
        name = f"ONNX Runtime {onnxruntime.__version__}"
        ask = _Onnx(onnxruntime, importlib.import_module(module + ".images"), checkpoints, settings)
        programs.append((name, ask(test)))
    programs = [{"name": name, "answers": answers} for name, answers in programs]
    with open(answers_file, "w", encoding="utf-8") as file:
        json.dump({"programs": programs, "not_asked": not_asked}, file, allow_nan=False)


def _onnxruntime():
    """The module, or None and why; before MLflow puts the package's code where modules are looked for."""
    try:
        import onnxruntime
    except Exception as error:  # one that does not fit its NumPy raises others than ImportError
        return None, f"the ONNX models were not asked, this Python cannot import ONNX Runtime: {error}"
    return onnxruntime, None


def _by_mlflow(package, checkpoints, test, settings):
    model = mlflow.pyfunc.load_model(package)
    images = model.predict(pd.DataFrame({"image": [base64.b64decode(image["base64"]) for image in test["images"]]}))
    answers = {}
    if test["expected"].get("scores"):
        labels = _read(checkpoints, settings["classifier"]["labels"])
        by_label = [{answer["label"]: answer["score"] for answer in row} for row in images]
        answers["scores"] = [[row[label] for label in labels] for row in by_label]
    else:
        texts = model.predict(pd.DataFrame({"text": test["texts"]}))
        answers["image_features"] = [row["image_features"] for row in images]
        answers["text_features"] = [row["text_features"] for row in texts]
        answers["scaling_factor"] = images[0]["scaling_factor"]
    return answers


class _Onnx:
    """The ONNX models of a package, by ONNX Runtime on the CPU."""

    def __init__(self, runtime, images, checkpoints, settings):
        self.runtime, self.images, self.checkpoints, self.settings = runtime, images, checkpoints, settings

    def __call__(self, test):
        if test["expected"].get("scores"):
            [scores] = self._run(self._session("classifier.onnx"), ["scores"], images=self._pixels(test))
            return {"scores": scores.tolist()}
        session = self._session("image_encoder.onnx")
        [vectors] = self._run(session, ["image_features"], images=self._pixels(test))
        answers = {"image_features": vectors.tolist()}
        answers["scaling_factor"] = float(session.get_modelmeta().custom_metadata_map["scaling_factor"])
        del session  # with its weights
        session = self._session("text_encoder.onnx")
        ids, mask = self._tokens(test["texts"], int(session.get_modelmeta().custom_metadata_map["context_length"]))
        [vectors] = self._run(session, ["text_features"], input_ids=ids, attention_mask=mask)
        return answers | {"text_features": vectors.tolist()}

    def _session(self, name):
        path = os.path.join(self.checkpoints, name)
        return self._try(lambda: self.runtime.InferenceSession(path, providers=["CPUExecutionProvider"]))

    def _run(self, session, outputs, **inputs):
        return self._try(lambda: session.run(outputs, inputs))

    def _try(self, call):
        try:
            return call()
        except Exception as error:  # its own types of errors, which have no common one
            version = self.runtime.__version__
            sys.exit(f"ONNX Runtime {version} cannot run the ONNX models: {error}; use another version, or remove it from this Python")

    def _pixels(self, test):
        pixels = self.settings["pixels"]
        size, quality = (pixels[f"image_standardization_{key}"] for key in ("image_size", "jpeg_compression_ratio"))
        return np.stack([self.images.rgb(base64.b64decode(image["base64"]), pixels, size, quality) for image in test["images"]])

    def _tokens(self, texts, context):
        """Token ids and mask, int64 [texts, tokens]."""
        tokenizer = tokenizers.Tokenizer.from_file(os.path.join(self.checkpoints, self.settings["tokenizer"]))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        start, end = (tokenizer.token_to_id(token) for token in ("<|startoftext|>", "<|endoftext|>"))
        rows = [[start, *tokenizer.encode(text, add_special_tokens=False).ids[: context - 2], end] for text in texts]
        longest = max(map(len, rows))
        ids = np.array([row + [end] * (longest - len(row)) for row in rows], np.int64)
        return ids, np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], np.int64)


def _read(folder, name):
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return json.load(file)


main(*sys.argv[1:])
