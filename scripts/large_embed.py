"""A large TSV, embedded from a file and from a bucket, with bounded memory. See scripts/large-embed."""

import argparse
import base64
import io
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "python"))
from conftest import model_config  # noqa: E402
from harness import sha256  # noqa: E402
from large import Medtune, working_folder  # noqa: E402
from measure import require  # noqa: E402
from servers import s3_server  # noqa: E402

WIDTH, HEIGHT, PICTURES, FEW = 1280, 1024, 24, 256


def pictures():
    """Some JPEGs with the detail of photographs, as base64."""
    made = []
    for seed in range(PICTURES):
        rng = np.random.default_rng(seed)
        smooth = Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (HEIGHT, WIDTH, 1))
        out = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        made.append(base64.b64encode(out.getvalue()))
    return made


def write(path, size, made):
    """Rows up to so many bytes, with their index; how many."""
    rows, at = 0, 0
    with open(path, "wb") as file, open(path.with_suffix(".lineidx"), "w") as index:
        while at < size:
            index.write(f"{at}\n")
            at += file.write(b"%09d\t" % rows + made[rows % len(made)] + b"\n")
            rows += 1
    return rows


def job(path, images):
    document = {
        "version": 1,
        "kind": "Embed",
        "name": path.stem,
        "compute": {"device": "cpu"},
        "inputs": {"image_tsv": str(images), "mlflow_model_path": str(path.parent / "package")},
        # every image anew, although few differ
        "parameters": {"reuse": False},
        "outputs": {"embeddings": path.stem},
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def upload(server, path, key):
    client = server.client()
    for file in (path, path.with_suffix(".lineidx")):
        client.upload_file(str(file), server.bucket, str(Path(key).with_suffix(file.suffix)))
    return f"s3://{server.bucket}/{key}"


def parts(folder, name):
    found = sorted((folder / "store" / "data" / name / "1" / "parquet").iterdir())
    return [sha256(path) for path in found]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--medtune", required=True)
    parser.add_argument("--folder", type=Path, default=ROOT / "large-embed")
    parser.add_argument("--size", type=float, default=2.0, help="10^9 bytes")
    parser.add_argument("--limit", type=float, default=1000.0, help="most memory beyond that for few rows, 10^6 bytes")
    options = parser.parse_args()
    with working_folder(options.folder) as folder:
        medtune = Medtune(options.medtune, folder)
        (folder / "model.yaml").write_text(yaml.safe_dump(model_config()))
        (folder / "labels.txt").write_text("one\ntwo\n")
        texts = ("--label-texts", folder / "labels.txt")
        medtune.run(None, "store", "model", "init", "--name", "base", "--config", folder / "model.yaml", *texts)
        medtune.run(None, "store", "model", "pull", "base@1", folder / "package")
        made = pictures()
        rows = write(folder / "all.tsv", options.size * 1e9, made)
        write(folder / "few.tsv", sum(len(made[n % PICTURES]) + 11 for n in range(FEW)), made)
        few = medtune.run(None, "store", "run", job(folder / "few.yaml", folder / "few.tsv"))
        print(f"{FEW} rows of {WIDTH} x {HEIGHT}: {few.seconds:.1f} s, most memory {few.peak:.0f} MB", flush=True)
        done = {"file": medtune.run(None, "store", "run", job(folder / "local.yaml", folder / "all.tsv"))}
        with s3_server() as server:
            uri = upload(server, folder / "all.tsv", "large/all.tsv")
            extra = server.settings()
            done["bucket"] = medtune.run(None, "store", "run", job(folder / "remote.yaml", uri), **extra)
        cached = [p for p in (folder / "cache").rglob("*") if p.is_file() and p.stat().st_size > options.size * 1e8]
        require(not cached, f"{cached} were copied to this machine")
        for place, run in done.items():
            gained = run.peak - few.peak
            print(
                f"{options.size:.1f} GB, {rows} rows from a {place}: {rows / run.seconds:.1f} images/s, most memory {run.peak:.0f} MB, "
                f"{gained:.0f} MB more than for {FEW} rows",
                flush=True,
            )
            require(gained < options.limit, f"{gained:.0f} MB are more than {options.limit}")
        print(f"from the bucket {done['file'].seconds / done['bucket'].seconds:.2f} times as fast as from the file")
        require(parts(folder, "local") == parts(folder, "remote"), "the vectors differ")
        print("PASSED: large embed")


if __name__ == "__main__":
    main()
