"""medtune on a store of any kind, and what lies there, looked at without its help."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
from harness import environment, invoke, succeed
from servers import cloud_free

# seconds for which a request is tried again
RETRIES = 60
MANIFEST = re.compile(r"registry/[^/]+/[^/]+/\d{10}\.json")


class Place:
    """A store of its own on a server or in a folder, and a user who works with it; `folder` takes what lies on this machine."""

    def __init__(self, binary, server, prefix, folder, **extra):
        self.binary, self.server, self.prefix = binary, server, prefix
        mine = {"XDG_CACHE_HOME": Path(folder) / "cache", "MEDTUNE_STORE_RETRY_SECONDS": RETRIES}
        own = environment(Path(folder) / "tmp", MEDTUNE_STORE=self.uri, **mine)
        self.env = cloud_free(own) | server.settings() | {k: str(v) for k, v in extra.items()}

    @property
    def uri(self):
        return self.server.store(self.prefix)

    def call(self, *arguments):
        """Runs medtune to its end, whatever that is."""
        return invoke(self.binary, *arguments, env=self.env)

    def good(self, *arguments):
        """Runs medtune, which must succeed; its output, parsed where --json was asked for."""
        return succeed(self.binary, *arguments, env=self.env)

    def sizes(self):
        """Every object of the store: size by key."""
        return self.server.sizes(self.prefix)

    def read(self, key):
        return self.server.read(f"{self.prefix}/{key}")

    def manifests(self):
        """Every manifest that lies there, by (name, version)."""
        found = (json.loads(self.read(key)) for key in self.sizes() if MANIFEST.fullmatch(key))
        return {(manifest["name"], manifest["version"]): manifest for manifest in found}

    def check_files(self, *manifests):
        """Checks by own hashing that versions are whole."""
        for manifest in manifests:
            for file in manifest["files"]:
                content = self.read(f"{manifest['prefix']}/{file['path']}")
                assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"]), file


def random_file(path, size, seed):
    """A file that no compression makes smaller."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(seed).bytes(size))


def contents(folder):
    """Bytes by path of all files in a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def register_model(place, name, folder):
    """A model version made of any files: registered as data, then put where a model would be. The test's way around a real model."""
    manifest = place.good("data", "register", "--name", name, folder, "--json")
    manifest |= {"kind": "model", "prefix": f"models/{name}/1"}
    for key in ("reference", "uri"):
        manifest.pop(key)
    client, bucket, prefix = place.server.client(), place.server.bucket, place.prefix
    for path, content in contents(folder).items():
        client.put_object(Bucket=bucket, Key=f"{prefix}/models/{name}/1/{path}", Body=content)
    body = json.dumps(manifest).encode()
    client.put_object(Bucket=bucket, Key=f"{prefix}/registry/models/{name}/0000000001.json", Body=body)
