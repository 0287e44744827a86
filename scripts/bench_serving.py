"""What scripts/bench-serving runs: the loader of a package on a request of many images, and the original's way, in turn, in one process.

The package computes in f32 and, where the processor has products in bf16, in bf16 too, which the original does not offer.

The peer does what the original's zero-shot package does for each image of a request: decode, standardise and preprocess with Pillow, a
forward pass of this one image in f32, and the comparison with the labels' text features, which it computes at its first request and keeps.
Its network is the tests' independent one (timm's DaViT). There are also programs that encode the label texts anew at every call, one by
one; what that would cost is shown as the peer's time plus that of the texts for every image. HTTP, loading and MLflow are left out for all.

The last column is the share of what the processor does in its best products of matrices; decoding counts as time, not as work.
"""

import argparse
import base64
import os
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from measure import require
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "python"))
from bench_compare import matrix_peaks, photographs  # noqa: E402
from handmade import FOUR_STAGES, config, runtime, write_package  # noqa: E402
from reference import Package, pixels  # noqa: E402

LABELS = [f"endoscopy gastrointestinal finding {n}" for n in range(22)]
MIDDLE = {
    **FOUR_STAGES,
    "DIM_EMBED": [96, 192, 384, 768],
    "NUM_HEADS": [3, 6, 12, 24],
    "NUM_GROUPS": [3, 6, 12, 24],
    "WINDOW_SIZE": 7,
    "IMAGE_SIZE": [224, 224],
    "CONTEXT_LENGTH": 77,
    "WIDTH": 512,
    "HEADS": 8,
    "LAYERS": 12,
}
SIDE, QUALITY = 512, 75
PEER, BF16 = "one image a time", "medtune, one request, bf16"


def middle_package(folder):
    """A zero-shot package of the middle size, whose label features are those of its text encoder; read by public libraries."""
    model_config = config(**MIDDLE)
    model_config["UNICL_MODEL"]["DIM_PROJECTION"] = 512
    write_package(folder, "classification", "zero-shot", model_config=model_config, labels=LABELS)
    package = Package(folder)
    package.settings["pixels"] |= {"image_standardization_image_size": SIDE, "image_standardization_jpeg_compression_ratio": QUALITY}
    package.weights["class_embeddings"] = texts_one_by_one(package)
    save_file(package.weights, folder / "artifacts" / "checkpoints" / "classifier" / "class_embeddings.safetensors")
    return package


def texts_one_by_one(package):
    return torch.cat([package.text_features([f"{label}."]) for label in package.labels])


def images_one_by_one(package, rows):
    """The peer: scores [n, classes] of base64 images."""
    scores = []
    for row in rows:
        feature = package.model.encode_image(pixels(base64.b64decode(row), package.settings["pixels"])[None])
        scores.append(package.scores(feature))
    return torch.cat(scores)


def timed(call):
    """Wall seconds, seconds on all cores together, and the result."""
    started, busy = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - started, time.process_time() - busy, result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        folder = Path(scratch)
        package = middle_package(folder / "package")
        photographs(folder, arguments.images)
        rows = [line.split("\t")[1] for line in (folder / "images.tsv").read_text().splitlines()]
        checkpoints = str(folder / "package" / "artifacts" / "checkpoints")
        precisions = ["f32", *(["bf16"] if runtime().onednn.has_bfloat16_products() else [])]
        models = {precision: runtime()._load_pyfunc(checkpoints, {"device": "cpu", "precision": precision}) for precision in precisions}
        params = {"image_standardization_image_size": SIDE, "image_standardization_jpeg_compression_ratio": QUALITY}

        def ours(part, precision="f32"):
            answers = models[precision].predict(pd.DataFrame({"image": part}), params)
            by_label = [{item["label"]: item["score"] for item in answer} for answer in answers]
            return torch.tensor([[answer[label] for label in LABELS] for answer in by_label])

        calls = {
            "medtune, one request": lambda: ours(rows),
            **({BF16: lambda: ours(rows, "bf16")} if "bf16" in models else {}),
            "medtune, a request an image": lambda: torch.cat([ours([row]) for row in rows]),
            PEER: lambda: images_one_by_one(package, rows),
            "texts": lambda: texts_one_by_one(package),
        }
        for call in calls.values():
            call()
        found = {name: [] for name in calls}
        for turn in range(arguments.turns):
            for name, call in calls.items():
                found[name].append(timed(call))
                print(f"turn {turn + 1}: {name}: {found[name][-1][0]:.2f} s, {found[name][-1][1]:.2f} s on all cores", flush=True)
    for name in calls.keys() - {"texts"}:
        difference = (found[name][0][2].double() - found[PEER][0][2].double()).abs().max().item()
        require(difference < (5e-3 if name == BF16 else 1e-4), f"{name}: the scores differ by {difference}: not the same computation")
    size = package.settings["pixels"]["image_size"]
    with FlopCounterMode(display=False) as counter:
        package.model.encode_image(torch.zeros(1, 3, *size))
    show(found, arguments.images, counter.get_total_flops(), matrix_peaks(arguments.threads, "cpu"))


def show(found, images, flop, peaks):
    """Prints a table: the best of the turns, how many times as fast as the peer that is, and what share of the processor's `peaks`."""
    peaks = {precision: max(rate for name, rate in peaks.items() if name.startswith(precision)) * 1e9 for precision in ("f32", "bf16")}
    best = {name: [min(times[i] for times in turns) for i in (0, 1)] for name, turns in found.items()}
    texts = best.pop("texts")
    best["the same, texts at every call"] = [peer + images * text for peer, text in zip(best[PEER], texts)]
    print(f"\n{'':32}{'s':>8}{'CPU s':>8}{'images/s':>10}{'is as fast':>12}{'of peak':>9}")
    for name, (wall, busy) in best.items():
        share = images * flop / wall / peaks["bf16" if name == BF16 else "f32"]
        print(f"{name:32}{wall:8.2f}{busy:8.2f}{images / wall:10.2f}{f'{best[PEER][0] / wall:.2f} x':>12}{share:>9.0%}")
    print(f"peaks: {', '.join(f'{precision} {peak / 1e9:,.0f} GFLOP/s' for precision, peak in peaks.items())}; an image takes {flop / 1e9:.1f} GFLOP")


if __name__ == "__main__":
    main()
