"""The peer of benches/train_step.rs: the same training step in PyTorch eager mode. Takes a step for every line of its standard input.

The model and the loss are the tests' independent ones (timm's DaViT, a text tower of stock modules), with the weights, pixels and texts of the bench;
the optimizer is torch.optim.AdamW as it comes. Prints one JSON object a step, and a last one with the peak memory.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))
from torch_training import UniCL, unicl_loss  # noqa: E402


def pixels(batch, height, width):
    """The bench's pixels: a fixed function of the position."""
    index = np.arange(batch * 3 * height * width, dtype=np.uint32)
    values = (index * np.uint32(2654435761)).astype(np.float64) / 2**32 * 4 - 2
    return torch.from_numpy(values.astype(np.float32)).reshape(batch, 3, height, width)


def tokens(batch):
    """The bench's texts: eight tokens each, all different."""
    ids = torch.full((batch, 8), 49407)
    ids[:, 0] = 49406
    ids[:, 1:7] = torch.arange(batch)[:, None] * 6 + torch.arange(6) + 320
    return ids


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--precision", choices=["f32", "bf16"], required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = yaml.safe_load(Path(arguments.config).read_text())
    device = torch.device(arguments.device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    model = UniCL(config, load_file(arguments.weights)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.2)
    height, width = config["IMAGE_ENCODER"]["IMAGE_SIZE"]
    images, ids = pixels(arguments.batch, height, width).to(device), tokens(arguments.batch).to(device)
    mask = torch.ones_like(ids)
    encode = torch.compile(model) if arguments.compile else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bf16"):
            image, text = encode(images, ids, mask)
        loss = unicl_loss(image.float(), text.float(), model.logit_scale, range(arguments.batch))
        loss.backward()
        optimizer.step()
        return loss.item()

    if arguments.profile:
        step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60))
        return
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        cpu = time.process_time()
        loss = step()
        print(json.dumps({"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu, "loss": loss}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    device_peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    print(json.dumps({"peak_rss_gib": peak, "peak_device_gib": device_peak}), flush=True)


if __name__ == "__main__":
    main()
