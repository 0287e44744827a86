"""Servers that hold a model package, started on a free port of this machine and ended with all that they started."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from checks import HERE, mlflow_environment

BINARIES = Path(sys.executable).parent
SERVING = HERE.parents[1] / ".venv-serving" / "bin"
# azmlinfsrv itself, but heard only on this machine: its command line has no option for the address
AZURE = "from azureml_inference_server_http import amlserver as server; server.DEFAULT_HOST = '127.0.0.1'; server.run()"


def mlflow(folder, package):
    """`mlflow models serve`."""
    [port] = free_ports(1)
    where = ["-h", "127.0.0.1", "-p", str(port)]
    return listening(folder, [BINARIES / "mlflow", "models", "serve", "-m", package, "--env-manager", "local", *where], port, "/ping")


def mlserver(folder, package):
    """MLServer with the package as the model `model`, in one process."""
    http, grpc = free_ports(2)
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_endpoint": None, "parallel_workers": 0, "debug": False}
    (folder / "settings.json").write_text(json.dumps(settings))
    model = {"name": "model", "implementation": "mlserver_mlflow.MLflowRuntime", "parameters": {"uri": str(package)}}
    (folder / "model-settings.json").write_text(json.dumps(model))
    return listening(folder, [SERVING / "mlserver", "start", folder], http, "/v2/models/model/ready")


def azure(folder, package):
    """Azure ML's inference server with the scoring script of this folder."""
    [port] = free_ports(1)
    command = [SERVING / "python", "-c", AZURE, "--entry_script", HERE / "azure_score.py", "--model_dir", package.parent, "--port", port]
    return listening(folder, command, port, "/", {"MLFLOW_MODEL_FOLDER": package.name})


def free_ports(count):
    """Ports that nothing listens at now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def listening(folder, command, port, health, extra=None):
    """Runs a server until the block ends; its address. One that is missing or does not get ready is a failure."""
    program = Path(command[0])
    assert program.exists(), f"{program} is missing: scripts/setup --test makes it"
    env = mlflow_environment() | {"PATH": f"{program.parent}:/usr/bin:/bin"} | (extra or {})
    uri, log = f"http://127.0.0.1:{port}", folder / "server.log"
    with open(log, "w") as out:
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=out, env=env, cwd=folder, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not answers(uri + health):
            assert process.poll() is None and time.monotonic() < deadline, f"{program.name} did not start:\n{log.read_text()[-3000:]}"
            time.sleep(0.2)
        # another server may have taken the port in between
        assert process.poll() is None, f"{program.name} has ended:\n{log.read_text()[-3000:]}"
        yield uri
    finally:
        # its workers are in the same group, and outlive a server that has ended by itself
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(uri):
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(uri, timeout=2):
            return True
    except OSError:
        return False


def post(uri, body, kind="application/json"):
    """Status and text of the answer to a POST; `body` is text, or becomes JSON."""
    data = body if isinstance(body, str) else json.dumps(body)
    request = urllib.request.Request(uri, data.encode(), {"content-type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
