"""What the scripts that move large files share: the program with its memory watched, and a place for the files."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from measure import peak_bytes, require

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))
from servers import cloud_free  # noqa: E402


@contextlib.contextmanager
def working_folder(path):
    """A new folder for large files, removed in the end; temporary files go there too, a server's among them."""
    folder = path.resolve()
    require(not folder.exists(), f"{folder} is there already: remove it, or give another --folder")
    (folder / "tmp").mkdir(parents=True)
    os.environ["TMPDIR"] = str(folder / "tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Done:
    """A program that ran to its end: seconds, the most memory in MB, and what it said."""

    def __init__(self, command, env, log):
        with open(log, "w+") as errors:
            begun, self.peak = time.monotonic(), 0.0
            process = subprocess.Popen(list(map(str, command)), env=env, stdout=subprocess.DEVNULL, stderr=errors)
            while process.poll() is None:
                self.peak = max(self.peak, peak_bytes(process.pid) / 1e6)
                time.sleep(0.02)
            self.seconds = time.monotonic() - begun
            errors.seek(0)
            self.said = errors.read()
        require(process.returncode == 0, f"{' '.join(map(str, command[:4]))} ended with {process.returncode}:\n{self.said}")


class Medtune:
    """The program, with its caches and temporary files in a folder of its own."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder

    def run(self, server, prefix, *arguments, **extra):
        kept = {k: v for k, v in cloud_free(os.environ).items() if not k.startswith("MEDTUNE_")}
        store = server.store(prefix) if server else str(self.folder / prefix)
        own = {"MEDTUNE_STORE": store, "XDG_CACHE_HOME": str(self.folder / "cache"), "TMPDIR": str(self.folder / "tmp")}
        env = kept | own | (server.settings() if server else {}) | extra
        return Done([self.program, *arguments], env, self.folder / "log")
