"""Loads a package with real MLflow and predicts; run as a program, so that nothing of the tests or of medtune is in the process.

Usage: mlflow_predict.py PACKAGE REQUEST.json ANSWER.json
The request: {"columns": [...], "data": [[...]], "params": {...} | null}; a cell {"file": PATH} becomes the file's bytes.
"""

import json
import sys
from pathlib import Path

import mlflow
import pandas as pd

package, request, answer = sys.argv[1:]
request = json.loads(Path(request).read_text())
rows = [[Path(cell["file"]).read_bytes() if isinstance(cell, dict) else cell for cell in row] for row in request["data"]]
model = mlflow.pyfunc.load_model(package)
predictions = model.predict(pd.DataFrame(rows, columns=request["columns"]), params=request.get("params"))
Path(answer).write_text(json.dumps(predictions, allow_nan=False))
