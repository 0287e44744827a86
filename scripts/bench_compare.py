"""What scripts/bench runs: benches/train_step.rs and bench_torch.py take steps in turn; then a short fine-tuning, for its waiting."""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "python"))
from harness import write_tsv  # noqa: E402

WARM_UP = 2
DATA_WAIT_LIMIT = 0.03


class Peer:
    """A process that takes a step for every line that it reads."""

    def __init__(self, name, command):
        self.name, self.steps = name, []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.read()

    def read(self):
        """The next JSON object that the process prints."""
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended early, with exit code {self.process.wait()}")
        return json.loads(line)

    def step(self):
        """Takes a step."""
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.steps.append(self.read())

    def end(self):
        """The last object, with the peak memory."""
        self.process.stdin.close()
        last = self.read()
        self.process.wait()
        return last

    def least(self, key):
        """The smallest of the timed steps."""
        return min(step[key] for step in self.steps[WARM_UP:])


def side_by_side(arguments, model, precision, device):
    """The rows of one precision: medtune first, its peers after it."""
    size = ["--batch", str(arguments.batch), "--threads", str(arguments.threads), "--precision", precision, "--device", device]
    files = ["--weights", str(model / "weights.safetensors")]
    torch_command = [sys.executable, str(HERE / "bench_torch.py"), "--config", str(model / "config.yaml"), *files, *size]
    peers = [Peer("medtune", [arguments.bench, "--ask", *files, *size]), Peer("PyTorch eager", torch_command)]
    if device == "cuda":
        peers.append(Peer("torch.compile", [*torch_command, "--compile"]))
    for _ in range(WARM_UP + arguments.steps):
        for peer in peers:
            peer.step()
    losses = [peer.steps[0]["loss"] for peer in peers]
    tolerance = 1e-3 if precision == "f32" else 5e-2
    if max(losses) - min(losses) > tolerance * max(1.0, abs(losses[0])):
        sys.exit(f"{precision}: the first losses differ, {losses}: not the same computation")
    ends = [peer.end() for peer in peers]
    rows = []
    for peer, end in zip(peers, ends):
        rows.append(
            {
                "precision": precision,
                "device": device,
                "program": peer.name,
                "seconds": peer.least("seconds"),
                "cpu_seconds": peer.least("cpu_seconds"),
                "images_per_second": arguments.batch / peer.least("seconds"),
                "gflop_per_second": ends[0]["step_gflop"] / peer.least("seconds"),
                "peak_gib": end["peak_rss_gib"],
                "first_loss": peer.steps[0]["loss"],
                "times_as_fast": peers[0] is not peer and peer.least("seconds") / peers[0].least("seconds") or None,
            }
        )
    return rows


def table(rows):
    """Prints the rows."""
    print(f"\n{'':6} {'':14} {'s/step':>8} {'CPU s':>8} {'images/s':>9} {'GFLOP/s':>8} {'peak GiB':>9} {'medtune is':>12}")
    for row in rows:
        ratio = f"{row['times_as_fast']:.2f} x" if row["times_as_fast"] else ""
        print(
            f"{row['precision']:6} {row['program']:14} {row['seconds']:8.3f} {row['cpu_seconds']:8.3f} {row['images_per_second']:9.3f} "
            f"{row['gflop_per_second']:8.0f} {row['peak_gib']:9.2f} {ratio:>12}",
            flush=True,
        )


def matrix_peaks(threads, device):
    """The best rate of a large matrix product, GFLOP/s, by kind: what a step can come near to at most."""
    import time

    torch.set_num_threads(threads)
    peaks = {}

    def rate(name, call, flop):
        best = float("inf")
        for _ in range(6):
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
        peaks[name] = flop / best / 1e9

    n = 8192 if device == "cuda" else 2048
    for name, kind in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(n, n, device=device).to(kind), torch.randn(n, n, device=device).to(kind)
        rate(name, lambda: a @ b, 2 * n**3)
        if device == "cpu" and name == "f32":
            rate("f32 by oneDNN", lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""), 2 * n**3)
    return peaks


def photographs(folder, count):
    """TSVs of `count` JPEGs of 512 x 512, crops of the two photographs that scikit-learn carries, in four classes."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    sources = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(3)
    labels = [f"photograph of kind {n}" for n in "abcd"]
    images, texts = [], []
    for n in range(count):
        source = sources[n % 2]
        side = int(rng.integers(200, min(source.size)))
        left, top = (int(rng.integers(0, length - side)) for length in source.size)
        buffer = io.BytesIO()
        source.crop((left, top, left + side, top + side)).resize((512, 512), Image.BICUBIC).save(buffer, "JPEG", quality=95)
        images.append((f"{n:05}", buffer.getvalue()))
        texts.append((f"{n:05}", {"class_id": n % 4, "class_name": labels[n % 4], "source": "photographs", "task": "classification"}))
    # few rows to evaluate on: the training is what is measured
    for name, rows in (("images", images), ("texts", texts)):
        write_tsv(folder / f"{name}.tsv", rows)
        write_tsv(folder / f"few_{name}.tsv", rows[:4])
    (folder / "labels.txt").write_text("\n".join(labels) + "\n")


TRAINING = """
TASK: UniCLTask
LOG_EVERY: 5
EVAL_AT_START: false
EVAL_PER_OPTIM_STEPS: 0
EVALDATASET_ZERO_SHOT: {ZS_MODE: 2}
MAX_NUM_EPOCHS: 1
FP16: true
TRAIN: {BATCH_SIZE_TOTAL: 4, BATCH_SIZE_PER_GPU: 4, SHUFFLE: true}
AUG:
  SCALE: [0.8, 1.0]
  RATIO: [0.75, 1.3333333]
  INTERPOLATION: bicubic
  TORCHVISION_AUG: {AUTO_AUGMENT: ta_wide, RE_PROB: 0.25, HFLIP: 0.5, VFLIP: 0.5}
