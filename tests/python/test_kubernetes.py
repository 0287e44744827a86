"""k8s/ renders, fits the published schemas, mirrors the exit codes, and starts medtune as the documentation says."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from harness import environment, invoke, records, succeed
from kubeflow.training import models as training_models
from kubeflow_trainer_api import models as trainer_models
from manifests import DOCS, OVERLAYS, PANIC, ROOT, action, documented_codes, files, named, one, render, source_codes, variables, work
from ranks import CLEAN, free_port
from test_training import TRAINING
from training_bench import INPUTS, TEMPLATE, Bench, rows

# podFailurePolicy is stable from here on
OLDEST = "1.31"
VERSIONS = [OLDEST, ".".join(kubernetes_validate.latest_version().split(".")[:2])]
CUSTOM = ("JobSet", "PyTorchJob")
SEVERAL = ["jobset", "multi-node", "sharded-embedding"]
# of pods that no rule may name: killed, asked to stop outside of a training
SIGNALS = (130, 137, 143)
NOT_FOUND = 13


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request):
    return request.param


@pytest.fixture(scope="module")
def objects(overlay):
    return render(overlay)


# --- schemas ---


def check(item, version):
    kubernetes_validate.validate(item, version, strict=True)


def bare(kind, spec, **more):
    api = {"Job": "batch/v1", "PodTemplate": "v1"}[kind]
    return {"apiVersion": api, "kind": kind, "metadata": {"name": "any"}} | ({"spec": spec} if spec else {}) | more


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schema(objects, version):
    for item in objects:
        if item["kind"] not in CUSTOM:
            check(item, version)
    for pods in work(objects):
        if pods.job:
            check(bare("Job", pods.job), version)
        check(bare("PodTemplate", None, template=pods.template), version)


def test_the_schema_is_strict():
    job = one(render("one-gpu"), "Job")
    job["spec"]["backofLimit"] = 3
    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        check(job, OLDEST)


def test_job_set_fits_the_published_model():
    item = one(render("jobset"), "JobSet")
    model = trainer_models.JobsetV1alpha2JobSet
    # what the model does not know is lost on the way
    assert model.from_dict(item).to_dict() == item
    item["spec"]["network"]["enableDnsHostnames"] = True
    assert model.from_dict(item).to_dict() != item


def fits(item, name):
    """Checks a mapping against a model of kubeflow.training, down to what is Kubernetes' own."""
    kind = getattr(training_models, name, None)
    if name.startswith("dict("):
        for value in item.values():
            fits(value, name.removeprefix("dict(str, ").removesuffix(")"))
    elif kind:
        types = {key: kind.openapi_types[attribute] for attribute, key in kind.attribute_map.items()}
        assert item.keys() <= types.keys(), f"{name}: {item.keys() - types.keys()}"
        for key, value in item.items():
            fits(value, types[key])
    elif name in ("int", "str"):
        assert type(item).__name__ == name, (item, name)


def test_pytorch_job_fits_the_published_model():
    item = one(render("pytorchjob"), "PyTorchJob")
    fits(item, "KubeflowOrgV1PyTorchJob")
    item["spec"]["runPolicy"]["backofLimit"] = 3
    with pytest.raises(AssertionError, match="backofLimit"):
        fits(item, "KubeflowOrgV1PyTorchJob")


# --- exit codes ---


def test_rules_mirror_the_exit_codes(objects, overlay):
    assert documented_codes() == source_codes()
    for pods in work(objects):
        if overlay == "pytorchjob":
            # it has no such rules, and says so in the documentation
            assert pods.job is None
            continue
        for container in (c["name"] for c in pods.containers):
            for name, (code, retry) in source_codes().items():
                expected = None if retry else "FailJob"
                if name == "preempted" and container == pods.main["name"]:
                    expected = "Ignore"
                assert action(pods.job, container, code) == expected, (container, name)
            assert action(pods.job, container, PANIC) == "FailJob"
            assert not any(action(pods.job, container, code) for code in SIGNALS)
        # before the others: a pod that is taken away ends with whatever code
        first = pods.job["podFailurePolicy"]["rules"][0]
        assert first == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        assert "FailIndex" not in {rule["action"] for rule in pods.job["podFailurePolicy"]["rules"]}


def test_the_documentation_names_every_code():
    for code, _ in source_codes().values():
        assert re.search(rf"^\|[^|]*\b{code}\b", DOCS.read_text(), re.M), code


