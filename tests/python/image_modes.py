"""Image files of every mode that medtune reads, and of some that it refuses. Made by Pillow where it can write them, by hand elsewhere.

A `Sample` has its RGB pixels with it where Pillow's own conversion is not what is wanted, or where Pillow cannot read the file."""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

SIZES = [(96, 64), (61, 83), (7, 5), (130, 33), (1, 1), (1, 40), (64, 64)]


@dataclass
class Sample:
    """An encoded image; `pixels` are its RGB pixels, if Pillow's `exif_transpose` and `convert("RGB")` do not say what they are."""

    name: str
    data: bytes
    pixels: np.ndarray | None = None
    # levels by which the decoded pixels may differ
    levels: int = 0

    def rgb(self):
        if self.pixels is not None:
            return Image.fromarray(self.pixels)
        return ImageOps.exif_transpose(Image.open(io.BytesIO(self.data))).convert("RGB")


def photo(size, seed, channels=3):
    """Smooth colour with some noise, of any number of channels, as an array."""
    width, height = size
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, channels), dtype=np.uint8)
    planes = [np.asarray(Image.fromarray(coarse[..., c]).resize(size, Image.Resampling.BICUBIC)) for c in range(channels)]
    pixels = np.stack(planes, -1).astype(int) + rng.integers(-9, 10, (height, width, channels))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def deep(size, seed, channels):
    """A `photo` of 16 bits whose low bytes are noise; channels of 1 are left out of the shape."""
    high = photo(size, seed, channels).astype(np.uint16)
    values = high << 8 | np.random.default_rng(seed + 1).integers(0, 256, high.shape, dtype=np.uint16)
    values.flat[:2] = (65535, 0)[: values.size]
    return values[..., 0] if channels == 1 else values


def high_bytes(values, channels=3):
    """What becomes of 16-bit colour: the high bytes, transparency left out."""
    values = (values >> 8).astype(np.uint8)
    if values.ndim == 2:
        values = values[..., None]
    return np.ascontiguousarray(np.broadcast_to(values[..., : min(channels, values.shape[-1])], (*values.shape[:2], 3)))


def rounded_grey(values):
    """What becomes of 16-bit grey, which Pillow would clip at 255: rounded to 8 bits."""
    return np.repeat(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)[..., None], 3, -1)


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def images(size, seed):
    """Pillow's images of one picture, by mode."""
    width, height = size
    pixels = photo(size, seed, 4)
    rgb, rgba, cmyk = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels, "RGBA"), Image.frombytes("CMYK", size, pixels.tobytes())
    few = {n: rgb.quantize(n, method=Image.Quantize.MEDIANCUT) for n in (2, 4, 16, 256)}
    return {"1": rgb.convert("1"), "L": rgb.convert("L"), "LA": rgba.convert("LA"), "P": few, "RGB": rgb, "RGBA": rgba, "CMYK": cmyk}