LOSS: {LOSS: UniCL}
START_LEARNING_RATE: 0.00001
OPTIMIZER: AdamW
OPTIMIZER_PARAMS: {weight_decay: 0.2}
LR_SCHEDULER: TimmScheduler
LR_SCHEDULER_PARAMS: {sched: cosine, warmup_steps: 2, warmup_lr: 1.0e-9, min_lr: 1.0e-9}
GRAD_CLIPPING: 1.0
"""


def data_wait(arguments, model, folder, device):
    """The share of a real fine-tuning's time in which the model waits for images: `--images` JPEGs, full augmentation, one epoch."""
    photographs(folder, arguments.images)
    (folder / "train.yaml").write_text(TRAINING)
    inputs = {"mlflow_model_path": "model:bench@latest", "label_file": "labels.txt", "conf_files": "train.yaml"}
    inputs |= {"image_tsv": "images.tsv", "text_tsv": "texts.tsv", "eval_image_tsv": "few_images.tsv", "eval_text_tsv": "few_texts.tsv"}
    job = {
        "version": 1,
        "kind": "Finetune",
        "name": "bench",
        "compute": {"device": device, "threads": arguments.threads},
        "inputs": inputs,
        "parameters": {"seed": 1, "repeated": "allow"},
        "outputs": {"save_dir": "bench-training", "mlflow_model_folder": "bench-tuned"},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    run = [arguments.medtune, "--store", str(folder / "store")]
    quiet = {"stdout": subprocess.PIPE, "text": True, "check": True}
    subprocess.run([*run, "model", "init", "--name", "bench", "--config", str(model / "config.yaml"), "--label-texts", str(folder / "labels.txt")], **quiet)
    record = json.loads(subprocess.run([*run, "run", str(folder / "job.yaml"), "--json"], **quiet).stdout)

    def found(value):
        if isinstance(value, dict):
            if "data_wait_share" in value:
                return value["data_wait_share"]
            value = list(value.values())
        shares = [found(item) for item in value] if isinstance(value, list) else []
        return next((share for share in shares if share is not None), None)

    share = found(record)
    if share is None:
        sys.exit("the record of the run has no data_wait_share")
    return share


def save(path, results):
    """Writes what there is so far, so that a later failure loses none of it."""
    if path:
        path.write_text(json.dumps(results, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bench", required=True)
    parser.add_argument("--medtune", required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--precisions", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--no-data-wait", action="store_true")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    arguments = parser.parse_args()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    results = {"batch": arguments.batch, "threads": arguments.threads, "rows": [], "matrix_peaks_gflop_per_second": {}}
    with tempfile.TemporaryDirectory() as scratch:
        model, work = Path(scratch) / "model", Path(scratch) / "work"
        model.mkdir(), work.mkdir()
        subprocess.run([arguments.bench, "--export", str(model)], check=True)
        for device in devices:
            peaks = matrix_peaks(arguments.threads, device)
            results["matrix_peaks_gflop_per_second"][device] = peaks
            print(f"matrix products on {device}, GFLOP/s:", ", ".join(f"{name} {peak:.0f}" for name, peak in peaks.items()))
            print(f"a training step at half width, batch {arguments.batch}, {arguments.threads} threads; PyTorch {torch.__version__} with timm's DaViT and torch.optim.AdamW")
            for precision in arguments.precisions:
                rows = side_by_side(arguments, model, precision, device)
                table(rows)
                results["rows"] += rows
                if device == "cuda":
                    for row in rows:
                        print(f"{row['program']}: {row['gflop_per_second'] / peaks[precision]:.1%} of the matrix peak")
        save(arguments.json, results)
        if not arguments.no_data_wait:
            share = data_wait(arguments, model, work, devices[-1])
            results["data_wait_share"] = share
            save(arguments.json, results)
            print(f"\na fine-tuning on {arguments.images} JPEGs of 512 x 512, full augmentation: the model waits {share:.2%} of the time (limit {DATA_WAIT_LIMIT:.0%})")
            if share > DATA_WAIT_LIMIT:
                sys.exit("that is over the limit")


if __name__ == "__main__":
    main()
