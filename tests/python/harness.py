"""Running medtune as its users do, and looking into a store without its help."""

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
from PIL import Image

# what a failure may never show
TRACES = ("panicked at", "stack backtrace", "RUST_BACKTRACE", "Traceback")


def environment(temporary=None, **extra):
    """This process's environment without medtune's own variables; `temporary` is where scratch folders go."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MEDTUNE_")}
    if temporary:
        Path(temporary).mkdir(parents=True, exist_ok=True)
        kept["TMPDIR"] = str(temporary)
    return kept | {k: str(v) for k, v in extra.items()}


def invoke(binary, *arguments, env=None, cwd=None):
    """Runs medtune to its end, whatever that is."""
    command = [str(binary), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env or environment(), cwd=cwd)


def succeed(binary, *arguments, env=None, cwd=None):
    """Runs medtune, which must exit with 0; standard output, parsed where --json was asked for."""
    done = invoke(binary, *arguments, env=env, cwd=cwd)
    assert done.returncode == 0, f"{' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def refused(done, code, *fragments):
    """Checks that medtune ended with this exit code and one line that holds all fragments; returns the line."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == code, f"exit {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
    assert lines, "nothing was said"
    for trace in TRACES:
        assert trace not in done.stderr, done.stderr
    missing = [f for f in map(str, fragments) if f not in lines[-1]]
    assert not missing, f"{missing} not in the last line of\n{done.stderr}"
    return lines[-1]


class Events:
    """A medtune process with JSON logging, read line by line; ends by itself or by kill -9."""

    def __init__(self, binary, *arguments, env, limit=120):
        command = [str(binary), "--log-format", "json", *map(str, arguments)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env)
        self.seen = []
        # a process that hangs must not hang the tests
        self.watchdog = threading.Timer(limit, self.process.kill)
        self.watchdog.start()

    def until(self, **fields):
        """Reads on to the first line with these fields; None if the process ends before."""
        return self.when(lambda line: all(line.get(k) == v for k, v in fields.items()))

    def when(self, wanted):
        """Reads on to the first line for which `wanted(line)` is true; None if the process ends before."""
        for line in self.process.stderr:
            try:
                self.seen.append(json.loads(line))
            except json.JSONDecodeError:
                self.seen.append({"message": line.rstrip(), "json": False})
            if wanted(self.seen[-1]):
                return self.seen[-1]
        return None

    def kill(self):
        """Sends SIGKILL and reads the rest; the exit status, -9 if the process was still there."""
        self.process.kill()
        return self.finish()

    def finish(self):
        """Reads to the end; the exit status."""
        self.until(message=None, never=True)
        status = self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()
        self.watchdog.cancel()
        return status

    @property
    def run_id(self):
        """The run's id, once it was said."""
        return next((e["run"] for e in self.seen if e.get("message") == "run started"), None)

    def steps(self, message):
        """The steps of which a line with this message was seen, in order."""
        return [e["step"] for e in self.seen if e.get("message") == message and "step" in e]


def sha256(path):
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifests(store):
    """Every published version, read from the store's files: {(kind, name): [manifest, ...]} by rising number."""
    found = {}
    for path in sorted(Path(store).glob("registry/*/*/*.json")):
        if not path.name.endswith((".claim.json", ".removed.json")):
            manifest = json.loads(path.read_text())
            assert path.stem == f"{manifest['version']:010}", path
            found.setdefault((manifest["kind"], manifest["name"]), []).append(manifest)
    return found


def check_complete(store):
    """Checks by own hashing that every version is whole, and that numbers have no gap; returns `manifests`."""
    found = manifests(store)
    for (kind, name), versions in found.items():
        assert [m["version"] for m in versions] == list(range(1, len(versions) + 1)), f"{kind}:{name}"
        for manifest in versions:
            folder = Path(store) / manifest["prefix"]
            here = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
            assert here == {f["path"] for f in manifest["files"]}, f"{kind}:{name}@{manifest['version']}"
            for file in manifest["files"]:
                path = folder / file["path"]
                assert path.stat().st_size == file["size"] and sha256(path) == file["sha256"], path
    return found


def snapshot(store):
    """What a store offers to others: path to SHA-256. Run records, locks and times of beginning are not among it."""
    store = Path(store)
    kept = (p for top in ("registry", "data", "models", "cache/steps") for p in (store / top).rglob("*") if p.is_file())
    return {p.relative_to(store).as_posix(): sha256(p) for p in kept}


def records(store):
    """The run records by run id, read from the store's files."""
    found = (json.loads(path.read_text()) for path in Path(store).glob("runs/*/run.json"))
    return {record["run_id"]: record for record in found}


def jpeg(seed, size=24):
    """A small colour JPEG, as bytes."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    out = io.BytesIO()
    coarse.resize((size, size), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def small_pixels(config):
    """A model configuration whose images are standardised at a small size, which is much of the time of a debug build."""
    names = ("image_standardization_jpeg_compression_ratio", "image_standardization_image_size")
    return config | {"PIXELS": dict(zip(names, (75, 64), strict=True))}


def write_tsv(path, rows):
    """Writes (key, value) rows; bytes become base64, other values than text become JSON."""

    def text(value):
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        return value if isinstance(value, str) else json.dumps(value)

    Path(path).write_text("".join(f"{key}\t{text(value)}\n" for key, value in rows))
    return path


def stub(folder, body):
    """A Python that runs `body` instead of the script that asks the package; it is Python for everything else."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\ncase "$2" in -c) exec {sys.executable} "$@";; esac\n{body}\n')
    path.chmod(0o755)
    return path
