"""An independent PyTorch implementation of the model, to compare medtune with: timm's DaViT, a text tower of stock torch modules.

Shares no code with the runtime that packages carry. Takes weights under the checkpoint's names and maps them.
"""

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from timm.models.davit import DaVit
from tokenizers import Tokenizer
from torch import nn


def resized(image, width, height):
    """Pillow's bicubic resize, the horizontal pass first in every version of Pillow (13 begins with the vertical one for tall images)."""
    return image.resize((width, image.height), Image.BICUBIC).resize((width, height), Image.BICUBIC)


def standardised(data, size, quality):
    """Pillow's image of encoded `data` as a `size` x `size` RGB JPEG of `quality`."""
    buffer = io.BytesIO()
    resized(Image.open(io.BytesIO(data)).convert("RGB"), size, size).save(buffer, format="JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def rgb(settings, images, size=None, quality=None):
    """The pixel path by Pillow: bytes [n, H, W, 3] of encoded images, before they are normalised; `settings` is `pixels` of medtune.json."""
    size = size or settings["image_standardization_image_size"]
    quality = quality or settings["image_standardization_jpeg_compression_ratio"]
    height, width = settings["image_size"]
    return np.stack([np.asarray(resized(standardised(data, size, quality), width, height)) for data in images])


def pixels(data, settings, size=None, quality=None):
    """Those of one image, normalised: f32 [3, H, W]."""
    [image] = rgb(settings, [data], size, quality)
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    return (tensor - torch.tensor(settings["mean"])[:, None, None]) / torch.tensor(settings["std"])[:, None, None]


_HALF_BLOCK = {
    "conv1.fn.dw": "cpe1.proj",
    "window_attn.norm": "norm1",
    "window_attn.fn": "attn",
    "channel_attn.norm": "norm1",
    "channel_attn.fn": "attn",
    "conv2.fn.dw": "cpe2.proj",
    "ffn.norm": "norm2",
    "ffn.fn.net": "mlp",
}


def davit(spec):
    """timm's DaViT for `IMAGE_ENCODER.SPEC`. Its stem and downsampling convolutions are exchanged where SPEC has other sizes than timm's."""
    dims, stages = spec["DIM_EMBED"], len(spec["DIM_EMBED"])
    assert list(spec["PATCH_PRENORM"]) == [False] + [True] * (stages - 1), "timm normalises after the stem and before the others"
    net = DaVit(
        depths=tuple(spec["DEPTHS"]),
        embed_dims=tuple(dims),
        num_heads=tuple(spec["NUM_HEADS"]),
        window_size=spec["WINDOW_SIZE"],
        down_kernel_size=3,
        channel_attn_v2=True,
        named_blocks=True,
        num_classes=0,
    )
    net.stem.stride = (1, 1)  # no padding up to a multiple of the stride: the convolution's own padding decides
    for i, (kernel, stride, padding) in enumerate(zip(spec["PATCH_SIZE"], spec["PATCH_STRIDE"], spec["PATCH_PADDING"])):
        conv = nn.Conv2d(dims[i - 1] if i else 3, dims[i], kernel, stride, padding)
        if i == 0:
            net.stem.conv = conv
        else:
            net.stages[i].downsample.conv = conv
        for block in net.stages[i].blocks:
            block.channel_block.attn.groups = spec["NUM_GROUPS"][i]
    return net.eval()


def timm_name(name):
    """The name in timm's DaViT of the parameter `name` of `image_encoder`."""
    if name.startswith("norms."):
        return name.replace("norms.", "head.norm.")
    if match := re.fullmatch(r"convs\.0\.(proj|norm)\.(\w+)", name):
        return f"stem.{'conv' if match[1] == 'proj' else 'norm'}.{match[2]}"
    if match := re.fullmatch(r"convs\.(\d+)\.(proj|norm)\.(\w+)", name):
        return f"stages.{match[1]}.downsample.{'conv' if match[2] == 'proj' else 'norm'}.{match[3]}"
    match = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(spatial_block|channel_block)\.(.*)", name)
    rest = match[4]
    for ours, theirs in _HALF_BLOCK.items():
        if rest.startswith(ours + "."):
            return f"stages.{match[1]}.blocks.{match[2]}.{match[3]}.{theirs}{rest[len(ours):]}"
    raise KeyError(name)


class _TextBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps=1e-12)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(dim, eps=1e-12)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(dim, 4 * dim), "c_proj": nn.Linear(4 * dim, dim)})

    def forward(self, x, padding, causal):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, key_padding_mask=padding, attn_mask=causal, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * (1.702 * y).sigmoid())


