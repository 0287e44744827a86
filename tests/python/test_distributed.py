"""Several processes train what one process trains, however they were started, and none of them is waited for in vain."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from harness import records, refused, write_tsv
from test_training import TRAINING as BASE
from training_bench import Bench, furthest, merged, rows

CONFIG, DATA, PREEMPTED, PEER = 10, 11, 23, 24
STEPS = 30
CLOSE = 1e-5
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


@pytest.fixture(scope="module")
def bench(binary, tmp_path_factory):
    for name in CLEAN:
        os.environ.pop(name, None)
    return Group(binary, tmp_path_factory.mktemp("distributed"), TRAINING, rows(50, 1, tint=120))


@pytest.fixture(scope="module")
def alone(bench):
    """What one process makes of the same rows, 12 in a forward pass."""
    return bench.shared(bench.new_store("alone"), 1, 12)[0]


@pytest.fixture(scope="module")
def both(bench):
    """What two processes make of them, with 6 in a forward pass of each; and what they said."""
    return bench.shared(bench.new_store("both"), 2, 6)


def check_close(found, expected):
    """Losses, accuracies and weights of two results up to rounding."""
    steps, others = found.steps(), expected.steps()
    assert list(steps) == list(others) == list(range(1, STEPS + 1))
    for step, line in steps.items():
        assert line["loss"] == pytest.approx(others[step]["loss"], rel=CLOSE), step
        assert line["lr"] == others[step]["lr"]
    evaluations = [[line["evaluation"] for line in result.series() if "evaluation" in line] for result in (found, expected)]
    assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 3
    distance, name = furthest(found.weights("last"), expected.weights("last"))
    print(f"furthest: {name} by {distance:.1e}")
    assert distance < CLOSE, name


def bits(result):
    """Everything that a training computed."""
    return {path.name: path.read_bytes() for path in result.save_dir.glob("*.safetensors")}


def test_two_processes_train_what_one_trains(both, alone):
    check_close(both[0], alone)


def test_four_processes_train_what_one_trains(bench, alone):
    check_close(bench.shared(bench.new_store("four"), 4, 3)[0], alone)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_contrast_of_a_whole_step(bench, processes):
    """The size of forward passes does not matter then, nor do mixed images."""
    extra = {"contrastive_batch": "total", "training": {"AUG.MIXUP_PROB": 0.5}}
    names = [f"total-{processes}-{n}" for n in (1, processes)]
    one, several = (bench.shared(bench.new_store(name), n, 4, **extra)[0] for name, n in zip(names, (1, processes), strict=True))
    check_close(several, one)


def test_all_processes_end_with_the_same_bits(bench, both):
    """Each says what it has computed itself; the log of the second is beside the run record."""
    [run] = records(bench.folder / "both")
    [log] = (bench.folder / "both" / "runs" / run).glob("rank-*.log")
    assert log.name == "rank-1.log"
    said = [re.findall(r"sha256=\S*?([0-9a-f]{64})", text) for text in (both[1], log.read_text())]
    # after the first step, and at the end
    assert len(said[0]) == 2 and said[0] == said[1]


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


def test_as_pods_of_an_indexed_job(bench, both):
    store = bench.new_store("indexed")
    job = bench.job("indexed", training={"TRAIN.BATCH_SIZE_PER_GPU": 6})
    codes, said = Ranks(bench, store, [job, job], "JOB_COMPLETION_INDEX", GLOO_SOCKET_IFNAME="lo").wait()
    assert codes == [0, 0], said
    assert bits(bench.result(store)) == bits(both[0])
    [run] = records(store)
    log = (store / "runs" / run / "rank-1.log").read_text()
    assert "all processes have the same weights" in log and log in said[1], log


def test_pods_that_start_several(bench, alone):
    """Two pods of two processes each are four ranks; each has its log, also those that a pod's first process started."""
    store = bench.new_store("pods")
    job = bench.job("pods", 2, training={"TRAIN.BATCH_SIZE_PER_GPU": 3})
    codes, said = Ranks(bench, store, [job, job], "JOB_COMPLETION_INDEX", GLOO_SOCKET_IFNAME="lo").wait()
    assert codes == [0, 0], said
    check_close(bench.result(store), alone)
    [run] = records(store)
    assert {path.name for path in (store / "runs" / run).glob("rank-*.log")} == {f"rank-{n}.log" for n in (1, 2, 3)}


