"""What scripts/bench-embed runs: the Embed job, the encoder alone, and its peers, which encode the same TSV in turn.

What is compared are images a second of a long embedding. Loading the model is left out for all: the job is run on few and on more images,
and the difference of its times is what the images took; the others are timed once they are loaded.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from bench_compare import Peer, matrix_peaks, photographs
from measure import require

HERE = Path(__file__).resolve().parent
SIZES = HERE.parent / "benches" / "medimageinsight.yaml"
# the goals: at least so many times PyTorch eager, and not slower than the fastest other
GOALS = {"cpu": {"f32": 2.2, "bf16": 1.3}, "cuda": {"f32": 1, "bf16": 1}}
COMPILED = {"PyTorch eager": "eager", "torch.compile, frozen": "compile"}
PEERS = {"cpu": {"f32": {"PyTorch eager": "eager", "ONNX Runtime": "onnx"}, "bf16": COMPILED}, "cuda": {"f32": COMPILED, "bf16": COMPILED}}
# of an image at the real size, without what is computed on the padding of windows
FLOP = 584e9
# photographs that are made; more images are the same ones again
DISTINCT = 512
COSINE = {"f32": 0.99999, "bf16": 0.99}


class Bench:
    """A store with a model of random weights, and image TSVs."""

    def __init__(self, arguments, folder):
        self.arguments, self.folder, self.runs = arguments, folder, 0
        self.medtune, self.encode = arguments.programs / "medtune", arguments.programs / "examples" / "encode"
        photographs(folder, min(arguments.images + arguments.batch, DISTINCT))
        self.rows = (folder / "images.tsv").read_text().splitlines()
        init = ["model", "init", "--name", "bench", "--config", str(arguments.config), "--label-texts", str(folder / "labels.txt")]
        subprocess.run([self.medtune, "--store", str(folder / "store"), *init], stdout=subprocess.PIPE, check=True)
        [model] = (folder / "store").rglob("MLmodel")
        self.package = model.parent

    def tsv(self, name, count):
        path = self.folder / f"{name}.tsv"
        path.write_text("".join(f"{name}-{n}-{row}\n" for n, row in zip(range(count), itertools.cycle(self.rows))))
        return path

    def job(self, count, precision):
        """Seconds of `medtune run` on `count` images, each computed anew; their keys are new ones, or the store would know the result."""
        self.runs += 1
        images = self.tsv(f"run{self.runs}", count)
        job = {
            "version": 1,
            "kind": "Embed",
            "name": "bench",
            "compute": {"device": self.arguments.device, "threads": self.arguments.threads},
            "inputs": {"mlflow_model_path": "model:bench@latest", "image_tsv": images.name},
            "parameters": {"batch_size": self.arguments.batch, "precision": precision, "reuse": False},
            "outputs": {"embeddings": "bench-embeddings"},
        }
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump(job, sort_keys=False))
        started = time.monotonic()
        done = subprocess.run([self.medtune, "--store", str(self.folder / "store"), "run", str(path)], capture_output=True, text=True)
        require(done.returncode == 0, done.stderr)
        self.shares = re.findall(r"decode-wait +\d+ %, compute +\d+ %", done.stderr)[-1:]
        return time.monotonic() - started

    def precision(self, precision):
        """Seconds an image by program, the job first; none where this processor has no products in that precision."""
        arguments = self.arguments
        count = arguments.images
        images = self.tsv(precision, count)
        size = ["--precision", precision, "--batch", str(arguments.batch), "--threads", str(arguments.threads), "--device", arguments.device]

        def files(name):
            return [str(self.package), str(images), str(self.folder / f"{name}.f32")]

        peers = {"medtune's encoder": Peer("encode", [self.encode, *files("encode"), *size, "--ask"])}
        if self.computed(peers, precision) != precision:
            # PyTorch would take minutes for an image, and medtune computes in f32
            return {}
        for title, name in PEERS[arguments.device][precision].items():
            peers[title] = Peer(name, [sys.executable, str(HERE / "bench_embed_peer.py"), name, *files(name), *size])
        times = {name: [] for name in peers}
        few, many = [], []
        for turn in range(arguments.turns):
            for name, peer in peers.items():
                peer.step()
                times[name].append(peer.steps[-1]["seconds"] / count)
                print(f"{precision}, turn {turn + 1}: {name}: {times[name][-1]:.3f} s an image", flush=True)
            few.append(self.job(arguments.batch, precision))
            many.append(self.job(arguments.batch + count, precision))
            print(f"{precision}, turn {turn + 1}: medtune run: {few[-1]:.1f} s for {arguments.batch} images, {many[-1]:.1f} s for {arguments.batch + count}", *self.shares, flush=True)
        end(peers)
        vectors = {peer.name: np.fromfile(self.folder / f"{peer.name}.f32", np.float32).reshape(count, -1) for peer in peers.values()}
        for name, found in vectors.items():
            cosine = (found * vectors["encode"]).sum(1).min() / np.linalg.norm(found, axis=1).max()
            require(cosine > COSINE[precision], f"{precision}: the vectors of {name} differ from medtune's, cosine {cosine}: not the same computation")
        rows = {name: min(found) for name, found in times.items()}
        return {"medtune run": (min(many) - min(few)) / count} | rows

    @staticmethod
    def computed(peers, precision):
        """What the encoder computes in when it is asked for `precision`."""
        peer = peers["medtune's encoder"]
        peer.step()
        computed = peer.steps[-1]["precision"]
        if computed != precision:
            print(f"{precision}: this processor has no products in it, medtune computes in {computed}: nothing to compare", flush=True)
            end(peers)
        return computed


def end(peers):
    """Lets programs that wait for lines end."""
    for peer in peers.values():
        peer.process.stdin.close()
        peer.process.wait()


def show(device, precision, rows):
    """Prints a table and whether the goals are met."""
    ours = next(iter(rows))
    print(f"\n{precision}\n{'':24}{'s/image':>9}{'images/s':>10}{ours + ' is':>24}")
    for name, seconds in rows.items():
        ratio = "" if name.startswith("medtune") else f"{seconds / rows[ours]:.2f} x"
        print(f"{name:24}{seconds:9.3f}{1 / seconds:10.3f}{ratio:>24}")
    eager = rows["PyTorch eager"] / rows[ours]
    others = {name: seconds / rows[ours] for name, seconds in rows.items() if not name.startswith(("medtune", "PyTorch"))}
    met = eager >= GOALS[device][precision] and all(ratio >= 1 for ratio in others.values())
    wanted = f"{GOALS[device][precision]} x PyTorch eager and 1 x {', '.join(others)}"
    print(f"goal: {wanted}: {'met' if met else 'missed on this machine'}", flush=True)
    return met


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=Path, required=True, help="folder of the built programs")
    parser.add_argument("--config", type=Path, default=SIZES, help="sizes of the model, as `medtune model init` takes them")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precisions", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    arguments = parser.parse_args()
    require(arguments.images % arguments.batch == 0, "images must be whole batches: ONNX Runtime's model has one batch size")
    results = {"device": arguments.device, "batch": arguments.batch, "threads": arguments.threads}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        bench = Bench(arguments, Path(scratch))
        tables = {precision: bench.precision(precision) for precision in arguments.precisions}
    peaks = matrix_peaks(arguments.threads, arguments.device) if arguments.config == SIZES else {}
    for precision, rows in tables.items():
        if rows:
            results[precision] = {"seconds_an_image": rows, "goal_met": show(arguments.device, precision, rows)}
            if peaks and (arguments.device == "cpu" or precision == "bf16"):
                # the faster one of the libraries that multiply
                peak = max(rate for name, rate in peaks.items() if name.startswith(precision)) * 1e9
                shares = {name: FLOP / seconds / peak for name, seconds in rows.items()}
                results[precision] |= {"matrix_peak_flops": peak, "shares_of_the_matrix_peak": shares}
                print(f"of {peak / 1e9:,.0f} GFLOP/s, the best rate of a large product: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
