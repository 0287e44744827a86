"""What makes the image encoder fast on a CPU: products of matrices by oneDNN over weights that are laid out once, and small attention in plain products.

The operations of oneDNN are not part of torch's public interface. They are tried before they are relied on; where they are missing or have
changed, torch's public ones take their place.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

# Linux's malloc takes what is larger than 32 MiB, its own header included, from the system and gives it back each time, so that its
# pages are filled with zeros anew.
_KEPT_BYTES = 32 * 1024 * 1024 - 64 * 1024


class Linear(nn.Linear):
    """x W^t + b, [..., C_in] -> [..., C_out], then GELU, or the sum with `residual` [..., C_out]."""

    packed = None

    def pack(self):
        """Keeps the weight in oneDNN's layout only, for inference on a CPU. Raises RuntimeError where oneDNN lacks its type."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
        self.weight = None

    def forward(self, x, gelu=False, residual=None):
        if self.packed is None:
            y = F.linear(x, self.weight, self.bias)
            y = F.gelu(y) if gelu else y
            return y if residual is None else residual + y
        if residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.packed, self.bias, "add")
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, *(("gelu", [], "none") if gelu else ("none", [], "")))


def pack(module):
    """Packs the layers of `module`, on a CPU, where oneDNN's products are the faster ones."""
    layers = [layer for layer in module.modules() if isinstance(layer, Linear)]
    if layers and _packing_pays(layers[0].weight.dtype):
        for layer in layers:
            layer.pack()


def has_bfloat16_products():
    """Whether the CPU multiplies in bf16, as far as this knows: others make f32 of it first, and take longer than in f32."""
    return "avx512_bf16" in _processor().get("flags", "").split()


def scaled_product(a, b, scale):
    """a b times `scale`; [B, L, M] and [B, M, N] -> [B, L, N]."""
    return torch.baddbmm(a.new_zeros(()), a, b, beta=0, alpha=scale)


def attend(q, k, v):
    """softmax(q k^t / sqrt(D)) v; all [B, heads, N, D]."""
    b, heads, n, d = q.shape
    if q.device.type != "cpu" or b * heads * n * n * q.element_size() > _KEPT_BYTES:
        return F.scaled_dot_product_attention(q, k, v)
    q, k, v = (x.reshape(b * heads, n, d) for x in (q, k, v))
    weights = scaled_product(q, k.transpose(1, 2), d**-0.5).softmax(dim=-1)
    return torch.bmm(weights, v).view(b, heads, n, d)


def images_at_once(spec, height, width, element_size):
    """How many images of `height` x `width` a CPU should encode at once: as many as keep the largest tensor within what malloc keeps, 1 at least."""
    stride = spec["PATCH_STRIDE"][0]
    tokens = -(-height // stride) * -(-width // stride)
    return max(1, _KEPT_BYTES // (tokens * 4 * spec["DIM_EMBED"][0] * element_size))


@functools.lru_cache(maxsize=None)
def _processor():
    """{key: value} of the first processor in Linux's list; x86 has `vendor_id` and `flags` there."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = file.read().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


@functools.lru_cache(maxsize=None)
def _packing_pays(dtype):
    """Whether oneDNN takes less time than what torch takes by itself, and computes what is expected of it."""
    vendor = _processor().get("vendor_id")
    # in f32 torch takes MKL, which is at its best on its maker's processors
    if vendor is None or (dtype == torch.float32 and vendor == "GenuineIntel"):
        return False
    return _packed_linear_works(dtype)


def _packed_linear_works(dtype):
    """Whether the operations are there, and answer as torch's public ones do."""
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    try:
        values = torch.linspace(-2, 2, 12 * (32 + 48) + 32 * 48 + 48).sin().to(dtype)
        x, residual, weight, bias = values.split([12 * 32, 12 * 48, 32 * 48, 48])
        x, residual = x.view(2, 3, 2, 32), residual.view(3, 2, 2, 48).transpose(0, 1)
        with torch.device("meta"):
            layer = Linear(32, 48)
        layer.load_state_dict({"weight": weight.view(48, 32), "bias": bias}, assign=True)
        calls = {}, {"gelu": True}, {"residual": residual}
        with torch.inference_mode():
            expected = [layer(x, **call) for call in calls]
            layer.pack()
            return all(torch.allclose(layer(x, **call), y, rtol=tolerance, atol=tolerance) for call, y in zip(calls, expected))
    except (AttributeError, RuntimeError, TypeError):
        return False