def test_pods_of_which_one_is_killed(bench):
    """The other pod ends with all that it started, and says which rank it was."""
    store = bench.new_store("pod-killed")
    job = saving(bench, "pod-killed", 2, 3)
    ranks = Ranks(bench, store, [job, job], "JOB_COMPLETION_INDEX", GLOO_SOCKET_IFNAME="lo")
    ranks.saw(0, "checkpoint complete")
    started = [workers(process.pid) for process in ranks.processes]
    assert [sorted(pod) for pod in started] == [[0, 1], [2, 3]]
    os.kill(started[1][3], signal.SIGKILL)
    codes, said = ranks.wait(60)
    assert codes == [PEER, PEER], said
    assert "rank 3" in said[0].splitlines()[-1] and "rank 3" in said[1].splitlines()[-1], said
    assert gone([*started[0].values(), *started[1].values()])


def test_pods_that_start_unlike_numbers(bench):
    """One pod starts two processes, the other is one itself: they do not make up two worlds, and it is said which they are."""
    store = bench.new_store("unlike")
    jobs = [bench.job("unlike-2", 2, timeout=10), bench.job("unlike-1", 1, timeout=10)]
    codes, said = Ranks(bench, store, jobs, "JOB_COMPLETION_INDEX", GLOO_SOCKET_IFNAME="lo").wait()
    assert codes[1] == CONFIG and "rank 0 is one of 4, rank 1 one of 2" in said[1].splitlines()[-1], said
    assert codes[0] == PEER and "nobody came as rank 2 3" in said[0], said


def test_other_buckets_are_refused(bench):
    """They would add up gradients of different parameters."""
    store = bench.new_store("buckets")
    job = bench.job("buckets-25", timeout=10)
    other = bench.folder / "other-buckets" / job.name
    other.parent.mkdir()
    document = yaml.safe_load(job.read_text())
    document["compute"]["bucket_cap_mb"] = 1
    other.write_text(yaml.safe_dump(document))
    codes, said = Ranks(bench, store, [job, other], GLOO_SOCKET_IFNAME="lo").wait()
    assert codes == [CONFIG, CONFIG] and "another job file" in said[0].splitlines()[-1], said


def test_one_process_a_gpu_is_one_without(bench):
    store = bench.new_store("auto")
    path = bench.job("auto", "auto", training={"MAX_NUM_EPOCHS": 1})
    path.write_text(path.read_text().replace("device: cpu", "device: auto"))
    done = bench.run(store, path)
    assert done.returncode == 0 and "joined the other processes" not in done.stderr, done.stderr
    assert len(bench.result(store).steps()) == 2


def embed_job(bench, name, processes, batch=8):
    """Path of a job that embeds the training images with the base model."""
    job = {
        "version": 1,
        "kind": "Embed",
        "name": "embed",
        "compute": {"device": "cpu", "threads": 1, "processes": processes, "peer_timeout_seconds": 20},
        "inputs": {"image_tsv": "train_images.tsv", "mlflow_model_path": "model:base@latest"},
        "parameters": {"batch_size": batch},
    }
    path = bench.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def embeddings(store):
    """The files of the only embeddings of a store."""
    [folder] = (store / "data" / "embed-embeddings").iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_embeddings_of_several_processes(bench):
    """The same files, to the last byte; 50 rows in batches of 8, so that the last round and its last batch are not full."""
    made = {}
    for processes in (1, 2, 3):
        store = bench.new_store(f"embed-{processes}")
        done = bench.run(store, embed_job(bench, f"embed-{processes}", processes))
        assert done.returncode == 0, done.stderr
        made[processes] = embeddings(store)
    assert set(made[1]) == {"embeddings.parquet", "embeddings.npy", "embeddings.pkl", "embeddings.json"}
    assert made[1] == made[2] == made[3]


def test_neighbours_are_looked_for_by_all(bench):
    """4 processes and 9 validation images, each with its part of them: the accuracies of one process."""
    accuracies = {}
    for processes, size in ((1, 12), (4, 3)):
        extra = {"MAX_NUM_EPOCHS": 1, "EVALDATASET_NEIGHBOURS.KNN": 5, "EVAL_AT_START": True, "TRAIN.BATCH_SIZE_PER_GPU": size}
        store = bench.new_store(f"neighbours-{processes}")
        done = bench.run(store, bench.job(f"neighbours-{processes}", processes, training=extra))
        assert done.returncode == 0, done.stderr
        accuracies[processes] = [line["evaluation"] for line in bench.result(store).series() if "evaluation" in line]
    assert accuracies[1] == accuracies[4] and all(a["knn"] is not None for a in accuracies[1]), accuracies


