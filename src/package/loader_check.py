"""Asks the package in argv[2] the questions of its self-test, by MLflow's loader; the answers go to the file argv[3] as JSON.

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
import pandas as pd
import torch


def main(module, package, answers_file):
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # which PYTHONSAFEPATH leaves out
    importlib.import_module(module)
    with contextlib.suppress(ImportError):  # wanted by some packages only; later it could be another of that name
        import tokenizers  # noqa: F401
    test = _read(package, "self-test.json")
    model = mlflow.pyfunc.load_model(package)
    images = model.predict(pd.DataFrame({"image": [base64.b64decode(image["base64"]) for image in test["images"]]}))
    answers = {}
    if test["expected"].get("scores"):
        checkpoints = os.path.join(package, "artifacts", "checkpoints")
        labels = _read(checkpoints, _read(checkpoints, "medtune.json")["classifier"]["labels"])
        by_label = [{answer["label"]: answer["score"] for answer in row} for row in images]
        answers["scores"] = [[row[label] for label in labels] for row in by_label]
    else:
        texts = model.predict(pd.DataFrame({"text": test["texts"]}))
        answers["image_features"] = [row["image_features"] for row in images]
        answers["text_features"] = [row["text_features"] for row in texts]
        answers["scaling_factor"] = images[0]["scaling_factor"]
    loader = f"MLflow {mlflow.__version__}, torch {torch.__version__}"
    with open(answers_file, "w", encoding="utf-8") as file:
        json.dump({"loader": loader, "answers": answers}, file, allow_nan=False)


def _read(folder, name):
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return json.load(file)


main(*sys.argv[1:])
