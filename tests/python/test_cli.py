"""The command line: every verb, its output for machines, its exit codes."""

import json
import re
import shutil

import conftest
import jsonschema
import pytest
import yaml
from harness import check_complete, environment, invoke, jpeg, manifests, refused, sha256, small_pixels, succeed, write_tsv

ROOT = conftest.ROOT
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
USAGE, CONFIG, DATA, NOT_FOUND, CONFLICT = 2, 10, 11, 13, 14
KINDS = ["Prepare", "Finetune", "Embed", "Adapter", "Assemble", "Evaluate", "Pipeline"]
VERBS = [
    ["run"],
    ["validate"],
    ["schema"],
    ["predict"],
    *(["model", verb] for verb in ("init", "import", "list", "show", "pull", "verify", "register")),
    *(["data", verb] for verb in ("register", "list", "show", "pull", "verify")),
    *([kind, verb] for kind in ("model", "data") for verb in ("diff", "alias", "unalias", "remove")),
    *(["runs", verb] for verb in ("list", "show")),
    ["gc"],
]
# what the shipped jobs take from the environment
VARIABLES = {"IMAGES": "/nowhere", "TEXT_CONSTANTS": "/nowhere.yaml", "BASE_MODEL": "base", "GASTROVISION_FOLDER": "/nowhere"}


class Bench:
    """A store with a model, a dataset and one run of Embed."""

    def __init__(self, binary, folder):
        self.binary, self.folder, self.store = binary, folder, folder / "store"
        self.env = environment(folder / "tmp")
        (folder / "labels.txt").write_text("red\ngreen\n")
        (folder / "model.yaml").write_text(yaml.safe_dump(small_pixels(conftest.model_config())))
        self.images = write_tsv(folder / "images.tsv", [(f"i/{n}.jpg", jpeg(n)) for n in range(5)])
        self.init = ["--config", folder / "model.yaml", "--label-texts", folder / "labels.txt"]
        self.good("model", "init", "--name", "base", *self.init)
        self.good("data", "register", "--name", "pictures", self.images, "--description", "five", "--tag", "site=here")
        self.job = folder / "embed.yaml"
        inputs = {"image_tsv": "data:pictures@latest", "mlflow_model_path": "model:base@latest"}
        job = {"version": 1, "kind": "Embed", "inputs": inputs, "outputs": {"embeddings": "vectors"}}
        self.job.write_text(yaml.safe_dump(job))
        self.first = self.good("run", self.job, "--json")

    def good(self, *arguments, **extra):
        return succeed(self.binary, "--store", self.store, *arguments, env=self.env | extra)

    def call(self, *arguments, **extra):
        return invoke(self.binary, "--store", self.store, *arguments, env=self.env | extra)


@pytest.fixture(scope="module")
def bench(binary, tmp_path_factory):
    return Bench(binary, tmp_path_factory.mktemp("cli"))


@pytest.mark.parametrize("verb", [[], ["model"], ["data"], ["runs"], *VERBS], ids=" ".join)
def test_help(binary, verb):
    done = invoke(binary, *verb, "--help")
    assert done.returncode == 0 and "Usage:" in done.stdout and done.stderr == ""
    if not verb:
        for name in {v[0] for v in VERBS}:
            assert re.search(rf"^\s+{name}\s+\S", done.stdout, re.M), f"{name} is not explained"


def test_version(binary):
    assert re.match(r"medtune \d+\.\d+\.\d+", invoke(binary, "--version").stdout)


@pytest.mark.parametrize("arguments", [[], ["rnu"], ["run"], ["run", "x", "--what"], ["model"], ["model", "init"]], ids=" ".join)
def test_wrong_usage(binary, arguments):
    done = invoke(binary, *arguments)
    assert done.returncode == USAGE and done.stdout == "" and done.stderr


