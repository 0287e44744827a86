"""What scripts/bench-prepare runs: Prepare on all cores and on one, and the notebook's loop, in turn."""

import argparse
import base64
import csv
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from measure import require
from PIL import Image

SIZE, SIDE, QUALITY, CLASSES = (1280, 1024), 512, 95, 5
# what Prepare is held against, as a multiple of the notebook's images a second
GOALS = {"all cores": 3.5, "one core": 1.6}


def photographs(folder, count):
    """`count` JPEGs with the size of a camera's file: smooth colours, edges, and noise that is not of one pixel only."""
    rng = np.random.default_rng(7)
    width, height = SIZE
    fine = [rng.normal(0, 1, (height * 2, width * 2)).astype(np.float32) for _ in range(2)]
    total = 0
    for n in range(count):
        target = folder / f"class_{n % CLASSES}"
        target.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(20, 236, (5, 6, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        shapes = Image.fromarray(rng.integers(0, 60, (40, 50, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        top, left = rng.integers(0, height), rng.integers(0, width)
        noise = sum(f[top : top + height, left : left + width] for f in fine) * rng.uniform(2.0, 4.0)
        pixels = np.asarray(coarse, np.float32) * 0.8 + np.asarray(shapes, np.float32) + noise[..., None]
        path = target / f"{n:05}.jpg"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)
        total += path.stat().st_size
    return total / count


def notebook(folder, out):
    """The notebook's way: one image after the other, and rows by the csv module."""
    rows = [(path.relative_to(folder), path) for path in sorted(folder.rglob("*.jpg"))]
    with open(out, "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        for key, path in rows:
            image = Image.open(path).convert("RGB").resize((SIDE, SIDE))
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=QUALITY)
            writer.writerow([str(key), base64.b64encode(buffer.getvalue()).decode()])


def busy_seconds():
    """Seconds for which the programs started from here have computed, on all cores together."""
    times = os.times()
    return times.children_user + times.children_system


class Prepare:
    """The whole job: reading, hashing, splitting, pixels, and the versions in the store."""

    def __init__(self, medtune, folder):
        self.medtune, self.folder = medtune, folder
        names = {f"class_{n}": f"kind {n}" for n in range(CLASSES)}
        (folder / "constants.yaml").write_text(yaml.safe_dump({"folder_to_label": names}))

    def run(self, threads, cores):
        store = self.folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        inputs = {"image_folder": "images", "text_constants": "constants.yaml"}
        job = {"version": 1, "kind": "Prepare", "name": "bench", "compute": {"threads": threads}, "inputs": inputs, "parameters": {"image_size": SIDE, "jpeg_quality": QUALITY}}
        (self.folder / "job.yaml").write_text(yaml.safe_dump(job))
        command = [self.medtune, "--store", str(store), "run", str(self.folder / "job.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores))
        require(done.returncode == 0, done.stderr)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--medtune", required=True)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        size = photographs(folder / "images", arguments.images)
        prepare = Prepare(arguments.medtune, folder)

        def python():
            # a process of its own, whose start is not counted, as a notebook's is not
            process = multiprocessing.get_context("fork").Process(target=notebook, args=(folder / "images", folder / "notebook.tsv"))
            process.start()
            process.join()
            require(process.exitcode == 0, "the notebook's loop failed")

        kinds = {
            "notebook": python,
            "all cores": lambda: prepare.run(0, cores),
            "one core": lambda: prepare.run(1, cores[:1]),
        }
        rates, computed = ({name: [] for name in kinds} for _ in range(2))
        for turn in range(arguments.turns):
            for name, do in kinds.items():
                began, busy = time.perf_counter(), busy_seconds()
                do()
                rates[name].append(arguments.images / (time.perf_counter() - began))
                computed[name].append(arguments.images / (busy_seconds() - busy))
                print(f"turn {turn + 1}: {name}: {rates[name][-1]:.1f} images/s, {computed[name][-1]:.1f} images a second of computing", flush=True)
    best, best_computed = ({name: max(values) for name, values in kind.items()} for kind in (rates, computed))
    results = {"images": arguments.images, "bytes_an_image": size, "cores": len(cores), "images_per_s": best, "images_per_cpu_s": best_computed}
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{arguments.images} JPEGs of {SIZE[0]} x {SIZE[1]}, {size / 1000:.0f} KB each, {len(cores)} cores; best of {arguments.turns} turns")
    for name, value in best.items():
        goal = f" (goal {GOALS[name]})" if name in GOALS else ""
        print(f"{name:12} {value:8.1f} images/s  {value / best['notebook']:5.2f} x the notebook{goal}")
    # what others do on the machine hardly changes this
    print("a second of computing, whoever else computes: " + ", ".join(f"{name} {value:.1f} images" for name, value in best_computed.items()))


if __name__ == "__main__":
    sys.exit(main())