class TextTower(nn.Module):
    """CLIP-style text encoder; [B, L] ids and mask -> [B, WIDTH]."""

    def __init__(self, spec, vocabulary):
        super().__init__()
        dim = spec["WIDTH"]
        self.causal = bool(spec.get("AUTOGRESSIVE", False))
        self.token_embedding = nn.Embedding(vocabulary, dim)
        self.positional_embedding = nn.Parameter(torch.zeros(spec["CONTEXT_LENGTH"], dim))
        self.resblocks = nn.ModuleList([_TextBlock(dim, spec["HEADS"]) for _ in range(spec["LAYERS"])])
        self.ln_final = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, ids, mask):
        length = ids.shape[1]
        causal = torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=1) if self.causal else None
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        for block in self.resblocks:
            x = block(x, mask == 0, causal)
        x = self.ln_final(x)
        first_maximum = [row.index(max(row)) for row in ids.tolist()]
        return torch.stack([x[i, position] for i, position in enumerate(first_maximum)])


class Reference:
    """Both towers with the weights of `state` (checkpoint names), f32, on the CPU."""

    def __init__(self, config, state):
        prefix = "image_encoder."
        self.image = davit(config["IMAGE_ENCODER"]["SPEC"])
        self.image.load_state_dict({timm_name(k[len(prefix):]): v for k, v in state.items() if k.startswith(prefix)}, strict=True)
        prefix = "lang_encoder."
        self.text = TextTower(config["LANG_ENCODER"], state[prefix + "token_embedding.weight"].shape[0]).eval()
        self.text.load_state_dict({k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}, strict=True)
        self.state = state

    @torch.no_grad()
    def encode_image(self, pixels):
        """[B, 3, H, W] -> unit vectors [B, P]."""
        x = self.image(pixels) @ self.state["image_projection"]
        return x / x.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def encode_text(self, ids, mask):
        """[B, L] twice -> unit vectors [B, P]."""
        x = self.text(ids, mask) @ self.state["lang_projection"]
        return x / x.norm(dim=1, keepdim=True)

    def tokens(self, tokenizer, texts, length=None):
        """Ids and mask [B, L] of strings; rows are padded to the longest or to `length`, with what the original takes."""
        context = self.text.positional_embedding.shape[0]
        start, end = tokenizer.token_to_id("<|startoftext|>"), tokenizer.token_to_id("<|endoftext|>")
        rows = [[start, *tokenizer.encode(text, add_special_tokens=False).ids[: context - 2], end] for text in texts]
        length = length or max(map(len, rows))
        ids = torch.tensor([row + [end] * (length - len(row)) for row in rows])
        return ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])

    def encode_texts(self, tokenizer, texts):
        """Strings -> unit vectors [B, P]; every row padded to the full context, as the original serves."""
        return self.encode_text(*self.tokens(tokenizer, texts, self.text.positional_embedding.shape[0]))


def adapter_logits(state, features):
    """Logits [B, classes] of the adapter with the weights of `state` (the names of `best_metric_model.pth`)."""
    width, inputs = state["vision_embd.0.weight"].shape
    hidden, classes = state["retrieval_conv.0.weight"].shape[0], state["prediction_head.0.weight"].shape[0]
    net = nn.ModuleDict(
        {
            "vision_embd": nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width)),
            "retrieval_conv": nn.Sequential(nn.Conv1d(width, hidden, 3, padding=1), nn.GELU(), nn.Conv1d(hidden, hidden, 3, padding=1)),
            "prediction_head": nn.Sequential(nn.Linear(hidden, classes)),
        }
    )
    net.load_state_dict(state, strict=True)
    with torch.no_grad():
        sequence = net["vision_embd"](features)[:, :, None]  # length 1
        return net["prediction_head"](net["retrieval_conv"](sequence)[:, :, 0])


class Package:
    """A medtune package read by public libraries: weights by safetensors, text by tokenizers, pixels by Pillow."""

    def __init__(self, folder):
        root = Path(folder) / "artifacts" / "checkpoints"
        self.settings = json.loads((root / "medtune.json").read_text())
        # stored in half precision they are computed with in f32
        state = {name: tensor.float() for name, tensor in load_file(root / self.settings["weights"]).items()}
        self.model = Reference(yaml.safe_load((root / "config.yaml").read_text()), state)
        self.tokenizer = Tokenizer.from_file(str(root / self.settings["tokenizer"]))
        self.logit_scale = float(state["logit_scale"])
        if classifier := self.settings["classifier"]:
            self.labels = json.loads((root / classifier["labels"]).read_text())
            self.weights = load_file(root / (classifier["class_embeddings"] or classifier["adapter"]))

    def image_features(self, images):
        """Unit vectors [n, P] of encoded images."""
        return self.model.encode_image(torch.stack([pixels(data, self.settings["pixels"]) for data in images]))

    def text_features(self, texts):
        """Unit vectors [n, P] of texts."""
        return self.model.encode_texts(self.tokenizer, texts)

    def scores(self, features):
        """Probabilities [n, classes] in f64 from unit vectors [n, P]."""
        if self.settings["classifier"]["kind"] == "adapter":
            logits = adapter_logits(self.weights, features).double()
        else:
            logits = math.exp(self.logit_scale) * features.double() @ self.weights["class_embeddings"].double().T
        return logits.softmax(dim=1)
