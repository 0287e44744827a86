"""The training that docs/training.md describes, written in plain PyTorch: stock modules, torch.optim.AdamW, timm's schedule.

Shares no code with medtune: parameter groups come from the kinds of modules and from Python's `re`, pixels from Pillow.
"""

import io
import re

import numpy as np
import torch
from PIL import Image
from reference import TextTower, davit, resized, timm_name
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.nn import functional as F

IMAGE, TEXT = "image_encoder.", "lang_encoder."


class UniCL(nn.Module):
    """Both towers; `named` has their parameters under the checkpoint's names."""

    def __init__(self, config, state, dtype=torch.float32):
        super().__init__()
        self.image = davit(config["IMAGE_ENCODER"]["SPEC"])
        self.text = TextTower(config["LANG_ENCODER"], state[TEXT + "token_embedding.weight"].shape[0])
        self.image_projection = nn.Parameter(torch.empty_like(state["image_projection"]))
        self.lang_projection = nn.Parameter(torch.empty_like(state["lang_projection"]))
        self.logit_scale = nn.Parameter(torch.empty_like(state["logit_scale"]))
        own, self.named = dict(self.named_parameters()), {}
        for name in state:
            if name.startswith(IMAGE):
                self.named[name] = own["image." + timm_name(name[len(IMAGE) :])]
            else:
                self.named[name] = own["text." + name[len(TEXT) :] if name.startswith(TEXT) else name]
        assert len({id(p) for p in self.named.values()}) == len(own) == len(state)
        self.to(dtype).train()
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(state[name])

    def forward(self, pixels, ids, mask):
        """Pixels [B, 3, H, W], ids and mask [B, L] -> unit vectors of images and texts, [B, P] each."""
        images, texts = self.image(pixels) @ self.image_projection, self.text(ids, mask) @ self.lang_projection
        return F.normalize(images, dim=1), F.normalize(texts, dim=1)


def unicl_loss(images, texts, logit_scale, classes):
    """UniCL as a cross entropy with the positives of each row sharing its target equally, in both directions."""
    logits = logit_scale.exp() * images @ texts.T
    target = torch.tensor([[float(a == b) for b in classes] for a in classes], dtype=logits.dtype, device=logits.device)
    target /= target.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def parameter_groups(model, training):
    """Groups for torch.optim.AdamW, each with its `lr` and `weight_decay`; frozen parameters are in none."""
    custom, base, decay = training["CUSTOMIZED_PARAMS_CONF"], training["START_LEARNING_RATE"], training["OPTIMIZER_PARAMS"]["weight_decay"]
    exempt = set()
    for module in model.modules():
        if "norm" in custom["NO_WEIGHT_DECAY_MODULES"] and isinstance(module, nn.LayerNorm):
            exempt |= {id(module.weight), id(module.bias)}
        if "dw" in custom["NO_WEIGHT_DECAY_MODULES"] and isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            exempt.add(id(module.weight))
    groups = []
    for name, parameter in model.named.items():
        if any(re.search(pattern, name) for pattern in custom["FREEZE_PATTERNS"]):
            parameter.requires_grad_(False)
            continue
        first = lambda patterns, default: next((v for p, v in patterns.items() if re.search(p, name)), default)  # noqa: E731
        own = 0.0 if id(parameter) in exempt else first(custom["WEIGHT_DECAY_PATTERNS"], decay)
        lr = base * first(custom["LR_SCALE_PATTERNS"], 1.0)
        groups.append({"params": [parameter], "name": name, "lr": lr, "weight_decay": own})
    return groups


class Data:
    """Rows as tensors: images by Pillow, texts by the tokenizers library."""

    def __init__(self, config, tokenizer, rows, template, dtype=torch.float32):
        image, context = config["IMAGE_ENCODER"], config["LANG_ENCODER"]["CONTEXT_LENGTH"]
        mean, std = (torch.tensor(image[key], dtype=torch.float32)[:, None, None] for key in ("IMAGE_MEAN", "IMAGE_STD"))
        height, width = image["IMAGE_SIZE"]
        start, end = tokenizer.token_to_id("<|startoftext|>"), tokenizer.token_to_id("<|endoftext|>")
        pixels, ids, self.classes = [], [], []
        for _, data, text in rows:
            array = np.array(resized(Image.open(io.BytesIO(data)), width, height))
            pixels.append((torch.from_numpy(array).permute(2, 0, 1).float() / 255 - mean) / std)
            tokens = tokenizer.encode(template.replace("{}", text["class_name"]), add_special_tokens=False).ids
            ids.append([start, *tokens[: context - 2], end])
            self.classes.append((text["source"], text["class_id"]))
        self.pixels = torch.stack(pixels).to(dtype)
        self.ids = torch.tensor([row + [end] * (context - len(row)) for row in ids])
        self.mask = torch.tensor([[1] * len(row) + [0] * (context - len(row)) for row in ids])

    def loss(self, model, rows):
        """The loss of a batch: a list of row numbers."""
        images, texts = model(self.pixels[rows], self.ids[rows], self.mask[rows])
        return unicl_loss(images, texts, model.logit_scale, [self.classes[row] for row in rows])


def train(model, data, training, contrast=None):
    """Trains over the rows in their order. Returns (series, average): a dictionary a step, and the moving average by name.

    `contrast` is how many rows the loss compares with one another: those of a micro-batch when left out.
    """
    total, micro = training["TRAIN"]["BATCH_SIZE_TOTAL"], contrast or training["TRAIN"]["BATCH_SIZE_PER_GPU"]
    optimizer_params, schedule_params = training["OPTIMIZER_PARAMS"], training["LR_SCHEDULER_PARAMS"]
    optimizer = torch.optim.AdamW(parameter_groups(model, training), betas=optimizer_params["betas"], eps=optimizer_params["eps"])
    # a frozen or missing pattern must not hide in a group that is there anyway
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    steps = len(data.classes) // total * training["MAX_NUM_EPOCHS"]
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=steps,
        lr_min=schedule_params["min_lr"],
        warmup_t=schedule_params["warmup_steps"],
        warmup_lr_init=schedule_params["warmup_lr"],
        t_in_epochs=False,
    )
    # the rate of the base group, as medtune logs it
    unscaled = next(g for g in optimizer.param_groups if g["initial_lr"] == training["START_LEARNING_RATE"])
    decay = training["WEIGHT_SMOOTHING"]["decay"]
    average = {name: p.detach().clone() for name, p in model.named.items()}
    series = []
    for step in range(steps):
        scheduler.step_update(step)
        optimizer.zero_grad()
        start, losses = step * total % (len(data.classes) // total * total), []
        for first in range(start, start + total, micro):
            loss = data.loss(model, list(range(first, first + micro))) * micro / total
            loss.backward()
            losses.append(loss.item())
        norm = nn.utils.clip_grad_norm_(trained, training["GRAD_CLIPPING"] or float("inf"))
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named.items():
                average[name] = decay * average[name] + (1 - decay) * parameter
        series.append({"step": step + 1, "loss": sum(losses), "lr": unscaled["lr"], "grad_norm": norm.item()})
    return series, average
