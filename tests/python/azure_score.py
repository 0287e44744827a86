"""A scoring script for Azure ML's inference server that does what Azure generates for an MLflow model: requests as `input_data` and `params`.

The folder of the package is AZUREML_MODEL_DIR/MLFLOW_MODEL_FOLDER. What the server publishes as its schema is made of the package's own
example and signature, when this is imported: a package whose signature Azure cannot take stops the server here.
"""

import json
import os
from pathlib import Path

import mlflow
import pandas as pd
from inference_schema.parameter_types.pandas_parameter_type import PandasParameterType
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
from inference_schema.schema_decorators import input_schema, output_schema
from mlflow.models import Model

PACKAGE = Path(os.environ["AZUREML_MODEL_DIR"], os.environ.get("MLFLOW_MODEL_FOLDER", "mlflow_model_folder"))
METADATA = Model.load(str(PACKAGE))
# the text of the file: MLflow would decode images to bytes, which are not to be written as JSON
EXAMPLE = pd.DataFrame(**json.loads((PACKAGE / METADATA.saved_input_example_info["artifact_path"]).read_text()))
PARAMS = {param.name: param.default for param in METADATA.signature.params}
# fails unless all outputs are plain types, as Azure's does
OUTPUTS = dict(zip(METADATA.signature.outputs.input_names(), METADATA.signature.outputs.pandas_types()))

model = None


def init():
    """Called once, when the server starts."""
    global model
    model = mlflow.pyfunc.load_model(str(PACKAGE))


@input_schema("input_data", PandasParameterType(EXAMPLE, enforce_shape=False, orient="split"))
@input_schema("params", StandardPythonParameterType(PARAMS), optional=True)
@output_schema(PandasParameterType(pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in OUTPUTS.items()})))
def run(input_data, params=None):
    """Called for every request; what it returns is the body of the answer."""
    return model.predict(input_data, params=params)
