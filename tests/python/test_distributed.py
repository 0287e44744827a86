"""Several processes train what one process trains, and embed what it embeds, however they were started."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from harness import records, refused, write_tsv
from ranks import CONFIG, DATA, PEER, STEPS, Ranks, free_port, group
from training_bench import furthest

CLOSE = 1e-5


@pytest.fixture(scope="module")
def bench(binary, tmp_path_factory):
    return group(binary, tmp_path_factory)


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
        "parameters": {"batch_size": batch, "shard_rows": 12, "formats": ["npy", "pickle"]},
    }
    path = bench.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def embeddings(store):
    """The files of the only embeddings of a store."""
    [folder] = (store / "data" / "embed-embeddings").iterdir()
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_embeddings_of_several_processes(bench):
    """The same files, to the last byte; 50 rows in shards of 12 and batches of 8, so that no shard and no last batch is full."""
    made = {}
    for processes in (1, 2, 3):
        store = bench.new_store(f"embed-{processes}")
        done = bench.run(store, embed_job(bench, f"embed-{processes}", processes))
        assert done.returncode == 0, done.stderr
        made[processes] = embeddings(store)
    parts = {f"parquet/part-{part:05}.parquet" for part in range(5)}
    assert set(made[1]) == {*parts, "embeddings.npy", "embeddings.pkl", "embeddings.json"}
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
