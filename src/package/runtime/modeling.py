"""The networks in plain torch: DaViT image encoder, text transformer, their joint UniCL model, and the adapter classifier.

Parameter names are the checkpoint's names, so that a state dict loads as it is, strictly. Inference only: no dropout, no drop path.
Shapes: B images or texts, H x W tokens of the image grid, N = H * W, C channels, L text tokens, P width of the shared embedding.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .onednn import Linear, attend, scaled_product


class ConvEmbed(nn.Module):
    """A strided convolution that starts a stage: [B, H, W, C_in] -> [B, H', W', C_out], normalised before or after."""

    def __init__(self, dim_in, dim_out, kernel, stride, padding, prenorm):
        super().__init__()
        self.prenorm = prenorm
        self.proj = nn.Conv2d(dim_in, dim_out, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim_in if prenorm else dim_out)

    def forward(self, x):
        x = self.norm(x) if self.prenorm else x
        x = self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x if self.prenorm else self.norm(x)


class DepthWise(nn.Module):
    """x + 3 x 3 depthwise convolution of x, on [B, H, W, C]."""

    def __init__(self, dim):
        super().__init__()
        self.fn = nn.ModuleDict({"dw": nn.Conv2d(dim, dim, 3, padding=1, groups=dim)})

    def forward(self, x):
        return x + self.fn["dw"](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class WindowAttention(nn.Module):
    """x + self-attention inside windows of `window` x `window` tokens, on [B, H, W, C].

    The grid is zero-padded at the right and bottom after the norm, and the padding takes part in the attention: as trained.
    """

    def __init__(self, dim, heads, window):
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(dim)
        self.fn = nn.ModuleDict({"qkv": Linear(dim, 3 * dim), "proj": Linear(dim, dim)})

    def forward(self, x):
        b, h, w, c = x.shape
        s = self.window
        rows, columns, head = -(-h // s), -(-w // s), c // self.heads
        qkv = self.fn["qkv"](self.norm(x))
        if (rows * s, columns * s) != (h, w):
            # what the product makes of zeros is its bias
            padded = self.fn["qkv"].bias.expand(b, rows * s, columns * s, 3 * c).clone()
            padded[:, :h, :w] = qkv
            qkv = padded
        qkv = qkv.view(b, rows, s, columns, s, 3, self.heads, head).permute(5, 0, 1, 3, 6, 2, 4, 7)
        y = attend(*qkv.reshape(3, -1, self.heads, s * s, head))
        y = y.view(b, rows, columns, self.heads, s, s, head).permute(0, 1, 4, 2, 5, 3, 6)
        y = y.reshape(b, rows * s, columns * s, c)[:, :h, :w]
        return self.fn["proj"](y.contiguous(), residual=x)


class ChannelAttention(nn.Module):
    """x + attention between the channels of each group, on [B, H, W, C]; the scale is N^-0.5, N the number of tokens."""

    def __init__(self, dim, groups):
        super().__init__()
        self.groups = groups
        self.norm = nn.LayerNorm(dim)
        self.fn = nn.ModuleDict({"qkv": Linear(dim, 3 * dim), "proj": Linear(dim, dim)})

    def forward(self, x):
        b, h, w, c = x.shape
        n, group = h * w, c // self.groups
        qkv = self.fn["qkv"](self.norm(x)).view(b, n, 3, self.groups, group)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, b * self.groups, n, group)
        weights = scaled_product(q.transpose(1, 2), k, n**-0.5).softmax(dim=-1)
        y = torch.bmm(v, weights.transpose(1, 2)).view(b, self.groups, n, group)
        return self.fn["proj"](y.transpose(1, 2).reshape(b, h, w, c), residual=x)


class FeedForward(nn.Module):
    """x + two-layer perceptron of x, four times as wide inside, on [..., C]."""

    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = nn.ModuleDict({"net": nn.ModuleDict({"fc1": Linear(dim, 4 * dim), "fc2": Linear(4 * dim, dim)})})

    def forward(self, x):
        net = self.fn["net"]
        return net["fc2"](net["fc1"](self.norm(x), gelu=True), residual=x)


class HalfBlock(nn.Module):
    """Depthwise convolution, attention (`window_attn` or `channel_attn`), depthwise convolution, perceptron."""

    def __init__(self, dim, name, attention):
        super().__init__()
        self.attention = name
        self.conv1 = DepthWise(dim)
        self.add_module(name, attention)
        self.conv2 = DepthWise(dim)
        self.ffn = FeedForward(dim)

    def forward(self, x):
        return self.ffn(self.conv2(getattr(self, self.attention)(self.conv1(x))))


class DaViT(nn.Module):
    """Image encoder: [B, 3, height, width] normalised pixels -> [B, DIM_EMBED[-1]]. Built from `IMAGE_ENCODER.SPEC`."""

    def __init__(self, spec):
        super().__init__()
        dims, window = spec["DIM_EMBED"], spec["WINDOW_SIZE"]
        self.convs, self.blocks = nn.ModuleList(), nn.ModuleList()
        for i, dim in enumerate(dims):
            conv = [spec[key][i] for key in ("PATCH_SIZE", "PATCH_STRIDE", "PATCH_PADDING", "PATCH_PRENORM")]
            self.convs.append(ConvEmbed(dims[i - 1] if i else 3, dim, *conv))
            stage = nn.ModuleList()
            for _ in range(spec["DEPTHS"][i]):
                spatial = HalfBlock(dim, "window_attn", WindowAttention(dim, spec["NUM_HEADS"][i], window))
                channel = HalfBlock(dim, "channel_attn", ChannelAttention(dim, spec["NUM_GROUPS"][i]))
                stage.append(nn.ModuleDict({"spatial_block": spatial, "channel_block": channel}))
            self.blocks.append(stage)
        self.norms = nn.LayerNorm(dims[-1])

    def compute_in(self, dtype):
        """Encodes in `dtype` from now on; the mean over tokens and its norm stay as they are."""
        self.convs.to(dtype)
        self.blocks.to(dtype)

    def forward(self, pixels):
        x = pixels.to(self.convs[0].proj.weight.dtype).permute(0, 2, 3, 1)
        for conv, stage in zip(self.convs, self.blocks):
            x = conv(x)
            for block in stage:
                x = block["channel_block"](block["spatial_block"](x))
        return self.norms(x.mean(dim=(1, 2), dtype=self.norms.weight.dtype))


class TextAttention(nn.Module):
    """Multi-head self-attention on [B, L, C]; `allowed` is true where a query may look at a key."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x, allowed):
        b, length, c = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).view(b, length, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.out_proj(y.transpose(1, 2).reshape(b, length, c))


class TextBlock(nn.Module):
    """Pre-norm attention and QuickGELU perceptron, both residual, on [B, L, C]."""

    def __init__(self, dim, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps=1e-12)
        self.attn = TextAttention(dim, heads)
        self.ln_2 = nn.LayerNorm(dim, eps=1e-12)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(dim, 4 * dim), "c_proj": nn.Linear(4 * dim, dim)})

    def forward(self, x, allowed):
        x = x + self.attn(self.ln_1(x), allowed)
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class TextTransformer(nn.Module):
    """Text encoder: token ids and attention mask, both [B, L] -> [B, WIDTH], the state of each row's first end token.

    The end token has the highest id of the vocabulary, so it is the first maximum of the row. Built from `LANG_ENCODER`.
    """

    def __init__(self, spec, vocabulary):
        super().__init__()
        dim = spec["WIDTH"]
        self.causal = bool(spec.get("AUTOGRESSIVE", False))
        self.token_embedding = nn.Embedding(vocabulary, dim)
        self.positional_embedding = nn.Parameter(torch.empty(spec["CONTEXT_LENGTH"], dim))
        self.resblocks = nn.ModuleList(TextBlock(dim, spec["HEADS"]) for _ in range(spec["LAYERS"]))
        self.ln_final = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, ids, mask):
        b, length = ids.shape
        allowed = mask.bool()[:, None, None, :].expand(b, 1, length, length)
        if self.causal:
            allowed = allowed & torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        for block in self.resblocks:
            x = block(x, allowed)
        return self.ln_final(x)[torch.arange(b, device=ids.device), ids.argmax(dim=1)]


