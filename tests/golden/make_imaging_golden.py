"""Writes imaging.json: what Pillow and numpy make of small images, for the unit tests of src/imaging.

Run `python tests/golden/make_imaging_golden.py` after changing it; the output depends on nothing but this file and
Pillow (any version with libjpeg-turbo).
"""

import base64
import io
import json
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

rng = np.random.default_rng(0)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def png_text(key, value):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, value)
    return info


def text(data):
    return base64.b64encode(bytes(data)).decode()


def noise(width, height, channels=3):
    """Random pixels on a gradient: hard edges for the resize, something to keep for JPEG."""
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[..., None]
    values = rng.integers(0, 256, (height, width, channels)) // 2 + ramp % 128
    return Image.fromarray(values.astype(np.uint8).squeeze())


def picture(image):
    image = image.convert("RGB")
    return {"width": image.width, "height": image.height, "pixels": text(image.tobytes())}


def file(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width, height, depth, color):
    """A PNG of random samples of a bit depth that Pillow does not write. Colour types: 0 grey, 2 RGB, 4 grey with alpha."""
    row = (width * depth * {0: 1, 2: 3, 4: 2}[color] + 7) // 8
    rows = b"".join(b"\0" + rng.integers(0, 256, row).astype(np.uint8).tobytes() for _ in range(height))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in [*chunks, (b"IEND", b"")])


def upright(data):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I"):  # 16-bit grey: Pillow has no scaled conversion
        image = Image.fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).astype(np.uint8))
    return image.convert("RGB")


def resize(image, size, box=None):
    """Horizontally, then vertically: the order of Pillow up to version 12. Version 13 turns it round for images whose
    height shrinks much more than their width, and gives other bytes for them; one axis at a time, all versions agree."""
    x0, y0, x1, y1 = box or (0, 0, *image.size)
    image = image.resize((size[0], image.height), Image.BICUBIC, box=(x0, 0, x1, image.height))
    return image.resize(size, Image.BICUBIC, box=(0, y0, size[0], y1))


def resize_cases():
    sizes = [
        ((7, 5), (16, 16)), ((33, 21), (10, 13)), ((8, 8), (32, 32)), ((20, 30), (20, 11)), ((20, 30), (9, 30)),
        ((1, 1), (4, 3)), ((17, 3), (5, 9)), ((64, 48), (3, 2)), ((31, 31), (30, 32)), ((20, 60), (25, 24)),
    ]  # fmt: skip
    for source, target in sizes:
        image = noise(*source) if source != (8, 8) else noise(8, 8, 1).convert("RGB")
        yield {"from": picture(image), "box": None, "to": picture(resize(image, target))}
    image = noise(24, 18)
    for box in [(3, 2, 20, 17), (0.5, 0.25, 20.75, 17.5), (0, 0, 24, 9), (4, 0, 14, 18)]:
        yield {"from": picture(image), "box": box, "to": picture(resize(image, (10, 12), box))}


def encode_cases():
    for quality, size in [(75, (37, 21)), (95, (16, 16)), (30, (9, 40)), (100, (8, 8)), (1, (20, 20))]:
        image = noise(*size)
        data = file(image, "JPEG", quality=quality)
        yield {"from": picture(image), "quality": quality, "file": text(data), "to": picture(upright(data))}


def decode_cases():
    image = noise(30, 22)
    exif = lambda n: {"exif": (lambda e: (e.__setitem__(0x0112, n), e)[1])(Image.Exif())}
    files = {
        "jpeg 4:2:0": file(image, "JPEG", quality=80),
        "jpeg 4:2:2": file(image, "JPEG", quality=80, subsampling=1),
        "jpeg 4:4:4": file(image, "JPEG", quality=80, subsampling=0),
        "jpeg progressive": file(image, "JPEG", quality=80, progressive=True),
        "jpeg grey": file(image.convert("L"), "JPEG", quality=80),
        "jpeg cmyk": file(image.convert("CMYK"), "JPEG", quality=90),
        "png rgb": file(image, "PNG"),
        "png grey": file(image.convert("L"), "PNG"),
        "png rgba": file(noise(30, 22, 4), "PNG"),
        "png grey with alpha": file(Image.merge("LA", [noise(9, 7, 1), noise(9, 7, 1)]), "PNG"),
        "png palette": file(image.quantize(16), "PNG"),
        "png one bit": file(image.convert("1"), "PNG"),
        "png orientation 8": file(image, "PNG", **exif(8)),
        "bmp": file(image, "BMP"),
        "tiff": file(image, "TIFF"),
        "tiff lzw grey": file(image.convert("L"), "TIFF", compression="tiff_lzw"),
        "tiff orientation 6": file(image, "TIFF", tiffinfo={0x0112: 6}),
        "png grey 2 bit": png(13, 7, 2, 0),
        "png grey 4 bit": png(13, 7, 4, 0),
        "png grey 16 bit": png(13, 7, 16, 0),
        "png rgb 16 bit": png(13, 7, 16, 2),
        "png grey with alpha 16 bit": png(13, 7, 16, 4),
        "png transparent colour": file(image, "PNG", transparency=image.getpixel((3, 3))),
        "png transparent palette": file(image.quantize(16), "PNG", transparency=2),
        "jpeg orientation in xmp": file(image, "JPEG", quality=80, xmp=XMP),
        "png orientation in xmp": file(image, "PNG", pnginfo=png_text("XML:com.adobe.xmp", XMP.decode())),
        "webp lossless": file(image, "WEBP", lossless=True),
    }
    files |= {f"jpeg orientation {n}": file(image, "JPEG", quality=80, **exif(n)) for n in range(1, 9)}
    for name, data in files.items():
        yield {"name": name, "file": text(data), "to": picture(upright(data))}


def path_cases():
    for name, data in {"digit": file(noise(8, 8, 1), "PNG"), "photo": file(noise(50, 34), "JPEG", quality=90)}.items():
        standard = resize(upright(data), (32, 32))
        again = resize(upright(file(standard, "JPEG", quality=75)), (20, 24))
        values = np.asarray(again).astype(np.float32) / np.float32(255)
        values = (values - np.float32(MEAN)) / np.float32(STD)
        yield {"name": name, "file": text(data), "values": text(values.transpose(2, 0, 1).astype("<f4").tobytes())}


result = {
    "resize": list(resize_cases()), "encode": list(encode_cases()), "decode": list(decode_cases()),
    "path": list(path_cases()),
}  # fmt: skip
pathlib.Path(__file__).with_name("imaging.json").write_text(json.dumps(result, indent=0) + "\n")
