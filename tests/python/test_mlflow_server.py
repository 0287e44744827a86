"""Real MLflow tracking servers, of version 3 and 2: runs and model versions arrive, once, and a server that dies loses nothing."""

import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import conftest
import pytest
import yaml
from checks import base64_of, mlflow_environment
from harness import environment, invoke, records, succeed

ROOT = conftest.ROOT
SERVERS = {"3": Path(sys.executable).parent, "2": ROOT / ".venv-mlflow2" / "bin"}
TOKEN = "planted-token-b7e1f0"
CONFIG, STORAGE = 10, 20


class Server:
    """`mlflow server` with SQLite in a folder of its own, which outlives the process."""

    def __init__(self, folder, version, *extra):
        self.folder, self.binaries, self.extra = Path(folder), SERVERS[version], extra
        self.folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        kept = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        artifacts = self.extra or ["--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")]
        env = mlflow_environment() | {"PATH": f"{self.binaries}:/usr/bin:/bin", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = open(self.folder / "server.log", "a")
        command = [str(self.binaries / "mlflow"), "server", *where, *kept, *artifacts]
        self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=self.folder, start_new_session=True)
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                    assert answer.read() == b"OK"
                return self
            except OSError:
                state = self.process.poll()
                assert state is None and time.monotonic() < deadline, (state, (self.folder / "server.log").read_text()[-3000:])
                time.sleep(0.2)

    def stop(self):
        """Ends the server and its workers, which are a group of their own."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)


@pytest.fixture(scope="module", params=list(SERVERS), ids=lambda v: f"mlflow{v}")
def server(request, tmp_path_factory):
    program = SERVERS[request.param] / "mlflow"
    assert program.exists(), f"{program} is missing: scripts/setup --test makes it"
    server = Server(tmp_path_factory.mktemp(f"mlflow{request.param}"), request.param)
    try:
        yield server.start()
    finally:
        server.stop()


def job(folder, tracking_uri, **section):
    """The fixtures' pipeline again, which finds its steps done, with a server to register at."""
    text = yaml.safe_load((folder / "job.yaml").read_text())
    text["mlflow"] = {"tracking_uri": tracking_uri, **section}
    path = folder / f"mlflow-{time.monotonic_ns()}.yaml"
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    return path


def versions(client, name):
    return sorted(client.search_model_versions(f"name='{name}'"), key=lambda v: int(v.version))


def load_and_predict(server, uri, images, folder):
    """What MLflow answers that loads `uri` from the server, in a process of its own."""
    request, answer = folder / "request.json", folder / "answer.json"
    rows = [[base64_of(path.read_bytes())] for path in images]
    request.write_text(json.dumps({"columns": ["image"], "data": rows}))
    command = [sys.executable, str(conftest.ROOT / "tests/python/mlflow_predict.py"), uri, str(request), str(answer)]
    env = mlflow_environment() | {"MLFLOW_TRACKING_URI": server.uri}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(answer.read_text())


def test_a_model_that_was_found_wanting_is_not_registered(run, medtune, server):
    path = job(run.folder, server.uri, experiment="gated")
    text = yaml.safe_load(path.read_text())
    evaluate = text["steps"]["evaluate"]
    evaluate["parameters"]["require"], evaluate["outputs"] = {"accuracy": "> 1"}, {"report": "gated-report"}
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    medtune("--store", run.store, "run", path, expect=15)
    state = medtune("--store", run.store, "runs", "list", "--json")[0]["mlflow"]
    assert state["status"] == "registered" and state["versions"] == [], state
    found = server.client().get_run(state["run_id"])
    assert found.info.status == "FAILED" and any(name.startswith("evaluate.") for name in found.data.metrics)


