"""Processes that train together, started in every way: what the tests of several processes share."""

import os
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import yaml
from test_training import TRAINING as BASE
from training_bench import Bench, merged, rows

CONFIG, DATA, PREEMPTED, PEER = 10, 11, 23, 24
STEPS = 30
# everything that several processes could get wrong: accumulation, clipping, frozen parameters, recomputed activations, drop path,
# an order and images that are drawn, and averages
TRAINING = merged(
    BASE,
    {
        "MAX_NUM_EPOCHS": 15,
        "EVAL_PER_OPTIM_STEPS": 10,
        "TRAIN": {"BATCH_SIZE_TOTAL": 24, "BATCH_SIZE_PER_GPU": 12, "SHUFFLE": True},
        "AUG": {"SCALE": [0.5, 1.0], "TORCHVISION_AUG": {"HFLIP": 0.5}},
        "IMAGE_ENCODER": {"SPEC": {"DROP_PATH_RATE": 0.2, "ENABLE_CHECKPOINT": True}},
        "KNN": None,
    },
)
# what the others must not take for their own
CLEAN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "JOB_COMPLETION_INDEX", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class Group(Bench):
    """The same job for several processes."""

    def job(self, name="job", processes=1, timeout=30, **parameters):
        path = super().job(name, **parameters)
        job = yaml.safe_load(path.read_text())
        job["compute"] |= {"processes": processes, "peer_timeout_seconds": timeout, "join_timeout_seconds": max(timeout, 20)}
        path.write_text(yaml.safe_dump(job, sort_keys=False))
        return path

    def shared(self, store, processes, size, **parameters):
        """The result of a run of several processes with this many rows in a forward pass of each."""
        parameters["training"] = {"TRAIN.BATCH_SIZE_PER_GPU": size} | parameters.get("training", {})
        done = self.run(store, self.job(store.name, processes, **parameters))
        assert done.returncode == 0, done.stderr
        return self.result(store), done.stderr


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Ranks:
    """Processes that were started by hand, each told its rank as `name` says, and by the command of its host if there are any."""

    def __init__(self, bench, store, jobs, name="RANK", hosts=None, **extra):
        port, self.processes, self.logs = free_port(), [], []
        for rank, job in enumerate(jobs):
            env = bench.env | {name: str(rank), "WORLD_SIZE": str(len(jobs)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            host, its = hosts[rank] if hosts else ([], {})
            self.logs.append(bench.folder / f"{store.name}-{rank}.log")
            command = [*host, bench.binary, "--store", store, "run", job]
            with open(self.logs[-1], "w") as log:
                process = subprocess.Popen(list(map(str, command)), env=env | its | extra, stdout=subprocess.DEVNULL, stderr=log)
            self.processes.append(process)

    def saw(self, rank, text, limit=60):
        """Waits until a rank has said this."""
        deadline = time.monotonic() + limit
        while text not in self.logs[rank].read_text():
            assert time.monotonic() < deadline and self.processes[rank].poll() is None, self.logs[rank].read_text()
            time.sleep(0.02)

    def wait(self, limit=120):
        """The exit codes and what was said, by rank; all processes end within the limit."""
        deadline = time.monotonic() + limit
        try:
            codes = [process.wait(max(deadline - time.monotonic(), 0.1)) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return codes, [log.read_text() for log in self.logs]


def gone(pids):
    """Whether all of these processes have ended, be they waited for or not."""

    def ended(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    return all(map(ended, pids))


def workers(parent):
    """{rank: process id} of the processes that a medtune has started."""
    found = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError, StopIteration):
            status = (folder / "status").read_text()
            if f"\nPPid:\t{parent}\n" not in status:
                continue
            variables = (folder / "environ").read_text().split("\0")
            found[int(next(v.removeprefix("RANK=") for v in variables if v.startswith("RANK=")))] = int(folder.name)
    return found


def saving(bench, name, processes, size, timeout=30):
    """A job that saves a checkpoint often."""
    changes = {"TRAIN.BATCH_SIZE_PER_GPU": size, "SAVE_PER_OPTIM_STEPS": 3}
    return bench.job(name, processes, timeout, contrastive_batch="total", training=changes)


def started(events, step):
    """Waits until a checkpoint of this step or a later one is complete."""
    assert events.when(lambda line: line.get("message") == "checkpoint complete" and line["step"] >= step), events.seen[-5:]


def group(binary, tmp_path_factory):
    """A `Group` whose processes are told nothing by the environment of the tests."""
    for name in CLEAN:
        os.environ.pop(name, None)
    return Group(binary, tmp_path_factory.mktemp("distributed"), TRAINING, rows(50, 1, tint=120))