class UniCL(nn.Module):
    """Both encoders and their projections into one space of width P = `UNICL_MODEL.DIM_PROJECTION`."""

    def __init__(self, config, vocabulary):
        super().__init__()
        image_dim, text_dim = config["IMAGE_ENCODER"]["SPEC"]["DIM_EMBED"][-1], config["LANG_ENCODER"]["WIDTH"]
        dim = config["UNICL_MODEL"]["DIM_PROJECTION"]
        self.image_encoder = DaViT(config["IMAGE_ENCODER"]["SPEC"])
        self.lang_encoder = TextTransformer(config["LANG_ENCODER"], vocabulary)
        self.image_projection = nn.Parameter(torch.empty(image_dim, dim))
        self.lang_projection = nn.Parameter(torch.empty(text_dim, dim))
        self.logit_scale = nn.Parameter(torch.empty(()))  # a logarithm

    def encode_image(self, pixels):
        """[B, 3, height, width] -> unit vectors [B, P]."""
        return F.normalize(self.image_encoder(pixels) @ self.image_projection, dim=-1)

    def encode_text(self, ids, mask):
        """Two [B, L] -> unit vectors [B, P]."""
        return F.normalize(self.lang_encoder(ids, mask) @ self.lang_projection, dim=-1)


class Adapter(nn.Module):
    """The classifier trained on embeddings: [B, input_channels] -> logits [B, classes].

    The convolutions see a sequence of length 1, so only their middle taps act; the others are kept for compatibility of checkpoints.
    """

    def __init__(self, config, width=512):
        super().__init__()
        inputs, hidden, classes = config["input_channels"], config["hidden_dimensions"], config["classes"]
        self.vision_embd = nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))
        convolutions = nn.Conv1d(width, hidden, 3, padding=1), nn.GELU(), nn.Conv1d(hidden, hidden, 3, padding=1)
        self.retrieval_conv = nn.Sequential(*convolutions)
        self.prediction_head = nn.Sequential(nn.Linear(hidden, classes))

    def forward(self, features):
        x = self.vision_embd(features).unsqueeze(-1)
        return self.prediction_head(self.retrieval_conv(x).squeeze(-1))


def load(build, state, device):
    """The module that `build()` makes, holding exactly the tensors of `state`, on `device`, for inference."""
    with torch.device("meta"):
        module = build()
    module.load_state_dict(state, strict=True, assign=True)
    return module.to(device).eval().requires_grad_(False)


def load_unicl(config, state, device):
    """UniCL of `config` (the parsed config.yaml) with the weights of `state`; the vocabulary's size is that of the weights."""
    embedding = state.get("lang_encoder.token_embedding.weight")
    if embedding is None:
        raise ValueError("the weights have no lang_encoder.token_embedding.weight: not a UniCL checkpoint")
    return load(lambda: UniCL(config, embedding.shape[0]), state, device)
