"""Checks and helpers that several test modules share."""

import base64
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
_PICKLES = (".pkl", ".pickle", ".joblib", ".npy", ".npz", ".pth", ".bin")


def mlflow_environment():
    """An environment with nothing on PATH but Python and the system, without pickle, and without MLflow's usage reports."""
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
        "HOME": os.environ.get("HOME", "/tmp"),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "",
    }


# Pythons with MLflow, the newest and the one whose format packages have; torch is that of the tests in both.
PYTHONS = {"3": Path(sys.executable), "2": HERE.parents[1] / ".venv-mlflow2/bin/python"}


def mlflow_predict(folder, package, columns, rows, params=None, expect=0, extra=None, mlflow="3"):
    """What real MLflow answers for the rows, in a process of its own; `folder` takes the exchanged files, `extra` is added to the
    environment. Returns (answer, stderr)."""
    request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
    request.write_text(json.dumps({"columns": columns, "data": rows, "params": params}))
    command = [str(PYTHONS[mlflow]), "-W", "error::FutureWarning", str(HERE / "mlflow_predict.py"), str(package), str(request), str(answer)]
    env = mlflow_environment() | (extra or {})
    run = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300)
    assert run.returncode == expect, run.stderr
    return (json.loads(answer.read_text()) if expect == 0 else None), run.stderr


def assert_no_pickle(package):
    """No file of the package is a pickle by name or by content, nor an archive that could hold one."""
    files = [path for path in Path(package).rglob("*") if path.is_file()]
    assert files
    for path in files:
        start = path.open("rb").read(4)
        assert start[:2] not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), f"{path} is a pickle"
        assert start != b"PK\x03\x04", f"{path} is a zip archive"
        # Weights may carry upstream's name, which ends in .pt, but they are safetensors.
        assert path.suffix not in _PICKLES, path
        if path.suffix in (".pt", ".safetensors"):
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                json.loads(file.read(length))


def assert_conforms(package):
    """MLflow's own checks of a package and of the examples in it, in this process."""
    import mlflow
    from mlflow.models import Model, get_model_info, validate_serving_input

    package = str(package)
    model = Model.load(package)
    assert Model.from_dict(model.to_dict()) == model
    assert get_model_info(package).signature is not None
    assert model.load_input_example(package) is not None
    for column in model.signature.outputs or []:  # other types stop Azure's scoring script at start
        assert type(column.type).__name__ == "DataType", column
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # 3.17 announces its removal
        answer = validate_serving_input(package, model.get_serving_input(package))
    assert len(answer) == 1
    loaded = mlflow.pyfunc.load_model(package)
    assert json.dumps(loaded.predict(model.load_input_example(package)), allow_nan=False)


def base64_of(data):
    """base64 text of bytes."""
    return base64.b64encode(data).decode()