def test_an_image_that_cannot_be_embedded(bench):
    """Found by the second process: both end with the same error, and nothing is published."""
    store, folder = bench.new_store("embed-bad"), bench.folder / "embed-bad-rows"
    folder.mkdir()
    bad = 8 + 3
    content = [(key, data[: len(data) // 2] if n == bad else data) for n, (key, data, _) in enumerate(bench.train)]
    write_tsv(folder / "train_images.tsv", content)
    path = folder / "job.yaml"
    path.write_text(embed_job(bench, "embed-bad", 2).read_text())
    refused(bench.run(store, path), DATA, bench.train[bad][0])
    assert not (store / "data").exists()


def test_started_by_torchrun(bench, both):
    store = bench.new_store("torchrun")
    job = bench.job("torchrun", training={"TRAIN.BATCH_SIZE_PER_GPU": 6})
    torchrun = [Path(sys.executable).with_name("torchrun"), "--nproc-per-node", "2", "--master-port", free_port(), "--no-python"]
    command = [*torchrun, bench.binary, "--store", store, "run", job]
    done = subprocess.run(list(map(str, command)), env=bench.env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert bits(bench.result(store)) == bits(both[0])


def gone(pids):
    """Whether all of these processes have ended, be they waited for or not."""

    def ended(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    return all(map(ended, pids))


class Hosts:
    """Two network namespaces that a cable joins."""

    def __init__(self):
        self.keepers = [subprocess.Popen(["unshare", "--net", "sleep", "600"]) for _ in range(2)]
        self.links = [f"mt{os.getpid() % 100_000}{side}" for side in "ab"]
        home = os.readlink("/proc/self/ns/net")
        while any(os.readlink(f"/proc/{keeper.pid}/ns/net") == home for keeper in self.keepers):
            time.sleep(0.01)
        self.ip("link", "add", self.links[0], "type", "veth", "peer", "name", self.links[1])
        for n, (keeper, link) in enumerate(zip(self.keepers, self.links, strict=True)):
            self.ip("link", "set", link, "netns", keeper.pid)
            self.ip("addr", "add", f"10.77.0.{n + 1}/24", "dev", link, on=n)
            self.ip("link", "set", "lo", "up", on=n)
            self.ip("link", "set", link, "up", on=n)

    def command(self, n):
        return ["nsenter", "--net", "-t", str(self.keepers[n].pid)]

    def ip(self, *arguments, on=None):
        command = [] if on is None else self.command(on)
        subprocess.run([*command, "ip", *map(str, arguments)], check=True, timeout=20)

    def ranks(self):
        """For each host its command, and what its process is told."""
        return [(self.command(n), {"MASTER_ADDR": "10.77.0.1", "GLOO_SOCKET_IFNAME": link}) for n, link in enumerate(self.links)]

    def cable(self, state):
        self.ip("link", "set", self.links[0], state, on=0)

    def close(self):
        # the cable goes with the namespaces
        for keeper in self.keepers:
            keeper.kill()
            keeper.wait()


def test_two_hosts_whose_link_is_cut(bench):
    """Both end in bounded time and say why; when the link is there again, the job goes on and ends."""
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("only root can make network namespaces")
    hosts = Hosts()
    try:
        store = bench.new_store("hosts")
        changes = {"MAX_NUM_EPOCHS": 40, "SAVE_PER_OPTIM_STEPS": 3, "EVAL_PER_OPTIM_STEPS": 0}
        job = bench.job("hosts", timeout=6, training=changes)
        ranks = Ranks(bench, store, [job, job], hosts=hosts.ranks())
        ranks.saw(0, "checkpoint complete")
        hosts.cable("down")
        begun = time.monotonic()
        codes, said = ranks.wait(60)
        print(f"both ended {time.monotonic() - begun:.1f} s after the cut: {[text.splitlines()[-1] for text in said]}")
        assert codes == [PEER, PEER], said
        assert "rank 1 is gone or cut off" in said[0].splitlines()[-1] and "rank 0 is gone or cut off" in said[1].splitlines()[-1], said
        hosts.cable("up")
        codes, said = Ranks(bench, store, [job, job], hosts=hosts.ranks()).wait()
        assert codes == [0, 0] and "resuming from a checkpoint" in said[0], said
        assert list(bench.result(store).steps()) == list(range(1, 81))
    finally:
        hosts.close()


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


@pytest.fixture(scope="module")
def calm(bench):
    store = bench.new_store("calm")
    done = bench.run(store, saving(bench, "calm", 1, 4))
    assert done.returncode == 0, done.stderr
    return bench.result(store)


def reached_the_same(result, calm):
    steps, others = result.steps(), calm.steps()
    assert list(steps) == list(others)
    assert steps[STEPS]["loss"] == pytest.approx(others[STEPS]["loss"], rel=1e-4)


def started(events, step):
    """Waits until a checkpoint of this step or a later one is complete."""
    assert events.when(lambda line: line.get("message") == "checkpoint complete" and line["step"] >= step), events.seen[-5:]


@pytest.mark.parametrize("turn", range(10))
def test_a_rank_that_is_killed(bench, calm, turn):
    """Whichever it is, all end, soon and with one error, and the job goes on with as many processes as there are then."""
    chance = random.Random(turn)
    rank, later = turn % 2, 1 + (turn // 2) % 2
    store = bench.new_store(f"killed-{turn}")
    events = bench.start(store, saving(bench, f"killed-{turn}", 2, 4))
    started(events, 3 * chance.randint(1, 5))
    time.sleep(chance.random() * 0.3)
    ranks = workers(events.process.pid)
    begun = time.monotonic()
    os.kill(ranks[rank], signal.SIGKILL)
    assert events.finish() == PEER, events.seen[-5:]
    assert time.monotonic() - begun < 20
    errors = [line["message"] for line in events.seen if line.get("kind") == "peer"]
    assert errors and f"rank {rank}" in errors[-1], events.seen[-5:]
    assert gone(ranks.values())
    done = bench.run(store, saving(bench, f"killed-{turn}", later, 4))
    assert done.returncode == 0 and "resuming from a checkpoint" in done.stderr, done.stderr
    reached_the_same(bench.result(store), calm)


def test_one_process_is_followed_by_two(bench, calm):
    store = bench.new_store("grown")
    events = bench.start(store, saving(bench, "grown", 1, 4))
    started(events, 6)
    events.process.kill()
    events.finish()
    done = bench.run(store, saving(bench, "grown", 2, 4))
    assert done.returncode == 0 and "resuming from a checkpoint" in done.stderr, done.stderr
    reached_the_same(bench.result(store), calm)


@pytest.mark.parametrize("whom", ["all", "one"])
def test_asked_to_stop(bench, calm, whom):
    """A signal to the program, or to one rank: all finish the same step, save, and go on there later."""
    store = bench.new_store(f"stopped-{whom}")
    events = bench.start(store, saving(bench, f"stopped-{whom}", 2, 4))
    started(events, 3)
    os.kill(events.process.pid if whom == "all" else workers(events.process.pid)[1], signal.SIGTERM)
    assert events.finish() == PREEMPTED, events.seen[-5:]
    done = bench.run(store, saving(bench, f"stopped-{whom}", 2, 4))
    assert done.returncode == 0 and "resuming from a checkpoint" in done.stderr, done.stderr
    reached_the_same(bench.result(store), calm)


def test_a_rank_that_hangs(bench):
    store = bench.new_store("hanging")
    events = bench.start(store, saving(bench, "hanging", 2, 4, timeout=5))
    started(events, 3)
    ranks = workers(events.process.pid)
    begun = time.monotonic()
    os.kill(ranks[1], signal.SIGSTOP)
    assert events.finish() == PEER, events.seen[-5:]
    assert time.monotonic() - begun < 40
    assert "rank 1" in [line["message"] for line in events.seen if line.get("kind") == "peer"][-1]
    assert gone(ranks.values())


def test_the_parent_is_killed(bench):
    events = bench.start(bench.new_store("orphans"), saving(bench, "orphans", 2, 4))
    started(events, 3)
    ranks = workers(events.process.pid)
    events.kill()
    deadline = time.monotonic() + 20
    while not gone(ranks.values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gone(ranks.values())


def test_an_error_of_one_rank_is_that_of_all(bench):
    """One process is given other images than rank 0."""
    store = bench.new_store("other-images")
    job, other = (yaml.safe_load(bench.job(name, timeout=10).read_text()) for name in ("same", "same"))
    other["inputs"] = other["inputs"] | {"image_tsv": "eval_images.tsv"}
    paths = []
    for n, content in enumerate((job, other)):
        folder = bench.folder / f"machine-{n}"
        folder.mkdir()
        for path in bench.folder.glob("*.[tly]*"):
            if path.is_file():
                (folder / path.name).symlink_to(path)
        paths.append(folder / "same-job.yaml")
        paths[-1].write_text(yaml.safe_dump(job))
    target = paths[1].with_name("train_images.tsv")
    target.unlink()
    target.symlink_to(bench.folder / "eval_images.tsv")
    codes, said = Ranks(bench, store, paths, GLOO_SOCKET_IFNAME="lo").wait()
    assert codes == [DATA, DATA], said
    assert "rank 1" in said[0].splitlines()[-1] and "image_tsv" in said[0].splitlines()[-1], said
    # another job altogether
    paths[1].write_text(yaml.safe_dump(other))
    codes, said = Ranks(bench, store, paths, GLOO_SOCKET_IFNAME="lo").wait()
    assert codes == [CONFIG, CONFIG] and "another job" in said[0].splitlines()[-1], said


@pytest.mark.parametrize("rank", [0, 1])
def test_an_image_that_cannot_be_read(bench, rank):
    """Found in the middle of a step by one process: the other ends with the same error, which is for good."""
    store = bench.new_store(f"bad-image-{rank}")
    folder = bench.folder / f"with-bad-image-{rank}"
    folder.mkdir()
    # rows are in order: 12 in each process and step; one of the second step of this rank
    bad = 24 + 12 * rank + 3
    content = [(key, data[: len(data) // 2] if n == bad else data) for n, (key, data, _) in enumerate(bench.train)]
    write_tsv(folder / "train_images.tsv", content)
    for path in [*bench.folder.glob("*_texts.tsv"), *bench.folder.glob("eval_images.tsv"), *bench.folder.glob("labels.txt"), *bench.folder.glob("train.yaml")]:
        (folder / path.name).symlink_to(path)
    job = yaml.safe_load(bench.job("bad-image", timeout=20, training={"TRAIN.SHUFFLE": False}).read_text())
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    codes, said = Ranks(bench, store, [path, path], GLOO_SOCKET_IFNAME="lo").wait()
    assert codes == [DATA, DATA], said
    assert all(bench.train[bad][0] in text.splitlines()[-1] for text in said), said


def test_other_rows_a_step_are_no_continuation(bench):
    """Where the processes do not share a step evenly, its size depends on how many they are."""
    store = bench.new_store("uneven")

    def job(name, processes):
        changes = {"TRAIN.BATCH_SIZE_TOTAL": 25, "TRAIN.BATCH_SIZE_PER_GPU": 25, "SAVE_PER_OPTIM_STEPS": 3}
        return bench.job(name, processes, training=changes)

    events = bench.start(store, job("uneven", 2))
    started(events, 3)
    os.kill(events.process.pid, signal.SIGTERM)
    assert events.finish() == PREEMPTED, events.seen[-5:]
    refused(bench.run(store, job("uneven", 1)), CONFIG, "24 rows a step", "takes 25")
    done = bench.run(store, job("uneven", 2))
    assert done.returncode == 0 and "resuming from a checkpoint" in done.stderr, done.stderr


def test_nobody_comes(bench):
    job = bench.job("nobody", timeout=5)
    env = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    begun = time.monotonic()
    done = subprocess.run([str(bench.binary), "--store", str(bench.new_store("nobody")), "run", str(job)], env=bench.env | env, capture_output=True, text=True, timeout=120)
    refused(done, PEER, "rank 1 of 2", env["MASTER_PORT"])
    assert time.monotonic() - begun < 40


def test_bad_numbers_are_refused(bench):
    store = bench.new_store("bad")
    refused(bench.run(store, bench.job("bad", processes=0)), CONFIG, "compute.processes")
    refused(bench.run(store, bench.job("bad", timeout=1)), CONFIG, "compute.peer_timeout_seconds")
    many = bench.job("bad", processes=2, training={"TRAIN.BATCH_SIZE_TOTAL": 24, "TRAIN.BATCH_SIZE_PER_GPU": 20})
    done = bench.run(store, many)
    assert done.returncode == 0 and "it takes 12" in done.stderr, done.stderr
    done = subprocess.run([str(bench.binary), "--store", str(store), "run", str(bench.job("bad"))], env=bench.env | {"RANK": "0"}, capture_output=True, text=True)
    refused(done, CONFIG, "WORLD_SIZE")


def test_the_plan_knows_of_the_processes(bench):
    job = bench.job("plan", processes=2, training={"TRAIN.BATCH_SIZE_PER_GPU": 6})
    done = subprocess.run([str(bench.binary), "--store", str(bench.new_store("plan")), "run", str(job), "--dry-run", "--json"], env=bench.env, capture_output=True, text=True, check=True)
    [step] = json.loads(done.stdout)
    assert (step["estimate"]["steps"]["passes_a_step"], step["estimate"]["steps"]["rows_a_step"]) == (2, 24)