def jpegs(size, seed):
    of = images(size, seed)
    yield Sample("jpeg grey", saved(of["L"], "JPEG", quality=85))
    for name, subsampling in (("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)):
        yield Sample(f"jpeg {name}", saved(of["RGB"], "JPEG", quality=88, subsampling=subsampling))
        yield Sample(f"jpeg {name} progressive", saved(of["RGB"], "JPEG", quality=70, subsampling=subsampling, progressive=True))
    yield Sample("jpeg grey progressive", saved(of["L"], "JPEG", progressive=True))
    yield Sample("jpeg rgb", saved(of["RGB"], "JPEG", quality=90, keep_rgb=True))
    cmyk = saved(of["CMYK"], "JPEG", quality=90)
    yield Sample("jpeg cmyk", cmyk)
    # the same components taken as YCCK, and CMYK without the marker of Adobe, whose inversion is assumed
    at = cmyk.index(b"Adobe") + 11
    assert cmyk[at] == 0
    yield Sample("jpeg ycck", cmyk[:at] + b"\2" + cmyk[at + 1 :])
    yield Sample("jpeg cmyk without marker", cmyk[: at - 15] + cmyk[at + 1 :])
    yield Sample("jpeg restart markers", saved(of["RGB"], "JPEG", restart_marker_blocks=3))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, interlaced=False, extra=()):
    """A PNG of an array of 8 or 16 bits with 1 to 4 channels, which Pillow does not write in 16 bits, nor interlaced."""
    values = values[..., None] if values.ndim == 2 else values
    height, width, channels = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)] if interlaced else [(0, 0, 1, 1)]
    raw = b""
    for top, left, rows, columns in passes:
        part = values[top::rows, left::columns].astype(values.dtype.newbyteorder(">"))
        if part.size:
            raw += b"".join(b"\0" + row.tobytes() for row in part)
    header = struct.pack(">IIBBBBB", width, height, values.dtype.itemsize * 8, colour, 0, 0, interlaced)
    parts = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def pngs(size, seed):
    of = images(size, seed)
    for mode in ("1", "L", "LA", "RGB", "RGBA"):
        yield Sample(f"png {mode}", saved(of[mode], "PNG"))
    for colours, palette in of["P"].items():
        bits = (colours - 1).bit_length()
        yield Sample(f"png palette of {bits} bits", saved(palette, "PNG", bits=bits))
        yield Sample(f"png palette of {bits} bits, one colour transparent", saved(palette, "PNG", bits=bits, transparency=1))
        yield Sample(f"png palette of {bits} bits, transparencies", saved(palette, "PNG", bits=bits, transparency=bytes(range(colours))))
    grey = np.asarray(of["L"])
    yield Sample("png grey, one level transparent", png(grey, extra=[(b"tRNS", struct.pack(">H", int(grey[0, 0])))]))
    colour = np.asarray(of["RGB"])
    yield Sample("png RGB, one colour transparent", png(colour, extra=[(b"tRNS", struct.pack(">3H", *map(int, colour[0, 0])))]))
    for channels, name in ((1, "grey"), (2, "grey and alpha"), (3, "RGB"), (4, "RGBA")):
        values = deep(size, seed, channels)
        expected = rounded_grey(values) if channels == 1 else high_bytes(values, 1 if channels == 2 else 3)
        yield Sample(f"png 16-bit {name}", png(values), expected)
        yield Sample(f"png 16-bit {name} interlaced", png(values, interlaced=True), expected)
        yield Sample(f"png {name} interlaced", png(photo(size, seed, channels), interlaced=True))
    yield Sample("png with a colour profile and gamma", png(colour, extra=[(b"gAMA", struct.pack(">I", 30000))]))


def tiff(values, photometric, order="<", tile=None, planes=False, compress=False, predictor=False, bits=None, extra=()):
    """A TIFF of an array of 8 or 16 bits in strips of 16 rows, in tiles or with a plane for each channel, which Pillow does not write.

    `bits` below 8 packs the values of a row."""
    values = values[..., None] if values.ndim == 2 else values
    height, width, channels = values.shape
    depth = bits or values.dtype.itemsize * 8
    across, down = (tile, tile) if tile else (width, min(16, height))
    blocks = []
    for part in np.split(values, channels, -1) if planes else [values]:
        for y in range(0, height, down):
            for x in range(0, width, across):
                block = part[y : y + down, x : x + across].astype(values.dtype)
                if tile:
                    block = np.pad(block, ((0, down - block.shape[0]), (0, across - block.shape[1]), (0, 0)))
                if predictor:
                    block = np.concatenate([block[:, :1], np.diff(block, axis=1)], 1)
                if depth < 8:
                    shifts = np.arange(depth)[::-1]
                    block = np.packbits((block.reshape(block.shape[0], -1, 1) >> shifts & 1).reshape(block.shape[0], -1).astype(np.uint8), axis=1)
                data = block.astype(block.dtype.newbyteorder(order)).tobytes()
                blocks.append(zlib.compress(data) if compress else data)
    tags = {256: ("I", [width]), 257: ("I", [height]), 258: ("H", [depth] * channels), 259: ("H", [8 if compress else 1])}
    tags |= {262: ("H", [photometric]), 277: ("H", [channels]), 284: ("H", [2 if planes else 1]), 317: ("H", [2 if predictor else 1])}
    counts = ("I", [len(block) for block in blocks])
    tags |= {322: ("I", [across]), 323: ("I", [down]), 325: counts} if tile else {278: ("I", [down]), 279: counts}
    tags |= dict(extra)
    places = 324 if tile else 273
    tags[places] = ("I", [0] * len(blocks))
    body_at = 8 + 2 + 12 * len(tags) + 4
    long = {tag: struct.pack(f"{order}{len(v)}{kind}", *v) for tag, (kind, v) in tags.items()}
    outside = [tag for tag in sorted(tags) if len(long[tag]) > 4]
    at = {}
    for tag in outside:
        at[tag] = body_at
        body_at += len(long[tag]) + len(long[tag]) % 2
    starts = [body_at + sum(map(len, blocks[:n])) for n in range(len(blocks))]
    long[places] = struct.pack(f"{order}{len(starts)}I", *starts)
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    for tag in sorted(tags):
        kind, v = tags[tag]
        field = struct.pack(order + "I", at[tag]) if tag in at else long[tag].ljust(4, b"\0")
        out += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[kind], len(v)) + field
    out += bytes(4) + b"".join(long[tag] + bytes(len(long[tag]) % 2) for tag in outside)
    return out + b"".join(blocks)


