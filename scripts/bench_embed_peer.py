"""A peer of examples/encode.rs: the same embedding by PyTorch or ONNX Runtime. Encodes a TSV for every line of its standard input.

The model is the tests' independent one (timm's DaViT) with the package's weights; Pillow decodes and standardises. Prints one JSON object a pass.
"""

import argparse
import base64
import json
import sys
import tempfile
import time
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))
from reference import Package, pixels  # noqa: E402


class Image(torch.nn.Module):
    """The image tower and its projection: pixels [B, 3, H, W] to unit vectors [B, P]."""

    def __init__(self, package):
        super().__init__()
        self.tower = package.model.image
        self.projection = torch.nn.Parameter(package.model.state["image_projection"], requires_grad=False)

    def forward(self, x):
        x = self.tower(x) @ self.projection
        return x / x.norm(dim=1, keepdim=True)


def eager(model, kind, example):
    """PyTorch as it comes."""
    model = model.to(example.device, kind, memory_format=layout(example))
    return lambda batch: model(ready(batch, kind, example)).float().cpu().numpy()


def layout(example):
    """What is said to be best for convolutions on a GPU."""
    return torch.channels_last if example.is_cuda else torch.preserve_format


def ready(batch, kind, example):
    """The batch where the model is, in its type and layout."""
    return batch.to(example.device).to(kind, memory_format=layout(example))


def compiled(model, kind, example):
    """torch.compile with the weights as constants, which lays them out for oneDNN."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    fast = torch.compile(model.to(example.device, kind, memory_format=layout(example)))
    fast(ready(example, kind, example))
    return lambda batch: fast(ready(batch, kind, example)).float().cpu().numpy()


def onnx(model, _, example):
    """ONNX Runtime in f32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        # the newer exporter needs another package, and gains nothing for a fixed shape
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (example,), path, input_names=["pixels"], output_names=["vectors"], opset_version=18, dynamo=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"pixels": batch.numpy()})[0]


PEERS = {"eager": eager, "compile": compiled, "onnx": onnx}


def batches(rows, arguments, settings):
    """Pixels of a batch after the other. For a GPU they are decoded ahead, by threads: Pillow lets them run at the same time."""

    def decode(row):
        return pixels(base64.b64decode(row), settings)

    parts = [rows[first : first + arguments.batch] for first in range(0, len(rows), arguments.batch)]
    if arguments.device == "cpu":
        yield from (torch.stack([decode(row) for row in part]) for part in parts)
        return
    with ThreadPoolExecutor(arguments.threads) as pool:
        ahead = deque()
        for n in range(len(parts)):
            while len(ahead) < 3 and n + len(ahead) < len(parts):
                ahead.append([pool.submit(decode, row) for row in parts[n + len(ahead)]])
            yield torch.stack([future.result() for future in ahead.popleft()])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("package", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--precision", choices=["f32", "bf16"], required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    package = Package(arguments.package)
    settings = package.settings["pixels"]
    rows = [line.split("\t")[1] for line in arguments.images.read_text().splitlines()]
    with torch.no_grad():
        kind = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
        example = torch.zeros(arguments.batch, 3, *settings["image_size"], device=arguments.device)
        model = Image(package)
        package.model = None
        run = PEERS[arguments.peer](model, kind, example)
        del model, package
        print(json.dumps({"ready": True}), flush=True)
        for _ in sys.stdin:
            started = time.perf_counter()
            vectors = []
            for batch in batches(rows, arguments, settings):
                vectors.append(run(batch))
            seconds = time.perf_counter() - started
            np.concatenate(vectors).astype(np.float32).tofile(arguments.out)
            print(json.dumps({"seconds": seconds, "images": len(rows), "precision": arguments.precision}), flush=True)


if __name__ == "__main__":
    main()
