"""From what a request holds in an image cell to the numbers that the network reads.

Every path of medtune (training, embedding, prediction, this package) sees the same pixels: decode, upright by EXIF, RGB, bicubic resize to a square,
JPEG, decode, bicubic resize to the network's size, normalise. Nothing is fetched: a URL is refused.
"""

import base64
import binascii
import contextlib
import io
import threading

import numpy as np
from PIL import Image, ImageOps

MAX_ENCODED_BYTES = 128 * 1024 * 1024
MAX_PIXELS = 178_956_970
MAX_SIDE = 65_535  # resizing a longer one by one axis at a time could take any memory
LARGE_PIXELS = 16_000_000  # decoding takes up to 25 bytes a pixel: of larger images there is one at a time in a process
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+", b"BM")

_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284  # tags of TIFF


class ImageError(ValueError):
    """The cell does not hold a usable image; the message is for the caller of the service."""


def is_absent(cell):
    """Whether a cell of a request is empty: None, NaN, NA, or an empty or blank string or bytes."""
    if isinstance(cell, (str, bytes)):
        return not cell.strip()
    return cell is None or type(cell).__name__ in ("NAType", "NaTType") or (isinstance(cell, float) and cell != cell)


def image_bytes(cell):
    """The encoded image in `cell`: its bytes, its base64 as text (also `data:...;base64,`), or that text as bytes.

    Servers differ in which of the three they pass on for the same request. Raises ImageError.
    """
    if isinstance(cell, (bytearray, memoryview)):
        cell = bytes(cell)
    if isinstance(cell, bytes) and _is_image(cell):
        return _checked_size(bytes(cell))
    if isinstance(cell, bytes):
        try:
            cell = cell.decode("ascii")
        except UnicodeDecodeError:
            raise ImageError("not a JPEG, PNG, TIFF, BMP or WebP image") from None
    if not isinstance(cell, str):
        raise ImageError(f"an image is bytes or base64 text, not {type(cell).__name__}")
    text = cell.strip()
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if "://" in text[:4096]:
        raise ImageError("URLs are not fetched; send the image itself in base64")
    if len(text) > MAX_ENCODED_BYTES * 3 // 2:
        raise ImageError(f"larger than {MAX_ENCODED_BYTES} bytes")
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("not valid base64") from None
    if not _is_image(data):
        raise ImageError("not a JPEG, PNG, TIFF, BMP or WebP image")
    return _checked_size(data)


def _is_image(data):
    return data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _checked_size(data):
    if len(data) > MAX_ENCODED_BYTES:
        raise ImageError(f"larger than {MAX_ENCODED_BYTES} bytes")
    return data


def decode(data):
    """An upright 8-bit RGB Pillow image of `data`. Raises ImageError.

    Alpha is dropped, grey is replicated, CMYK is converted by Pillow's formula. 16-bit grey is scaled and rounded; of other
    16-bit values (colour, grey with alpha) Pillow takes the high byte.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:  # Pillow's own limit, which a host program may have lifted
                raise ImageError(f"{image.width * image.height} pixels are more than {MAX_PIXELS}")
            if max(image.width, image.height) > MAX_SIDE:
                raise ImageError(f"a side of {max(image.width, image.height)} pixels is longer than {MAX_SIDE}")
            tags = image.tag_v2 if image.format == "TIFF" else {}
            if tags.get(_PLANES) == 2 and max(tags.get(_BITS, (1,))) > 8:  # of which Pillow makes other colours, without an error
                raise ImageError("a TIFF of 16 bits with a plane for each channel is not supported; store the channels of a pixel together")
            image.load()
            # Pillow inverts grey of 8 bits and less itself
            inverted = image.mode.startswith("I") and tags.get(_PHOTOMETRIC) == 0
            return _to_rgb(ImageOps.exif_transpose(image), inverted)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many types for damaged files, among them its DecompressionBombError
        raise ImageError(f"cannot decode the image: {error}") from None


def _to_rgb(image, inverted):
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError("grey values beyond 16 bits are not supported")
        values = 65535 - values if inverted else values
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"):
        raise ImageError(f"colour mode {image.mode} is not supported; convert the image to RGB or grey")
    return image.convert("RGB")


def _resize(image, width, height):
    """Bicubic and antialiased, columns before rows: Pillow up to 12 does so in one call, Pillow 13 not always, which changes bytes."""
    return image.resize((width, image.height), Image.Resampling.BICUBIC).resize((width, height), Image.Resampling.BICUBIC)


_one_large = threading.Lock()


def _turn(data, size):
    """What to hold while the image is decoded and resized to `size`; on the way there it has one side of each."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            pixels = max(image.width * image.height, size * max(image.width, image.height))
    except Exception:
        pixels = 0  # `decode` says what is wrong with it
    return _one_large if pixels > LARGE_PIXELS else contextlib.nullcontext()


def standardise(data, size, quality):
    """The image as `size` x `size` JPEG of `quality`, decoded again: what the network was trained on."""
    buffer = io.BytesIO()
    with _turn(data, size):
        small = _resize(decode(data), size, size)
    small.save(buffer, "JPEG", quality=quality)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def rgb(data, settings, size, quality):
    """uint8 [H, W, 3] of one encoded image; `settings` is `pixels` of medtune.json, `size` and `quality` may differ per request."""
    height, width = settings["image_size"]
    return np.asarray(_resize(standardise(data, size, quality), width, height))


def pixels(data, settings, size, quality):
    """float32 [3, H, W], normalised: what the network reads of `rgb`."""
    values = rgb(data, settings, size, quality)
    return np.stack([table[values[..., channel]] for channel, table in enumerate(_byte_values(settings))])


def _byte_values(settings):
    """float32 [3, 256]: each value of a byte, normalised as one of each channel."""
    mean, std = (np.float32(settings[key])[:, None] for key in ("mean", "std"))
    return (np.arange(256, dtype=np.float32) / np.float32(255) - mean) / std
