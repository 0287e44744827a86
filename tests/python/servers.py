"""The servers of tests/servers, started and stopped, and what a program needs to use them."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import boto3
from botocore.config import Config

SCRIPTS = Path(__file__).resolve().parents[1] / "servers"
sys.path.append(str(SCRIPTS))
import sharedkey  # noqa: E402

# where a proxy or a store is, and nothing from the machine's own settings
CLOUD = ("AWS_", "AZURE_", "AZURITE_", "GOOGLE_", "MLFLOW_S3_")


@contextlib.contextmanager
def started(script, *arguments, limit=60):
    """Runs a script of tests/servers; the object that it printed when it was ready. One that does not get ready is a failure."""
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        watchdog = threading.Timer(limit, process.kill)
        watchdog.start()
        try:
            line = process.stdout.readline()
            watchdog.cancel()
            if not line:
                status = process.wait()
                errors.seek(0)
                raise AssertionError(f"{script} did not start (exit {status}):\n{errors.read()}")
            yield json.loads(line)
        finally:
            watchdog.cancel()
            # the sign for it to end
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


class S3:
    """A bucket on a server at `endpoint`, which may be a proxy's."""

    scheme, key_id, secret = "s3", "AKIATESTTESTTESTTEST", "not/a/secret/but/as/long/as/one/0123456789"

    def __init__(self, endpoint, bucket):
        self.endpoint, self.bucket = endpoint, bucket
        self._client = None

    def through(self, endpoint):
        """The same bucket, seen through a proxy."""
        return S3(endpoint, self.bucket)

    def store(self, prefix):
        """The store's URI for medtune."""
        return f"s3://{self.bucket}/{prefix}"

    def settings(self):
        """What medtune and MLflow need in their environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    def client(self, **extra):
        """A boto3 client."""
        config = Config(s3={"addressing_style": "path"}, max_pool_connections=50, **extra)
        keys = {"aws_access_key_id": self.key_id, "aws_secret_access_key": self.secret, "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.endpoint, config=config, **keys)

    def sizes(self, prefix):
        """Size by key of every object below the folder, keys relative to it."""
        self._client = self._client or self.client()
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{prefix}/")
        found = (entry for page in pages for entry in page.get("Contents", []))
        return {entry["Key"].removeprefix(f"{prefix}/"): entry["Size"] for entry in found}

    def folders(self, prefix):
        """The names of the folders directly below a folder."""
        self._client = self._client or self.client()
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{prefix}/", Delimiter="/")
        return {entry["Prefix"].split("/")[-2] for page in pages for entry in page.get("CommonPrefixes", [])}

    def read(self, key):
        """An object's bytes."""
        self._client = self._client or self.client()
        return self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()


class Azure:
    """A container on a server at `endpoint`, which may be a proxy's."""

    scheme = "az"

    def __init__(self, endpoint, container):
        self.endpoint, self.container = endpoint, container

    def through(self, endpoint):
        """The same container, seen through a proxy."""
        return Azure(endpoint, self.container)

    def store(self, prefix):
        """The store's URI for medtune."""
        return f"az://{self.container}/{prefix}"

    def settings(self):
        """What medtune needs in its environment."""
        return {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": self.endpoint}

    def request(self, method, path="", query=None, headers=None, body=b""):
        """A signed request for a key, or for the container itself: status, headers and body."""
        path = f"{self.container}/{path}" if path else self.container
        return sharedkey.request(self.endpoint, method, path, query, headers, body)

    def sizes(self, prefix):
        """Size by key of every object below the folder, keys relative to it."""
        found, marker = {}, ""
        while True:
            query = {"restype": "container", "comp": "list", "prefix": f"{prefix}/", "marker": marker}
            status, _, body = self.request("GET", query={k: v for k, v in query.items() if v})
            assert status == 200, body
            page = ElementTree.fromstring(body.decode("utf-8-sig"))
            for blob in page.iter("Blob"):
                key = blob.findtext("Name").removeprefix(f"{prefix}/")
                found[key] = int(blob.findtext("Properties/Content-Length"))
            marker = page.findtext("NextMarker")
            if not marker:
                return found

    def read(self, key):
        """An object's bytes."""
        status, _, body = self.request("GET", key)
        assert status == 200, body
        return body


class Folder:
    """A folder with the methods of the others."""

    scheme = "file"

    def __init__(self, folder):
        self.folder = Path(folder)

    def store(self, prefix):
        return str(self.folder / prefix)

    def settings(self):
        return {}

    def sizes(self, prefix):
        top, found = self.folder / prefix, {}
        for folder, _, names in os.walk(top):
            for path in (Path(folder) / name for name in names):
                # a file may get another name or go while this looks
                with contextlib.suppress(FileNotFoundError):
                    found[path.relative_to(top).as_posix()] = path.stat().st_size
        return found

    def folders(self, prefix):
        """The names of the folders directly below a folder."""
        return set(os.listdir(self.folder / prefix))

    def read(self, key):
        return (self.folder / key).read_bytes()


@contextlib.contextmanager
def s3_server(bucket="medtune-tests"):
    """An `S3` with an empty bucket."""
    with started("s3.py", bucket) as ready:
        yield S3(ready["endpoint"], ready["bucket"])


@contextlib.contextmanager
def azure_server(container="medtune-tests"):
    """An `Azure` with an empty container."""
    with started("azure.py", container) as ready:
        yield Azure(ready["url"], ready["container"])


@contextlib.contextmanager
def faulty(server, *options):
    """The same server through a proxy with these options, see tests/servers/faults.py."""
    with started("faults.py", server.endpoint, *options) as ready:
        yield server.through(ready["endpoint"])


def counts(proxied):
    """What a proxy has done and counted so far; keys without the bucket's or container's part of the path."""
    with urllib.request.urlopen(f"{proxied.endpoint}/-/counts", timeout=10) as answer:
        found = json.load(answer)
    top = urllib.parse.urlsplit(proxied.store("")).netloc
    for direction in ("up", "down"):
        found[direction] = {key.partition(f"/{top}/")[2] or key: n for key, n in found[direction].items()}
    return found


def cloud_free(environment):
    """An environment without settings of any cloud."""
    return {k: v for k, v in environment.items() if not k.startswith(CLOUD)}
