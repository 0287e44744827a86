"""What scripts/bench-communication runs: the same training by one process and by two, in turn, in a network of its own."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from bench_compare import TRAINING, photographs
from measure import require
from safetensors import safe_open

BATCH = 16
# a model with as much to compute for a parameter as the full one has at its full image size
MODEL = {
    "IMAGE_ENCODER": {
        "IMAGE_SIZE": [224, 224],
        "IMAGE_MEAN": [0.485, 0.456, 0.406],
        "IMAGE_STD": [0.229, 0.224, 0.225],
        "SPEC": {
            "DROP_PATH_RATE": 0.1,
            "PATCH_SIZE": [7, 3, 3, 3],
            "PATCH_STRIDE": [4, 2, 2, 2],
            "PATCH_PADDING": [3, 1, 1, 1],
            "PATCH_PRENORM": [False, True, True, True],
            "DIM_EMBED": [64, 128, 256, 512],
            "NUM_HEADS": [2, 4, 8, 16],
            "NUM_GROUPS": [2, 4, 8, 16],
            "DEPTHS": [1, 1, 3, 1],
            "WINDOW_SIZE": 7,
        },
    },
    "LANG_ENCODER": {"CONTEXT_LENGTH": 32, "WIDTH": 256, "HEADS": 8, "LAYERS": 4, "AUTOGRESSIVE": False},
    "UNICL_MODEL": {"DIM_PROJECTION": 256},
}
# larger than all gradients: nothing is sent before the backward pass has ended
ONE_BUCKET = 65_536
KINDS = {
    "1 process of 2 threads": {"processes": 1, "threads": 2},
    "2 processes of 1 thread": {"processes": 2, "threads": 1},
    "the same, nothing sent early": {"processes": 2, "threads": 1, "bucket_cap_mb": ONE_BUCKET},
}


class Network:
    """A network of one machine, where nobody else sends."""

    def __init__(self):
        self.keeper = subprocess.Popen(["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 86400"], stdout=subprocess.PIPE, text=True)
        require(self.keeper.stdout.readline() == "up\n", "no network namespace can be made here: run this as root")
        self.enter = ["nsenter", "--user", "--preserve-credentials", "--net", "-t", str(self.keeper.pid)]

    def sent(self):
        """Bytes that went over the loopback interface so far."""
        lines = subprocess.run([*self.enter, "cat", "/proc/net/dev"], capture_output=True, text=True, check=True).stdout.splitlines()
        [line] = [line for line in lines if line.split(":")[0].strip() == "lo"]
        return int(line.split(":")[1].split()[8])

    def limit(self, rate):
        """Lets no more than `rate`, such as 1gbit, go over the interface, both directions together."""
        subprocess.run([*self.enter, "tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", rate, "burst", "2mb", "latency", "200ms"], check=True)

    def close(self):
        self.keeper.kill()
        self.keeper.wait()


class Trainings:
    """The same training, by several programs."""

    def __init__(self, medtune, folder, network):
        self.medtune, self.folder, self.network = medtune, folder, network
        (folder / "model.yaml").write_text(yaml.safe_dump(MODEL))
        init = ["model", "init", "--name", "bench", "--config", str(folder / "model.yaml"), "--label-texts", str(folder / "labels.txt")]
        subprocess.run([medtune, "--store", str(folder / "base"), *init], stdout=subprocess.PIPE, check=True)

    def run(self, compute, steps):
        """Seconds of a step, the quickest few, and the bytes sent in all."""
        store = self.folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(self.folder / "base", store)
        photographs(self.folder, BATCH * steps)
        training = yaml.safe_load(TRAINING) | {"LOG_EVERY": 2, "FP16": False}
        training["TRAIN"] = {"BATCH_SIZE_TOTAL": BATCH, "BATCH_SIZE_PER_GPU": BATCH // compute["processes"], "SHUFFLE": False}
        (self.folder / "train.yaml").write_text(yaml.safe_dump(training))
        inputs = {"mlflow_model_path": "model:bench@latest", "label_file": "labels.txt", "conf_files": "train.yaml"}
        inputs |= {"image_tsv": "images.tsv", "text_tsv": "texts.tsv", "eval_image_tsv": "few_images.tsv", "eval_text_tsv": "few_texts.tsv"}
        # the contrast of all rows, so that what is computed does not depend on the number of processes
        job = {"version": 1, "kind": "Finetune", "name": "bench", "compute": {"device": "cpu"} | compute, "inputs": inputs, "parameters": {"seed": 1, "contrastive_batch": "total", "repeated": "allow"}}
        (self.folder / "job.yaml").write_text(yaml.safe_dump(job))
        before = self.network.sent()
        done = subprocess.run([*self.network.enter, self.medtune, "--store", str(store), "run", str(self.folder / "job.yaml")], capture_output=True, text=True)
        require(done.returncode == 0, done.stderr)
        sent = self.network.sent() - before
        [series] = store.glob("runs/*/*/metrics.jsonl")
        lines = [json.loads(line) for line in series.read_text().splitlines()]
        rates = [line["images_per_s"] for line in lines if "images_per_s" in line]
        losses = [line["loss"] for line in lines if "loss" in line]
        return BATCH / max(rates[1:]), sent, losses

    def gradient_bytes(self):
        """Bytes of all weights that are trained."""
        [weights] = (self.folder / "store" / "data").glob("bench-save_dir/*/last.safetensors")
        with safe_open(weights, "np") as file:
            return 4 * sum(file.get_tensor(name).size for name in file.keys())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--medtune", required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--link", default="1gbit", help="rate of a slow network for the second part, in the words of tc; both directions together")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    arguments = parser.parse_args()
    network = Network()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            photographs(folder, BATCH)
            trainings = Trainings(arguments.medtune, folder, network)
            first_losses = {}

            def in_turn(kinds):
                """The quickest seconds of a step, by kind."""
                seconds = {name: [] for name in kinds}
                for turn in range(arguments.turns):
                    for name in kinds:
                        taken, _, losses = trainings.run(KINDS[name], arguments.steps)
                        seconds[name].append(taken)
                        first_losses[name] = losses[0]
                        print(f"turn {turn + 1}: {name}: {taken:.3f} s a step", flush=True)
                return {name: min(times) for name, times in seconds.items()}

            best = in_turn(list(KINDS))
            spread = max(first_losses.values()) - min(first_losses.values())
            require(spread <= 1e-4 * max(first_losses.values()), f"the first losses differ, {first_losses}: not the same computation")
            # what is sent at the beginning and at the end is the same for both
            short, long = (trainings.run(KINDS["2 processes of 1 thread"], steps)[1] for steps in (4, 4 + arguments.steps))
            gradients = trainings.gradient_bytes()
            network.limit(arguments.link)
            slow = in_turn(list(KINDS)[1:])
    finally:
        network.close()
    a_step = (long - short) / arguments.steps / 2
    results = {"seconds_a_step": best, "seconds_over_a_slow_link": slow, "link": arguments.link, "gradient_bytes": gradients, "sent_by_a_process_a_step": a_step}
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    alone = next(iter(best))
    print(f"\n{BATCH} rows a step, {gradients / 1e6:.1f} MB of gradients in f32; best of {arguments.turns} turns")
    for title, times in (("", best), (f", {arguments.link} between them", slow)):
        for name, value in times.items():
            print(f"{name + title:50} {value:7.3f} s a step  {best[alone] / value:5.2f} x {alone}")
    for title, times in (("on one machine", best), (f"with {arguments.link}", slow)):
        early, late = list(times.values())[-2:]
        print(f"{title}, sending early makes a step {late / early:.2f} times as fast")
    print(f"each process sends {a_step / 1e6:.1f} MB a step, {a_step / gradients:.2f} times the gradients (a ring of two: 1.00)")


if __name__ == "__main__":
    sys.exit(main())