def test_what_may_pass_is_tried_again(objects):
    for pods in work(objects):
        kind = pods.owner["kind"]
        if kind == "PyTorchJob":
            assert pods.owner["spec"]["runPolicy"]["backoffLimit"] > 1
            assert {replica["restartPolicy"] for replica in pods.owner["spec"]["pytorchReplicaSpecs"].values()} == {"OnFailure"}
            continue
        assert pods.pod["restartPolicy"] == "Never"
        assert pods.job["podReplacementPolicy"] == "Failed"
        if kind == "JobSet":
            policy = pods.owner["spec"]["failurePolicy"]
            assert pods.job["backoffLimit"] == 0 and policy["maxRestarts"] > 1
            assert {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"], "name": "permanent"} in policy["rules"]
        elif pods.job.get("completionMode") == "Indexed":
            assert pods.job["backoffLimitPerIndex"] > 1 and pods.job["maxFailedIndexes"] == 0 and "backoffLimit" not in pods.job
        else:
            assert pods.job["backoffLimit"] > 1


# --- what every pod has ---


def test_pods_are_locked_down(objects):
    for pods in work(objects):
        security = pods.pod["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] > 0 and security["fsGroup"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pods.pod["automountServiceAccountToken"] is False and pods.pod["enableServiceLinks"] is False
        assert pods.pod["serviceAccountName"] == one(objects, "ServiceAccount")["metadata"]["name"]
        for container in pods.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def gibibytes(text):
    number, unit = re.fullmatch(r"(\d+)(Gi|GB)", text).groups()
    return int(number) * (2**30 if unit == "Gi" else 10**9) / 2**30


def test_pods_have_room_and_time(objects):
    for pods in work(objects):
        for container in pods.containers:
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert {"cpu", "memory"} <= requests.keys() and {"cpu", "memory"} <= limits.keys()
        limits = pods.main["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == pods.main["resources"]["requests"]["nvidia.com/gpu"] >= 1
        volumes = {volume["name"]: volume for volume in pods.pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pods.main["volumeMounts"]}
        memory = mounts["/dev/shm"]["emptyDir"]
        assert memory["medium"] == "Memory" and gibibytes(memory["sizeLimit"]) < gibibytes(limits["memory"])
        scratch = mounts["/scratch"]["emptyDir"]["sizeLimit"]
        env = variables(pods.main, objects)
        assert gibibytes(env["MEDTUNE_CACHE_SIZE"]) < gibibytes(scratch) < gibibytes(limits["ephemeral-storage"])
        for name in ("HOME", "TMPDIR", "MEDTUNE_WORK_DIR", "MEDTUNE_CACHE_DIR"):
            assert env[name].startswith("/scratch"), name
        # full-size checkpoints have some 10 GB
        assert pods.pod["terminationGracePeriodSeconds"] >= 300
        end = pods.owner["spec"]["runPolicy"] if pods.job is None else pods.job
        assert end["activeDeadlineSeconds"] > 3600
        assert "ttlSecondsAfterFinished" in {**end, **pods.owner["spec"]}
        assert files(pods, objects, "job")["job.yaml"]


def test_nothing_secret_is_committed(objects):
    assert "Secret" not in {item["kind"] for item in objects}
    for container in (c for pods in work(objects) for c in pods.containers):
        assert {"secretRef": {"name": "medtune-credentials", "optional": True}} in container["envFrom"]
        assert not re.search(r"KEY|TOKEN|PASSWORD|SECRET", " ".join(variables(container, objects)))


def test_nobody_else_reaches_the_pods(objects, overlay):
    closed = named(objects, "NetworkPolicy", "medtune")["spec"]
    assert closed["ingress"] == [] and closed["policyTypes"] == ["Ingress"]
    for pods in work(objects):
        assert closed["podSelector"]["matchLabels"].items() <= pods.template["metadata"]["labels"].items()
    others = [item for item in objects if item["kind"] == "NetworkPolicy" and item["metadata"]["name"] != "medtune"]
    if overlay not in (*SEVERAL, "pytorchjob"):
        assert not others
        return
    [open_to] = (item["spec"] for item in others)
    owner = work(objects)[0].owner
    label = {
        "Job": "batch.kubernetes.io/job-name",
        "JobSet": "jobset.sigs.k8s.io/jobset-name",
        "PyTorchJob": "training.kubeflow.org/job-name",
    }[owner["kind"]]
    same = {"matchLabels": {label: owner["metadata"]["name"]}}
    # egress is in no policy, so it stays open
    assert open_to == {"podSelector": same, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": same}]}]}


# --- several pods ---


@pytest.mark.parametrize("name", SEVERAL)
def test_pods_find_each_other(name):
    objects = render(name)
    [pods] = work(objects)
    job, env, owner = pods.job, variables(pods.main, objects), pods.owner["metadata"]["name"]
    assert job["completionMode"] == "Indexed"
    assert int(env["WORLD_SIZE"]) == job["completions"] == job["parallelism"] > 1
    assert env["MASTER_PORT"] == "29500" and env["GLOO_SOCKET_IFNAME"] == env["NCCL_SOCKET_IFNAME"] == "eth0"
    if pods.owner["kind"] == "JobSet":
        network = pods.owner["spec"]["network"]
        assert network["enableDNSHostnames"] and network["publishNotReadyAddresses"]
        service, first = network["subdomain"], f"{owner}-{pods.owner['spec']['replicatedJobs'][0]['name']}-0-0"
        assert pods.owner["spec"]["successPolicy"]["operator"] == "All"
        assert not [item for item in objects if item["kind"] == "Service"]
    else:
        service, first = one(objects, "Service")["metadata"]["name"], f"{owner}-0"
        spec = one(objects, "Service")["spec"]
        assert spec["clusterIP"] == "None" and spec["publishNotReadyAddresses"] is True
        assert spec["selector"] == {"batch.kubernetes.io/job-name": owner}
        assert str(spec["ports"][0]["port"]) == env["MASTER_PORT"]
    assert pods.pod["subdomain"] == service
    assert env["MASTER_ADDR"] == f"{first}.{service}" and len(first) <= 63
    compute = yaml.safe_load(files(pods, objects, "job")["job.yaml"])["compute"]
    assert compute["processes"] == "auto" and compute["join_timeout_seconds"] >= 300


def test_one_place_says_how_many_pods(tmp_path):
    """The name and the number of the overlay are the only ones to change."""
    for folder in ("base", "finetune", "indexed"):
        (tmp_path / folder).symlink_to(ROOT / "k8s" / folder)
    source = (ROOT / "k8s" / "overlays" / "multi-node" / "kustomization.yaml").read_text()
    assert source.count("value: medtune-finetune-nodes") == source.count("value: 2") == 1
    own = tmp_path / "overlays" / "own"
    own.mkdir(parents=True)
    (own / "kustomization.yaml").write_text(source.replace("medtune-finetune-nodes", "another").replace("value: 2", "value: 7"))
    objects = render("own", tmp_path)
    [pods] = work(objects)
    env = variables(pods.main, objects)
    assert (pods.job["completions"], pods.job["parallelism"], env["WORLD_SIZE"]) == (7, 7, "7")
    assert env["MASTER_ADDR"] == "another-0.another" and "finetune-nodes" not in json.dumps(objects)


def test_pytorch_job_is_told_its_rank_as_an_indexed_job():
    objects = render("pytorchjob")
    replicas = one(objects, "PyTorchJob")["spec"]["pytorchReplicaSpecs"]
    assert list(replicas) == ["Master", "Worker"] and replicas["Master"]["replicas"] == 1
    assert replicas["Master"]["template"] == replicas["Worker"]["template"]
    # the operator counts processes with it, and medtune pods
    assert "nprocPerNode" not in one(objects, "PyTorchJob")["spec"]
    for pods in work(objects):
        # the operator looks for this name
        assert pods.main["name"] == "pytorch"
        assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} & variables(pods.main, objects).keys()
        command = pods.main["command"]
        assert command == ["tini", "--", "env", "-u", "RANK", "JOB_COMPLETION_INDEX=$(RANK)", "medtune"]
        told = [part.replace("$(RANK)", "3") for part in command[2:-1]]
        said = subprocess.run([*told, "env"], capture_output=True, text=True, env={"RANK": "3", "PATH": os.environ["PATH"]}, check=True).stdout
        assert "\nJOB_COMPLETION_INDEX=3\n" in f"\n{said}" and "\nRANK=" not in f"\n{said}"


def test_one_job_at_a_time_every_night():
    job = one(render("cron"), "CronJob")["spec"]
    assert job["concurrencyPolicy"] == "Forbid" and job["timeZone"]
    assert job["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 24 * 3600


def test_workload_identities_of_the_documentation(tmp_path):
    """Each example, put into the base, reaches the pods of a CronJob too."""
    examples = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.S)]
    assert len(examples) == 3
    for n, example in enumerate(examples):
        shutil.copytree(ROOT / "k8s", tmp_path / str(n))
        base = tmp_path / str(n) / "base" / "kustomization.yaml"
        base.write_text(yaml.safe_dump(yaml.safe_load(base.read_text()) | example))
        objects = render("cron", tmp_path / str(n))
        account = one(objects, "ServiceAccount")
        check(account, OLDEST)
        [annotation] = account["metadata"]["annotations"]
        if annotation.startswith("azure"):
            assert work(objects)[0].template["metadata"]["labels"]["azure.workload.identity/use"] == "true"


# --- what they run ---


class Pod:
    """A folder in place of a pod's volumes, and the variables that name it."""

    def __init__(self, folder, pods, objects, store):
        self.folder = Path(folder)
        for name in ("scratch", "job", "models"):
            (self.folder / name).mkdir(parents=True)
        for name, content in files(pods, objects, "job").items():
            (self.folder / "job" / name).write_text(content)
        env = {name: self.path(value) for name, value in variables(pods.main, objects).items()}
        # without credentials of a cloud
        self.env = environment() | env | {"MEDTUNE_STORE": str(store), "OMP_NUM_THREADS": "1"}

    def path(self, text):
        return re.sub(r"^/(scratch|job|models)\b", lambda found: str(self.folder / found[1]), text)


def test_job_files_and_commands_are_right(objects, binary, core_binary, tmp_path):
    """They run up to where inputs are looked for, which this store lacks."""
    (tmp_path / "other.txt").write_text("x")
    succeed(core_binary, "--store", tmp_path / "store", "data", "register", "--name", "other", tmp_path / "other.txt")
    for n, pods in enumerate(work(objects)):
        pod = Pod(tmp_path / str(n), pods, objects, tmp_path / "store")
        for name in ("RANK", "WORLD_SIZE"):
            pod.env.pop(name, None)
        done = invoke(binary, "validate", pod.folder / "job" / "job.yaml", env=pod.env)
        assert done.returncode == 0, done.stderr
        done = invoke(binary, *map(pod.path, pods.main["args"]), "--dry-run", env=pod.env)
        inputs = yaml.safe_load(files(pods, objects, "job")["job.yaml"])["inputs"]
        assert done.returncode == NOT_FOUND and any(f"input {name}: " in done.stderr for name in inputs), done.stderr
        for container in pods.pod.get("initContainers", []):
            assert container["command"] == ["tini", "--", "medtune-core"]
            done = invoke(core_binary, *map(pod.path, container["args"]), env=pod.env)
            assert done.returncode == NOT_FOUND and "own-embedding-model" in done.stderr, done.stderr
            # it puts the model where the job file looks for it
            assert inputs["mlflow_model_path"] == container["args"][-1]


@pytest.fixture(scope="module")
def bench(binary, tmp_path_factory):
    for name in CLEAN:
        os.environ.pop(name, None)
    return Bench(binary, tmp_path_factory.mktemp("pods"), TRAINING, rows(50, 1, tint=120))


def test_two_pods_train(bench):
    """The command, job file and environment of the rendered manifest, started by hand as Kubernetes starts two pods."""
    objects = render("multi-node")
    [pods] = work(objects)
    assert variables(pods.main, objects)["WORLD_SIZE"] == "2"
    store, port, processes = bench.new_store("pods-store"), free_port(), []
    changes = {f"inputs.{name}": str(bench.folder / path) for name, path in INPUTS.items() if name not in ("mlflow_model_path", "conf_files")}
    changes |= {
        # no GPU here, and a model of a few thousand weights
        "compute": {"device": "cpu", "threads": 1, "processes": "auto", "peer_timeout_seconds": 60},
        "parameters": {"prompt_templates": [TEMPLATE], "precision": "f32", "training": {"MAX_NUM_EPOCHS": 3, "TRAIN.BATCH_SIZE_TOTAL": 24}},
    }
    overrides = [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    for index in range(2):
        pod = Pod(bench.folder / f"pod-{index}", pods, objects, store)
        # set by Kubernetes; the network of one machine
        told = {"JOB_COMPLETION_INDEX": str(index), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        told |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        command = [str(bench.binary), *map(pod.path, pods.main["args"]), *overrides]
        log = open(pod.folder / "log", "w")
        processes.append((pod, subprocess.Popen(command, env=pod.env | told, stdout=subprocess.DEVNULL, stderr=log)))
        log.close()
    try:
        codes = [process.wait(120) for _, process in processes]
    finally:
        for _, process in processes:
            process.kill()
    said = [(pod.folder / "log").read_text() for pod, _ in processes]
    assert codes == [0, 0], said
    # MEDTUNE_LOG_FORMAT of the settings
    assert all(json.loads(line) for text in said for line in text.splitlines())
    [record] = records(store).values()
    assert record["status"] == "succeeded", record
    steps = [json.loads(line) for path in store.glob("data/own-training/1/metrics.jsonl") for line in path.read_text().splitlines()]
    assert steps[-1]["step"] == 6
    assert list(store.glob("models/own-embedding-model/1/MLmodel"))
