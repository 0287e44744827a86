"""Image rows that cannot be used, of fifty kinds."""

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(mode="RGB", size=(24, 20), **options):
    rng = np.random.default_rng(7)
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode).save(out, **({"format": "JPEG"} | options))
    return out.getvalue()


def png(width, height, depth=8, colour=2, data=b""):
    """A PNG whose header says what it likes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def jpeg_of(width, height):
    """A JPEG whose header says that it has this size."""
    data = bytearray(encoded())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def tiff_of(width, height, bits=8, sample_format=1):
    """A TIFF header without the pixels that it speaks of."""
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 8), (339, sample_format)]
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\x00\x08\x00\x00\x00" + body + b"\x00" * 12


def bmp_of(width, height):
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + b"\x00" * 16


def text(data):
    return base64.b64encode(data).decode()


def images():
    """Kinds of bytes that are no image: {name: bytes}."""
    jpeg, picture = encoded(), encoded(format="PNG")
    webp, tiff, gif = encoded(format="WEBP"), encoded(format="TIFF"), encoded("L", format="GIF")
    float_tiff = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(float_tiff, "TIFF")
    broken = bytearray(picture)
    broken[picture.index(b"IDAT") + 8] ^= 0xFF
    found = {
        **{f"jpeg-{cut}": jpeg[:cut] for cut in (1, 2, 3, 20, 100, len(jpeg) // 2, len(jpeg) - 2)},
        **{f"png-{cut}": picture[:cut] for cut in (4, 8, 20, 33, len(picture) // 2)},
        **{f"webp-{cut}": webp[:cut] for cut in (6, 12, 20, len(webp) // 2)},
        **{f"tiff-{cut}": tiff[:cut] for cut in (4, 8, 100)},
        **{f"zeros-{size}": b"\x00" * size for size in (1, 100, 5000)},
        "jpeg-bomb": jpeg_of(65500, 65500),
        "jpeg-no-pixels": jpeg_of(0, 0),
        "png-bomb": png(60000, 60000, data=b"\x00" * 1000),
        "png-wide": png(200_000, 1, data=b"\x00" * 1000),
        "png-huge-header": png(2**31 - 1, 2**31 - 1),
        "png-no-pixels": png(0, 5),
        "png-odd-depth": png(4, 4, depth=3),
        "png-no-data": png(24, 20, data=b""),
        "png-damaged": bytes(broken),
        "tiff-bomb": tiff_of(100_000, 100_000),
        "tiff-no-pixels": tiff_of(0, 0),
        "tiff-cut": tiff_of(400, 400),
        "tiff-float": float_tiff.getvalue(),
        "bmp-bomb": bmp_of(100_000, 100_000),
        "bmp-cut": bmp_of(300, 300),
        "gif": gif,
        "pdf": b"%PDF-1.7\n" + b"x" * 50,
        "html": b"<html><body>404</body></html>",
        "dicom": b"\x00" * 128 + b"DICM" + b"\x02\x00" * 40,
        "noise": np.random.default_rng(1).bytes(3000),
    }
    return found


def lines(good):
    """Rows as they stand in the file: {name: bytes without the line end}; `good` is the key of a row that is there before them."""
    image = text(encoded()).encode()
    rows = {f"image-{name}": f"bad/{name}\t{text(data)}".encode() for name, data in images().items()}
    rows |= {
        "no-tab": b"bad/no-tab",
        "nothing": b"",
        "no-key": b"\t" + image,
        "no-value": b"bad/no-value\t",
        "key-no-utf8": b"bad/\xff\xfe\t" + image,
        "base64-character": b"bad/character\t" + image[:40] + b"*" + image[41:],
        "base64-length": b"bad/length\t" + image[:-3],
        "base64-padding": b"bad/padding\t" + image.rstrip(b"=") + b"A===",
        "base64-blank": b"bad/blank\t" + image[:40] + b" " + image[40:],
        "value-no-utf8": b"bad/value\t\xff\xfe" + image,
        "another-column": b"bad/column\tgood\t" + image,
        "key-again": good.encode() + b"\t" + image,
    }
    return rows