def test_everything_arrives_once(run, medtune, server):
    """Run, parameters, metrics, tags, versions and alias; the second time nothing is made twice."""
    section = {"experiment": "wards", "alias": "champion", "tags": {"team": "imaging"}}
    path = job(run.folder, server.uri, **section)
    record = medtune("--store", run.store, "run", path, "--json")
    state = record["mlflow"]
    assert state["status"] == "registered" and state["error"] is None and state["repeat"] == [], state
    # the base model is made from nothing here; both classifiers are final, though Evaluate reads them
    assert [v["name"] for v in state["versions"]] == ["zero-shot", "adapter-classifier"]

    client = server.client()
    found = client.get_run(state["run_id"])
    assert found.info.status == "FINISHED" and found.info.run_name == record["run_id"]
    assert found.data.tags["medtune.run_id"] == record["run_id"] and found.data.tags["team"] == "imaging"
    assert client.get_experiment_by_name("wards").experiment_id == found.info.experiment_id
    assert found.data.params["adapter.max_epochs"] == "4" and found.data.params["evaluate.knn"] == str(conftest.KNN)
    methods = next(s for s in record["steps"] if s["name"] == "evaluate")["metrics"]["methods"]
    for method in methods:
        name = method["method"].replace(" (k ", "_k_").rstrip(")")
        assert found.data.metrics[f"evaluate.methods.{name}.accuracy"] == pytest.approx(method["accuracy"]), name
    assert found.info.start_time < found.info.end_time

    for name in ("zero-shot", "adapter-classifier"):
        [version] = versions(client, name)
        local = medtune("--store", run.store, "model", "show", f"{name}@latest", "--json")
        assert version.tags["medtune.reference"] == local["reference"] and version.tags["medtune.digest"] == local["digest"]
        assert version.status == "READY" and version.run_id == state["run_id"] and version.description == local["description"]
        assert version.source == f"{found.info.artifact_uri}/{local['prefix']}"
        assert client.get_model_version_by_alias(name, "champion").version == version.version

    # by another run of the same job, and by the verb
    again = medtune("--store", run.store, "run", path, "--json")
    assert again["mlflow"]["status"] == "registered" and again["mlflow"]["run_id"] != state["run_id"]
    assert again["mlflow"]["versions"] == state["versions"]
    arguments = ["model", "register", "adapter-classifier@1", "--tracking-uri", server.uri, "--json"]
    for _ in range(2):
        by_verb = medtune("--store", run.store, *arguments, "--run", record["run_id"])
        assert by_verb["run_id"] == state["run_id"] and by_verb["versions"][0]["version"] == state["versions"][1]["version"]
    assert [len(versions(client, name)) for name in ("zero-shot", "adapter-classifier")] == [1, 1]
    runs = client.search_runs([found.info.experiment_id])
    assert sorted(r.data.tags["medtune.run_id"] for r in runs) == sorted([record["run_id"], again["run_id"]])


def test_the_registered_model_predicts_the_same(run, medtune, server, tmp_path):
    arguments = ["adapter-classifier@1", "--tracking-uri", server.uri, "--registered-model", "served", "--alias", "champion"]
    told = medtune("--store", run.store, "model", "register", *arguments)
    assert "model:adapter-classifier@1 is version 1 of served" in told and "alias champion" in told
    images = run.images()[:4]
    served = load_and_predict(server, "models:/served@champion", images, tmp_path)
    ours = medtune("predict", run.model("adapter-classifier"), *images, "--json")["predictions"]
    assert len(served) == len(ours) == len(images)
    for theirs, item in zip(served, ours):
        scores = {entry["label"]: entry["score"] for entry in item["labels"]}
        assert {entry["label"]: entry["score"] for entry in theirs} == pytest.approx(scores, abs=1e-4)


def test_a_model_that_no_run_made(run, medtune, server):
    """A base model has no run; it gets one at the server, which carries its files."""
    for _ in range(2):
        told = medtune("--store", run.store, "model", "register", "base", "--tracking-uri", server.uri, "--json")
        assert told["status"] == "registered"
    [version] = versions(server.client(), "base")
    assert server.client().get_run(version.run_id).data.tags["medtune.reference"] == "model:base@1"


class Cutting:
    """A proxy before a server. At the first request whose path holds `path` it does that and is gone before it answers, as if the
    server had been killed: medtune does not know that the request was done."""

    def __init__(self, server, path):
        target, outer = server.port, self

        class Handler(http.server.BaseHTTPRequestHandler):
            def forward(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                upstream = http.client.HTTPConnection("127.0.0.1", target, timeout=60)
                upstream.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k.lower() != "host"})
                answer = upstream.getresponse()
                content = answer.read()
                if path in self.path:
                    assert answer.status == 200, content
                    outer.listener.shutdown()
                    outer.listener.socket.close()
                    outer.gone.set()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(answer.status)
                self.send_header("content-length", str(len(content)))
                self.send_header("content-type", answer.getheader("content-type") or "application/json")
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = forward

            def log_message(self, *_):
                pass

        self.gone = threading.Event()
        self.listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.listener.server_port}"
        threading.Thread(target=self.listener.serve_forever, args=[0.05], daemon=True).start()