def validator(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def walk(value):
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(inner)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_schema_is_whole(binary, kind):
    schema = json.loads(succeed(binary, "schema", *([kind] if kind else [])))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    references = {v["$ref"] for v in walk(schema) if isinstance(v, dict) and "$ref" in v}
    assert references <= {f"#/$defs/{name}" for name in schema["$defs"]}
    if kind:
        assert schema["properties"]["kind"] == {"const": kind}


def test_schema_of_an_unknown_kind(binary):
    line = invoke(binary, "schema", "Embedd")
    assert line.returncode in (USAGE, CONFIG) and "Embed" in line.stderr


def shipped():
    assert JOBS, "no jobs are shipped"
    return [pytest.param(path, id=path.name) for path in JOBS]


@pytest.mark.parametrize("path", shipped())
def test_shipped_jobs_fit_their_schema(binary, path):
    job = yaml.safe_load(path.read_text())
    for schema in (["schema"], ["schema", job["kind"]]):
        errors = list(validator(json.loads(succeed(binary, *schema))).iter_errors(job))
        assert not errors, errors[0]
    job["outptus"] = {}
    assert not validator(json.loads(succeed(binary, "schema", job["kind"]))).is_valid(job)


@pytest.mark.parametrize("path", shipped())
def test_shipped_jobs_are_valid(binary, tmp_path, path):
    done = invoke(binary, "validate", path, env=environment(**VARIABLES), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_kind_has_a_shipped_job():
    assert {yaml.safe_load(path.read_text())["kind"] for path in JOBS} == set(KINDS)
    assert {"quickstart.yaml", "gastrovision.yaml"} <= {path.name for path in JOBS}


def test_missing_variable_is_named(binary, tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text("version: 1\nkind: Embed\ninputs: {image_tsv: '${NO_SUCH_VARIABLE}', mlflow_model_path: x}\n")
    refused(invoke(binary, "validate", job), CONFIG, job, "inputs.image_tsv", "NO_SUCH_VARIABLE")


def test_run_says_what_it_made(bench):
    record = bench.first
    assert record["status"] == "succeeded" and record["exit_code"] == 0
    assert record["outputs"]["embeddings"]["reference"] == "data:vectors@1"
    assert record["inputs"]["image_tsv"]["reference"] == "data:pictures@1"
    assert re.fullmatch(r"[0-9a-f]{64}", record["inputs"]["mlflow_model_path"]["sha256"])
    assert bench.good("runs", "show", record["run_id"], "--json") == record
    assert record["run_id"] in bench.good("runs", "show", record["run_id"])


def test_run_again_rerun_and_set(bench, tmp_path):
    """The same job does nothing; --rerun makes a new version; --set is another job."""
    store = shutil.copytree(bench.store, tmp_path / "store")

    def run(*arguments):
        record = succeed(bench.binary, "--store", store, "run", bench.job, *arguments, "--json", env=bench.env)
        return record["steps"][0]["status"], record["outputs"]["embeddings"]["reference"]

    assert run() == ("unchanged", "data:vectors@1")
    assert run("--rerun") == ("succeeded", "data:vectors@2")
    assert run("--set", "outputs.embeddings=others") == ("succeeded", "data:others@1")
    assert run("--set", "parameters.batch_size=2", "--set", "outputs.embeddings=others") == ("succeeded", "data:others@2")
    assert run("--set", "parameters.image_standardization_image_size=64") == ("succeeded", "data:vectors@3")
    check_complete(store)
    refused(bench.call("run", bench.job, "--set", "parameters"), USAGE, "--set", "key=value")
    refused(bench.call("run", bench.job, "--set", "parameters.batch_size=none"), CONFIG, "parameters.batch_size")


def test_dry_run_changes_nothing(bench):
    before = {p: sha256(p) for p in bench.store.rglob("*") if p.is_file()}

    def plan(*arguments):
        return bench.good("run", bench.job, "--dry-run", "--json", *arguments)

    unchanged, run = plan(), plan("--set", "parameters.batch_size=3")
    for found, action in ((unchanged, "unchanged"), (run, "run")):
        steps = found if isinstance(found, list) else found["steps"]
        assert [(s["step"], s["kind"], s["action"]) for s in steps] == [("embed", "Embed", action)]
        assert steps[0]["outputs"] == {"embeddings": "vectors"}
    assert "unchanged" in bench.good("run", bench.job, "--dry-run")
    assert {p: sha256(p) for p in bench.store.rglob("*") if p.is_file()} == before


def test_dry_run_finds_what_is_missing(bench, tmp_path):
    arguments = ["run", bench.job, "--dry-run", "--set", f"inputs.image_tsv={tmp_path / 'gone.tsv'}"]
    refused(bench.call(*arguments), NOT_FOUND, "input image_tsv", tmp_path / "gone.tsv")


def test_data_register_list_show(bench, tmp_path):
    listed = bench.good("data", "list", "--json")
    assert {"pictures", "vectors"} <= {entry["name"] for entry in listed}
    shown = bench.good("data", "show", "pictures", "--json")
    assert (shown["version"], shown["description"], shown["tags"]) == (1, "five", {"site": "here"})
    # a dataset of one TSV has that file, and perhaps its index
    file = next(f for f in shown["files"] if f["path"] == "images.tsv")
    assert (file["size"], file["sha256"]) == (bench.images.stat().st_size, sha256(bench.images))
    assert shown["uri"] == f"file://{bench.store}/data/pictures/1"
    for text in (bench.good("data", "list"), bench.good("data", "show", "data:pictures@1")):
        assert "pictures" in text
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("a")
    (folder / "b.txt").write_text("b")
    bench.good("data", "register", "--name", "folder", folder)
    assert [f["path"] for f in bench.good("data", "show", "folder@1", "--json")["files"]] == ["b.txt", "deep/a.txt"]
    check_complete(bench.store)


@pytest.mark.parametrize(
    "arguments, code, fragments",
    [
        (["data", "register", "--name", "x", "gone.tsv"], NOT_FOUND, ["gone.tsv"]),
        (["data", "register", "--name", "../x", "gone.tsv"], CONFIG, ["../x", "not a valid name"]),
        (["data", "register", "--name", "x", "embed.yaml", "--tag", "novalue"], USAGE, ["novalue"]),
        (["data", "show", "picture"], NOT_FOUND, ["data:picture@latest", "'pictures'"]),
        (["data", "show", "pictures@9"], NOT_FOUND, ["data:pictures@9", "its versions are 1"]),
        (["data", "show", "pictures@x"], NOT_FOUND, ["pictures@x", "its aliases are none"]),
        (["data", "show", "pictures@x.y"], CONFIG, ["pictures@x.y", "'x.y' is not a valid alias"]),
        (["model", "show", "bass"], NOT_FOUND, ["model:bass@latest", "'base'"]),
        (["model", "pull", "bass", "there"], NOT_FOUND, ["model:bass@latest"]),
        (["model", "verify", "gone"], NOT_FOUND, ["gone"]),
        (["model", "import", "--name", "x", "gone"], NOT_FOUND, ["gone"]),
        (["runs", "show", "gone"], NOT_FOUND, ["'gone'", "embed"]),
        (["runs", "show", "../x"], CONFIG, ["../x"]),
        (["predict", "bass@latest", "x.png"], NOT_FOUND, ["model:bass@latest"]),
        (["predict", "model:base", "gone.png"], NOT_FOUND, ["gone.png"]),
        (["predict", "base", "x.png"], NOT_FOUND, ["'base' is no package folder", "model:NAME@VERSION"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refusals(bench, arguments, code, fragments):
    before = manifests(bench.store)
    done = invoke(bench.binary, "--store", bench.store, *arguments, env=bench.env, cwd=bench.folder)
    if code == USAGE:
        assert done.returncode == USAGE and all(f in done.stderr for f in fragments), done.stderr
    else:
        refused(done, code, *fragments)
    assert manifests(bench.store) == before and not (bench.folder / "there").exists()


def test_model_list_show_pull_verify(bench, tmp_path):
    assert [entry["name"] for entry in bench.good("model", "list", "--json")] == ["base"]
    shown = bench.good("model", "show", "base@latest", "--json")
    assert (shown["kind"], shown["name"], shown["version"]) == ("model", "base", 1)
    assert "base" in bench.good("model", "list") and "base" in bench.good("model", "show", "model:base@1")
    bench.good("model", "verify", "base@1")
    pulled = tmp_path / "pulled"
    bench.good("model", "pull", "base", pulled)
    files = {p.relative_to(pulled).as_posix(): p for p in pulled.rglob("*") if p.is_file()}
    assert {n: (p.stat().st_size, sha256(p)) for n, p in files.items()} == {
        f["path"]: (f["size"], f["sha256"]) for f in shown["files"]
    }
    bench.good("model", "verify", pulled)
    # once more is no error, onto something else is one
    bench.good("model", "pull", "base", pulled)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    refused(bench.call("model", "pull", "base", tmp_path / "other"), CONFLICT, tmp_path / "other", "model:base@1")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("how", ["changed", "missing", "added"])
def test_verify_names_the_file(bench, tmp_path, how):
    """In the store and in a folder that was pulled."""
    store = shutil.copytree(bench.store, tmp_path / "store")
    pulled = tmp_path / "pulled"
    bench.good("model", "pull", "base", pulled)
    name = {"changed": "artifacts/checkpoints/config.yaml", "missing": "conda.yaml", "added": "code/evil.py"}[how]
    for folder in (store / "models/base/1", pulled):
        path = folder / name
        if how == "changed":
            path.write_text(path.read_text().replace("DIM_PROJECTION: 24", "DIM_PROJECTION: 25"))
        elif how == "missing":
            path.unlink()
        else:
            path.write_text("")
    refused(invoke(bench.binary, "--store", store, "model", "verify", "base@1", env=bench.env), DATA, "model:base@1", name)
    done = bench.call("model", "verify", pulled)
    assert done.returncode in (DATA, 12) and name in done.stderr.splitlines()[-1]
    if how == "changed":
        # a changed package is not imported either
        done = bench.call("model", "import", "--name", "imported", pulled)
        assert done.returncode in (DATA, 12) and name in done.stderr.splitlines()[-1]
        assert ("model", "imported") not in manifests(bench.store)


def test_model_init_is_deterministic_and_import_keeps_the_files(bench, tmp_path):
    store = tmp_path / "store"

    def call(*arguments):
        return succeed(bench.binary, "--store", store, *arguments, env=bench.env)

    def files(version):
        # all but what carries the time of the making
        timed = ("MLmodel", "README.md", "medtune-manifest.json")
        return {f["path"]: f["sha256"] for f in version["files"] if f["path"] not in timed}

    base = bench.good("model", "show", "base@1", "--json")
    call("model", "init", "--name", "same", *bench.init)
    call("model", "init", "--name", "seeded", *bench.init, "--seed", "7")
    bench.good("model", "pull", "base", tmp_path / "pulled")
    call("model", "import", "--name", "imported", tmp_path / "pulled")
    found = {entry: call("model", "show", entry, "--json") for entry in ("same", "seeded", "imported")}
    assert found["imported"]["digest"] == base["digest"]
    assert files(found["same"]) == files(base) != files(found["seeded"])
    # asked for again, each is the version that exists
    call("model", "init", "--name", "same", *bench.init)
    call("model", "import", "--name", "imported", tmp_path / "pulled")
    assert {len(versions) for versions in check_complete(store).values()} == {1}


def test_predict(bench, tmp_path):
    images = []
    for n in range(3):
        images.append(tmp_path / f"{n}.jpg")
        images[-1].write_bytes(jpeg(n))
    found = bench.good("predict", "base@1", *images, "--text", "a red one", "--json")
    assert json.dumps(found)
    text = bench.good("predict", "model:base@1", *images)
    assert text.strip()
    (tmp_path / "bad.jpg").write_bytes(jpeg(1)[:-150])
    refused(bench.call("predict", "base@1", images[0], tmp_path / "bad.jpg"), DATA, tmp_path / "bad.jpg")


def test_runs_list(bench):
    runs = bench.good("runs", "list", "--json")
    assert bench.first["run_id"] in [r["run_id"] for r in runs]
    assert [r["run_id"] for r in runs] == sorted((r["run_id"] for r in runs), reverse=True)
    assert bench.first["run_id"] in bench.good("runs", "list")


def test_store_of_option_variable_and_job(bench, tmp_path):
    """--store comes before MEDTUNE_STORE, that before the job's own; without any the error says what to do."""
    job = yaml.safe_load(bench.job.read_text()) | {"store": "own"}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))

    def missing_model(arguments=(), **variables):
        done = invoke(bench.binary, *arguments, "run", path, env=bench.env | variables, cwd="/")
        return refused(done, NOT_FOUND, "data:pictures@latest")

    other, another = tmp_path / "other", tmp_path / "another"
    assert f"{tmp_path}/own" in missing_model()
    assert str(other) in missing_model(MEDTUNE_STORE=str(other))
    assert str(another) in missing_model(["--store", another], MEDTUNE_STORE=str(other))

    # what only reads makes no store out of a typing error
    typo = tmp_path / "typo"
    for verb in (["run", path, "--dry-run"], ["model", "list"], ["data", "show", "x"], ["runs", "list"]):
        refused(invoke(bench.binary, "--store", typo, *verb, env=bench.env), NOT_FOUND, typo)
    assert not typo.exists()
    found = succeed(bench.binary, "model", "list", "--json", env=bench.env | {"MEDTUNE_STORE": f"file://{bench.store}"})
    assert [entry["name"] for entry in found] == ["base"]
    done = invoke(bench.binary, "model", "list", env=bench.env, cwd=tmp_path)
    assert done.returncode in (USAGE, CONFIG) and "--store" in done.stderr and "MEDTUNE_STORE" in done.stderr
    refused(invoke(bench.binary, "--store", "s3://bucket/x", "model", "list", env=bench.env), CONFIG, "s3")


def test_json_logging(bench, tmp_path):
    """Every line of standard error is a JSON object, also the error; results alone go to standard output."""
    done = bench.call("--log-format", "json", "run", bench.job, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["status"] == "succeeded"
    for line in done.stderr.splitlines():
        assert json.loads(line)["message"]
    done = bench.call("--log-format", "json", "run", tmp_path / "gone.yaml")
    last = json.loads(done.stderr.splitlines()[-1])
    assert done.returncode == NOT_FOUND and done.stdout == ""
    assert "gone.yaml" in json.dumps(last) and "not-found" in json.dumps(last)


def test_variables_that_are_no_text_do_no_harm(bench):
    done = invoke(bench.binary, "validate", bench.job, env=bench.env | {"ODD": b"\xff\xfe"})
    assert done.returncode == 0, done.stderr
