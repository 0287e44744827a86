"""Writes scikit-learn's 1,797 scanned digits as a folder per class of 8 x 8 greyscale PNG files: `OUT_DIR/digit_7/00017.png`.

Usage: make_digits.py OUT_DIR. The images are in scikit-learn's wheel; nothing is downloaded. Does nothing when OUT_DIR is already complete;
a half-written OUT_DIR is completed.
"""

import io
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make_digits.py OUT_DIR")
    root = Path(sys.argv[1])
    digits = load_digits()
    written = 0
    for index, (image, digit) in enumerate(zip(digits.images, digits.target)):
        path = root / f"digit_{digit}" / f"{index:05}.png"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        # Grey levels 0..16 become 0..255.
        Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)).save(buffer, "PNG")
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(buffer.getvalue())
        os.replace(partial, path)
        written += 1
    print(f"{root}: {len(digits.target)} digits, {written} written")


if __name__ == "__main__":
    main()