@pytest.mark.parametrize("path", ["runs/create", "/model.safetensors", "model-versions/create", "runs/update"])
def test_a_server_that_dies_loses_nothing(binary, run, medtune, server, path):
    proxy = Cutting(server, path)
    name = f"survivor-{server.folder.name}-{path.strip('/').replace('/', '-')}"
    text = yaml.safe_load(job(run.folder, proxy.uri, experiment=name, alias="champion").read_text())
    # one model under a name of its own, so that what other tests have registered is not found
    text["steps"]["assemble-zero-shot"]["outputs"] = {"classification_mlflow_model": name}
    text["steps"] = {k: v for k, v in text["steps"].items() if k in ("prepare", "assemble-zero-shot")}
    file = run.folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(text, sort_keys=False))
    done = invoke(binary, "--store", run.store, "run", file, "--json", env=environment())
    assert done.returncode == 0, done.stderr
    assert proxy.gone.is_set()
    record = json.loads(done.stdout)
    state = record["mlflow"]
    assert record["status"] == "succeeded" and record["exit_code"] == 0
    assert state["status"] == "failed" and "is it up" in state["error"] and len(state["repeat"]) == 1, state
    assert records(run.store)[record["run_id"]]["mlflow"] == state
    assert "WARN" in done.stderr and state["repeat"][0] in done.stderr

    # the very command that was printed, at the server that is back
    words = state["repeat"][0].replace(proxy.uri, server.uri).split()
    assert words[:2] == ["medtune", "--store"]
    told = succeed(binary, *words[1:], "--json", env=environment())
    assert told["status"] == "registered"
    client = server.client()
    [version] = versions(client, name)
    assert version.source == told["versions"][0]["source"] and version.run_id == told["run_id"]
    assert client.get_model_version_by_alias(name, "champion").version == version.version
    [one] = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    assert one.info.run_id == told["run_id"] and one.info.status == "FINISHED"
    assert one.data.tags["medtune.run_id"] == record["run_id"]
    # every file is there
    local = medtune("--store", run.store, "model", "show", f"{name}@1", "--json")
    root = server.folder / "artifacts" / version.source.removeprefix("mlflow-artifacts:/")
    there = {p.relative_to(root).as_posix(): p.stat().st_size for p in root.rglob("*") if p.is_file()}
    assert there == {f["path"]: f["size"] for f in local["files"]}


def test_a_server_that_was_killed(binary, run, tmp_path):
    """A real server that is killed, before the job ends, and started again."""
    server = Server(tmp_path / "server", "3").start()
    try:
        path = job(run.folder, server.uri, experiment="killed")
        server.stop()
        done = invoke(binary, "--store", run.store, "run", path, "--json", env=environment())
        record = json.loads(done.stdout)
        assert done.returncode == 0 and record["mlflow"]["status"] == "failed" and record["mlflow"]["run_id"] is None
        commands = record["mlflow"]["repeat"]
        assert len(commands) == 2
        refused = invoke(binary, *commands[0].split()[1:], env=environment())
        assert refused.returncode == STORAGE and "repeat the command" in refused.stderr, refused.stderr
        server.start()
        told = [succeed(binary, *command.split()[1:], "--json", env=environment()) for command in commands]
        assert told[0]["run_id"] == told[1]["run_id"]
        [one] = server.client().search_runs([server.client().get_experiment_by_name("killed").experiment_id])
        assert one.data.tags["medtune.run_id"] == record["run_id"] and one.info.status == "FINISHED"
    finally:
        server.stop()


