"""Reads safetensors files with nothing but the standard library and torch.

A safetensors file is an 8-byte little-endian header length, a JSON header naming each tensor's dtype, shape and byte range, and the raw bytes.
There is nothing to execute in it. The file is mapped, not read: opening costs no memory until a tensor is used.
"""

import json
import math
import mmap
import os

import torch

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_HEADER_BYTES = 100_000_000


def read_safetensors(path):
    """Returns {name: float32 tensor} of every tensor in the file at `path`; f16 and bf16 are widened to f32.

    Raises ValueError, naming the file and the tensor, when the file is not a well-formed safetensors file of floats.
    """
    name = os.path.basename(path)
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < 10:
            raise ValueError(f"{name}: too short for a safetensors file")
        # ACCESS_COPY gives private writable pages, which torch.frombuffer asks for; the file itself never changes.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    header_bytes = int.from_bytes(data[:8], "little")
    start = 8 + header_bytes
    if header_bytes > _MAX_HEADER_BYTES or start > len(data):
        raise ValueError(f"{name}: not a safetensors file (header of {header_bytes} bytes in a file of {len(data)})")
    try:
        header = json.loads(data[8:start])
        entries = {key: (e["dtype"], e["shape"], e["data_offsets"]) for key, e in header.items() if key != "__metadata__"}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{name}: unreadable safetensors header: {error}") from None
    return {key: _tensor(f"{name}: {key}", data, start, entry) for key, entry in entries.items()}


def _tensor(what, data, start, entry):
    dtype_name, shape, (begin, end) = entry
    dtype = _DTYPES.get(dtype_name)
    if dtype is None:
        raise ValueError(f"{what}: dtype {dtype_name} is not one of {', '.join(_DTYPES)}")
    count = math.prod(shape)
    if count < 1 or begin < 0 or end - begin != count * dtype.itemsize or start + end > len(data):
        raise ValueError(f"{what}: bytes {begin}..{end} do not hold shape {shape} of {dtype_name}")
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start + begin).view(shape).float()
