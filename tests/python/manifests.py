"""Rendering k8s/ as its users do, and walking through what comes out."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "kubernetes.md"
OVERLAYS = sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir())
# a panic, which is a defect
PANIC = 101


def render(overlay, folder=ROOT / "k8s"):
    """The objects of an overlay. Without kubectl this fails: scripts/setup --test installs it."""
    command = [str(ROOT / ".kubectl"), "kustomize", str(Path(folder) / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def one(objects, kind):
    """The only object of this kind."""
    [found] = [item for item in objects if item["kind"] == kind]
    return found


def named(objects, kind, name):
    """The object of this kind and name."""
    [found] = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


@dataclass
class Work:
    """Pods of one kind: what starts them, the specification of the Job if there is one, and the template."""

    owner: dict
    job: dict | None
    template: dict

    @property
    def pod(self):
        return self.template["spec"]

    @property
    def main(self):
        """The container that runs the job file."""
        [container] = self.pod["containers"]
        return container

    @property
    def containers(self):
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]


def work(objects):
    """All pods that an overlay starts."""
    found = []
    for item in objects:
        spec = item.get("spec", {})
        jobs = {
            "Job": lambda: [spec],
            "CronJob": lambda: [spec["jobTemplate"]["spec"]],
            "JobSet": lambda: [replicated["template"]["spec"] for replicated in spec["replicatedJobs"]],
        }.get(item["kind"], list)()
        found += [Work(item, job, job["template"]) for job in jobs]
        if item["kind"] == "PyTorchJob":
            found += [Work(item, None, replica["template"]) for replica in spec["pytorchReplicaSpecs"].values()]
    return found


def variables(container, objects):
    """The environment that Kubernetes gives a container: its ConfigMaps, then its own variables. Secrets are not here."""
    found = {}
    for source in container["envFrom"]:
        if "configMapRef" in source:
            found |= named(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container["env"]:
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        else:
            field = variable["valueFrom"]["resourceFieldRef"]["resource"].split(".")
            found[variable["name"]] = container["resources"][field[0]][field[1]]
    return found


def files(work, objects, name):
    """What a volume shows of a ConfigMap: {file: content}."""
    [volume] = [volume for volume in work.pod["volumes"] if volume["name"] == name]
    return named(objects, "ConfigMap", volume["configMap"]["name"])["data"]


def action(job, container, code):
    """What podFailurePolicy does when this container has ended with this code; None where no rule fits and it counts as a failure."""
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes and codes.get("containerName", container) == container and (code in codes["values"]) == (codes["operator"] == "In"):
            return rule["action"]
    return None


def documented_codes():
    """{code: may be retried} of the table in docs/exit-codes.md, without success."""
    rows = re.findall(r"^\| (\d+) \| `([a-z-]+)` \| (yes|no|-) \|", (ROOT / "docs" / "exit-codes.md").read_text(), re.M)
    return {name: (int(code), retry == "yes") for code, name, retry in rows if code != "0"}


def source_codes():
    """The same, of the source: {name: (code, may be retried)}."""
    text = (ROOT / "src" / "error.rs").read_text()
    codes = dict(re.findall(r"ErrorKind::(\w+) => (\d+),", text))
    names = dict(re.findall(r'ErrorKind::(\w+) => "([a-z-]+)",', text))
    first, after = map(int, re.search(r"\((\d+)\.\.(\d+)\)\.contains\(&self\.exit_code\(\)\)", text).groups())
    assert codes.keys() == names.keys() and codes
    return {names[kind]: (int(code), first <= int(code) < after) for kind, code in codes.items()}