def test_a_token_is_sent_and_never_shown(binary, run, server):
    """At the most talkative log level, with an answer and without one, in the record and in errors."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers.get("authorization"))
            # a server that repeats what it was sent
            body = json.dumps({"error_code": "PERMISSION_DENIED", "message": f"no: {seen[-1]}"}).encode()
            self.send_response(403)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    refusing = f"http://127.0.0.1:{listener.server_port}"
    basic = {"MLFLOW_TRACKING_USERNAME": "ward", "MLFLOW_TRACKING_PASSWORD": TOKEN}
    encoded = base64_of(f"ward:{TOKEN}".encode())
    try:
        for uri, secret in [(server.uri, {"MLFLOW_TRACKING_TOKEN": TOKEN}), (refusing, {"MLFLOW_TRACKING_TOKEN": TOKEN}), (refusing, basic)]:
            path = job(run.folder, uri, experiment="secret")
            done = invoke(binary, "--store", run.store, "--log-level", "trace", "run", path, "--json", env=environment(**secret))
            assert done.returncode == 0, done.stderr
            state = json.loads(done.stdout)["mlflow"]
            assert state["status"] == ("registered" if uri == server.uri else "failed")
            kept = json.dumps(records(run.store)[json.loads(done.stdout)["run_id"]])
            for text in (done.stdout, done.stderr, kept):
                assert TOKEN not in text and encoded not in text
            assert "TRACE" in done.stderr
        # or the test would show nothing
        assert f"Bearer {TOKEN}" in seen and f"Basic {encoded}" in seen
        error = json.loads(done.stdout)["mlflow"]["error"]
        assert "***" in error and "may not do that" in error, error
    finally:
        listener.shutdown()


def test_wrong_sections_are_refused_before_anything_runs(binary, run):
    for section, fragment in [
        ({"tracking_uri": f"http://me:{TOKEN}@h"}, "MLFLOW_TRACKING_TOKEN"),
        ({"tracking_uri": "databricks"}, "http://HOST:PORT"),
        ({"tracking_uri": "http://h", "allias": "x"}, "did you mean 'alias'"),
        ({"tracking_uri": "http://h", "alias": "latest"}, "mlflow.alias"),
        ({"tracking_uri": "http://h", "registered_model": "one"}, "several models"),
        ({"tracking_uri": "http://h", "source": "copy"}, "mlflow.source"),
    ]:
        done = invoke(binary, "validate", job(run.folder, **section))
        assert done.returncode == CONFIG and fragment in done.stderr and TOKEN not in done.stderr, done.stderr


def test_a_server_without_artifacts_says_what_to_do(binary, run, medtune, tmp_path):
    """Its own folder for artifacts is written to when it is here; elsewhere nothing is made, and the message says what to do."""
    root = tmp_path / "root"
    root.mkdir()
    server = Server(tmp_path / "server", "3", "--no-serve-artifacts", "--default-artifact-root", root.as_uri())
    arguments = ["--store", run.store, "model", "register", "zero-shot@1", "--tracking-uri", server.uri]
    try:
        server.start()
        medtune(*arguments, "--experiment", "here")
        [version] = versions(server.client(), "zero-shot")
        assert version.source.startswith(root.as_uri()) and (Path(version.source.removeprefix("file://")) / "MLmodel").is_file()
        # a folder that only the server has
        elsewhere = tmp_path / "elsewhere"
        server.client().create_experiment("there", artifact_location=(elsewhere / "a" / "b").as_uri())
        done = invoke(binary, *arguments, "--experiment", "there", "--registered-model", "other", env=environment())
        assert done.returncode == CONFIG and "--serve-artifacts" in done.stderr and not elsewhere.exists(), done.stderr
        # a folder as a source
        done = invoke(binary, *arguments, "--experiment", "here", "--registered-model", "third", "--source", "uri", env=environment())
        assert done.returncode == CONFIG and "mlflow.source: upload" in done.stderr, done.stderr
        # a name that the server does not know itself by
        wrong = [a if a != server.uri else f"http://mlflow.localhost.test:{server.port}" for a in arguments]
        proxy = environment(HTTP_PROXY=server.uri, http_proxy=server.uri)
        done = invoke(binary, *wrong, "--experiment", "here", env=proxy)
        assert done.returncode == CONFIG and "--allowed-hosts" in done.stderr and "Invalid Host header" in done.stderr, done.stderr
    finally:
        server.stop()
