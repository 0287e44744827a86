"""Of several processes one is lost, stopped or wrong: none is waited for in vain, all say why, and the job goes on later."""

import os
import random
import signal
import subprocess
import time

import pytest
import yaml
from harness import refused, write_tsv
from ranks import CONFIG, DATA, PEER, PREEMPTED, STEPS, Ranks, free_port, gone, group, saving, started, workers


@pytest.fixture(scope="module")
def bench(binary, tmp_path_factory):
    return group(binary, tmp_path_factory)


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
    # torch goes on trying for a while after the time it is given
    assert time.monotonic() - begun < 100