# photometric interpretations and extra samples of TIFF
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
ASSOCIATED, UNASSOCIATED = {338: ("H", [1])}.items(), {338: ("H", [2])}.items()


def tiffs(size, seed):
    of = images(size, seed)
    for mode in ("1", "L", "LA", "RGB", "RGBA", "CMYK"):
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
            yield Sample(f"tiff {mode} {compression}", saved(of[mode], "TIFF", compression=compression))
    for colours, palette in of["P"].items():
        yield Sample(f"tiff palette of {colours}", saved(palette, "TIFF"))
        yield Sample(f"tiff palette of {colours}, lzw", saved(palette, "TIFF", compression="tiff_lzw"))
    yield Sample("tiff RGB, lzw with predictor", saved(of["RGB"], "TIFF", compression="tiff_lzw", tiffinfo={317: 2}))
    yield Sample("tiff RGB, one strip", saved(of["RGB"], "TIFF", tiffinfo={278: size[1]}))
    layouts = {"strips": {}, "tiles": {"tile": 32}, "deflated tiles": {"tile": 16, "compress": True, "predictor": True}, "planes": {"planes": True}}
    rgb, rgba, grey = np.asarray(of["RGB"]), np.asarray(of["RGBA"]), np.asarray(of["L"])
    for name, layout in layouts.items():
        for order in "<>":
            where = f"{name} {order}"
            yield Sample(f"tiff RGB in {where}", tiff(rgb, RGB, order, **layout), rgb)
            yield Sample(f"tiff RGBA in {where}", tiff(rgba, RGB, order, extra=UNASSOCIATED, **layout), rgba[..., :3])
            yield Sample(f"tiff grey in {where}", tiff(grey, BLACK_IS_ZERO, order, **layout))
            values = deep(size, seed, 3)
            yield Sample(f"tiff 16-bit RGB in {where}", tiff(values, RGB, order, **layout), high_bytes(values))
            values = deep(size, seed, 1)
            yield Sample(f"tiff 16-bit grey in {where}", tiff(values, BLACK_IS_ZERO, order, **layout), rounded_grey(values))
        if name != "planes":
            yield Sample(f"tiff CMYK in {name}", tiff(rgba, CMYK, **layout))
    palette = {320: ("H", [v * 257 for v in photo((256, 1), seed).reshape(256, 3).T.reshape(-1).tolist()])}.items()
    colours = photo((256, 1), seed).reshape(256, 3)
    for name in ("strips", "tiles", "deflated tiles"):
        yield Sample(f"tiff palette in {name}", tiff(grey, PALETTE, extra=palette, **layouts[name]), colours[grey])
    yield Sample("tiff grey, white is zero", tiff(grey, WHITE_IS_ZERO))
    for bits in (2, 4):
        few = grey >> (8 - bits)
        yield Sample(f"tiff grey of {bits} bits", tiff(few, BLACK_IS_ZERO, bits=bits))
        yield Sample(f"tiff grey of {bits} bits, white is zero", tiff(few, WHITE_IS_ZERO, bits=bits))
    values = deep(size, seed, 4)
    yield Sample("tiff 16-bit RGBA", tiff(values, RGB, extra=UNASSOCIATED), high_bytes(values))
    yield Sample("tiff 16-bit CMYK", tiff(values, CMYK), cmyk_rgb(values >> 8))
    multiplied = (rgba[..., :3].astype(int) * rgba[..., 3:] // 255).astype(np.uint8)
    surplus = {338: ("H", [0])}.items()
    for name, layout in layouts.items():
        yield Sample(f"tiff grey with a surplus channel in {name}", tiff(rgba[..., :2], BLACK_IS_ZERO, extra=surplus, **layout), np.repeat(rgba[..., :1], 3, -1))
        for order in "<>":
            values = deep(size, seed, 4)
            yield Sample(f"tiff RGB with a surplus channel in {name} {order}", tiff(rgba, RGB, order, extra=surplus, **layout), rgba[..., :3])
            yield Sample(f"tiff 16-bit RGB with a surplus channel in {name} {order}", tiff(values, RGB, order, extra=surplus, **layout), high_bytes(values))
    yield Sample("tiff 16-bit grey, white is zero", tiff(65535 - deep(size, seed, 1), WHITE_IS_ZERO), rounded_grey(deep(size, seed, 1)))
    yield Sample("tiff big", saved(of["RGB"], "TIFF", big_tiff=True))
    yield Sample("tiff big palette", saved(of["P"][256], "TIFF", big_tiff=True))
    yield Sample("tiff of two pages", saved(of["RGB"], "TIFF", save_all=True, append_images=[of["L"]]))
    yield Sample("tiff 1, of a fax", saved(of["1"], "TIFF", compression="group4"))
    for mode in ("L", "RGB"):
        yield Sample(f"tiff {mode}, jpeg", saved(of[mode], "TIFF", compression="jpeg", quality=85), levels=2)
    yield Sample("tiff RGB multiplied by its alpha", tiff(np.concatenate([multiplied, rgba[..., 3:]], -1), RGB, extra=ASSOCIATED))


def cmyk_rgb(values):
    """Pillow's conversion of 8-bit CMYK."""
    return np.asarray(Image.frombytes("CMYK", values.shape[1::-1], values.astype(np.uint8).tobytes()).convert("RGB"))


def bmps(size, seed):
    of = images(size, seed)
    for mode in ("1", "L", "RGB", "RGBA"):
        yield Sample(f"bmp {mode}", saved(of[mode], "BMP"))
    yield Sample("bmp palette", saved(of["P"][256], "BMP"))
    yield Sample("bmp palette of 16", saved(of["P"][16], "BMP"))


def webps(size, seed):
    of = images(size, seed)
    for mode in ("RGB", "RGBA"):
        yield Sample(f"webp {mode}", saved(of[mode], "WEBP", quality=80), levels=1)
        yield Sample(f"webp {mode} of low quality", saved(of[mode], "WEBP", quality=20), levels=1)
        yield Sample(f"webp {mode} lossless", saved(of[mode], "WEBP", lossless=True, exact=True))
    # the frame that a viewer shows first
    frames = {"save_all": True, "append_images": [of["L"].convert("RGB")], "duration": 100, "lossless": True}
    yield Sample("webp of two frames", saved(of["RGB"], "WEBP", **frames))
    yield Sample("webp grey", saved(of["L"], "WEBP", quality=80), levels=1)


def orientations(size, seed):
    of = images(size, seed)["RGB"]
    for value in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = value
        for kind, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
            yield Sample(f"{kind.lower()} orientation {value}", saved(of, kind, exif=exif, **options))
        yield Sample(f"tiff orientation {value}", saved(of, "TIFF", tiffinfo={0x0112: value}))


def refused():
    """Files that are not read: (name, encoded image, what the error must say)."""
    size = (30, 20)
    of = images(size, 1)
    convert, use = ("convert it to grey or RGB of 8 or 16 bits",), ("use JPEG, PNG, TIFF, BMP or WebP",)
    grey = np.asarray(of["L"])
    yield "tiff of floats", saved(Image.fromarray(grey.astype(np.float32)), "TIFF"), ("floating-point", *convert)
    yield "tiff of 32 bits", tiff(grey.astype(np.uint32), BLACK_IS_ZERO), ("1 channels of 32 bits", *convert)
    yield "tiff of signed numbers", tiff(grey, BLACK_IS_ZERO, extra={339: ("H", [2])}.items()), ("signed", *convert)
    yield "tiff YCbCr", saved(of["RGB"].convert("YCbCr"), "TIFF"), ("YCbCr", *convert)
    yield "tiff Lab", saved(Image.merge("LAB", of["RGB"].split()), "TIFF"), ("Lab", *convert)
    yield "tiff lzma", saved(of["RGB"], "TIFF", compression="lzma"), ("compressed", "number 34925", "LZW or deflate")
    yield "tiff with too few channels", tiff(np.asarray(of["RGB"])[..., :2], RGB), ("2 channels of 8 bits", *convert)
    yield "tiff without its palette", tiff(grey, PALETTE), ("no palette", "replace the image")
    for kind in ("GIF", "JPEG2000", "AVIF", "PPM", "TGA", "ICO"):
        yield kind.lower(), saved(of["RGB"], kind), use
    yield "text", b"a text, no image", use
    yield "nothing", b"", ("0 bytes", "replace it")


MAKERS = {"jpeg": jpegs, "png": pngs, "tiff": tiffs, "bmp": bmps, "webp": webps, "orientation": orientations}
