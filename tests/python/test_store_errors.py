"""What users are told when a store cannot be used, and what they are never shown: credentials."""

import base64
import contextlib
import hashlib
import hmac
import http.server
import socket
import threading
import time
import urllib.parse

import pytest
import sharedkey
from harness import refused
from servers import S3, Azure
from stores import Place

CONFIG, NOT_FOUND, STORAGE = 10, 13, 20
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "PlantedSecret/of+the+test/0123456789abcdef",
    "AWS_SESSION_TOKEN": "PlantedSessionToken//+==of/the/test/0123456789",
}


@contextlib.contextmanager
def answering(status, code, headers=()):
    """A server that gives one answer to everything, and repeats in it what it was asked, as some do: {} is its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = f"{self.command} {self.path}\n{self.headers}".replace("&", "&amp;").replace("<", "&lt;")
            body = f"<Error><Code>{code}</Code><Message>no: {asked}</Message></Error>".encode()
            self.send_response(status)
            for name, value in [*headers, ("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):
            """A client may go away whenever it likes."""

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def nobody():
    """The address of a server that is not there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("some text\n")
    return path


COMMANDS = {
    "list": ["data", "list"],
    "pull": ["model", "pull", "some@1", "there"],
    "verify": ["data", "verify", "some@1"],
    "register": ["data", "register", "--name", "some", "file.txt"],
}


@pytest.fixture(params=COMMANDS)
def command(request, file, tmp_path):
    return [str(tmp_path / word) if word in ("there", "file.txt") else word for word in COMMANDS[request.param]]


@pytest.mark.parametrize("kind", ["s3", "azure"])
def test_nobody_answers(binary, command, tmp_path, kind):
    server = S3(nobody(), "bucket") if kind == "s3" else Azure(nobody(), "container")
    place = Place(binary, server, "store", tmp_path, MEDTUNE_STORE_RETRY_SECONDS=1)
    begun = time.monotonic()
    refused(place.call(*command), STORAGE, server.store("store"), "cannot be reached")
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("kind", ["s3", "azure"])
def test_there_is_no_such_bucket(binary, request, command, tmp_path, kind):
    server = request.getfixturevalue(kind)
    server = S3(server.endpoint, "no-such-bucket") if kind == "s3" else Azure(server.endpoint, "no-such-container")
    place = Place(binary, server, "store", tmp_path)
    refused(place.call(*command), NOT_FOUND, server.store("store"), "bucket or container does not exist")


@pytest.mark.parametrize("kind", ["s3", "azure"])
def test_there_is_no_such_store_or_version(binary, request, file, tmp_path, kind):
    """A bucket without a store, or a store without a version, is not confused with a bucket that is not there."""
    server = request.getfixturevalue(kind)
    place = Place(binary, server, "nothing-here", tmp_path)
    for arguments in (["data", "verify", "some@1"], ["model", "pull", "some@1", tmp_path / "there"]):
        line = refused(place.call(*arguments), NOT_FOUND, server.store("nothing-here"))
        assert "bucket or container does not exist" not in line
    place = Place(binary, server, "nearly-empty", tmp_path)
    place.good("data", "register", "--name", "some", file)
    line = refused(place.call("data", "verify", "some@2"), NOT_FOUND, "data:some@2", server.store("nearly-empty"))
    assert "bucket or container does not exist" not in line


def test_wrong_region(binary, command, tmp_path):
    with answering(301, "PermanentRedirect", [("x-amz-bucket-region", "eu-west-3")]) as url:
        place = Place(binary, S3(url, "bucket"), "store", tmp_path)
        refused(place.call(*command), CONFIG, "s3://bucket/store", "region", "AWS_REGION")


@pytest.mark.parametrize("kind", ["s3", "azure"])
@pytest.mark.parametrize("code", ["AccessDenied", "SignatureDoesNotMatch"])
def test_denied(binary, command, tmp_path, kind, code):
    telling = {"AccessDenied": "access is refused", "SignatureDoesNotMatch": "does not accept the credentials"}[code]
    with answering(403, code) as url:
        server = S3(url, "bucket") if kind == "s3" else Azure(url, "container")
        refused(Place(binary, server, "store", tmp_path).call(*command), CONFIG, server.store("store"), telling)


def test_the_errors_are_told_apart(binary, s3, tmp_path):
    """The four lines have little in common but where it happened."""
    lines = {}
    with answering(301, "PermanentRedirect") as redirecting, answering(403, "AccessDenied") as denying:
        servers = {
            "endpoint": S3(nobody(), "bucket"),
            "bucket": S3(s3.endpoint, "bucket"),
            "region": S3(redirecting, "bucket"),
            "rights": S3(denying, "bucket"),
        }
        for name, server in servers.items():
            done = Place(binary, server, "store", tmp_path, MEDTUNE_STORE_RETRY_SECONDS=1).call("data", "list")
            lines[name] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert done.stdout == "" and lines[name] == done.stderr.splitlines()[-1:]
    telling = {"endpoint": "cannot be reached", "bucket": "does not exist", "region": "AWS_REGION", "rights": "access is refused"}
    for name, words in telling.items():
        assert [other for other, [line] in lines.items() if words in line] == [name], lines


@pytest.mark.parametrize(
    "scheme, missing, telling",
    [("s3", "AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"), ("az", "AZURE_STORAGE_USE_EMULATOR", "AZURE_STORAGE_")],
)
def test_no_credentials(binary, tmp_path, scheme, missing, telling):
    """Said at once: the machine's own identity is asked only when that is wanted."""
    server = S3(nobody(), "bucket") if scheme == "s3" else Azure(nobody(), "container")
    place = Place(binary, server, "store", tmp_path, AZURE_STORAGE_ACCOUNT_NAME="account")
    del place.env[missing]
    begun = time.monotonic()
    refused(place.call("data", "list"), CONFIG, "no credentials", telling)
    assert time.monotonic() - begun < 2


def test_plain_http_must_be_allowed(binary, s3, tmp_path):
    place = Place(binary, s3, "store", tmp_path)
    del place.env["AWS_ALLOW_HTTP"]
    refused(place.call("data", "list"), CONFIG, "AWS_ALLOW_HTTP")


# --- secrets ---


def shared_access_signature(container):
    """A signature for everything in the container, until the year 2099. (Azurite takes no batches with one for the account.)"""
    fields = {"sv": "2021-08-06", "sr": "c", "sp": "racwdl", "se": "2099-01-01T00:00:00Z"}
    resource = f"/blob/{sharedkey.ACCOUNT}/{container}"
    text = "\n".join([fields["sp"], "", fields["se"], resource, "", "", "", fields["sv"], "c", *[""] * 7])
    digest = hmac.new(base64.b64decode(sharedkey.KEY), text.encode(), hashlib.sha256).digest()
    return urllib.parse.urlencode(fields | {"sig": base64.b64encode(digest).decode()})


class Signed(Azure):
    """A container that is reached with a shared access signature."""

    def settings(self):
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": sharedkey.ACCOUNT,
            "AZURE_STORAGE_SAS_TOKEN": shared_access_signature(self.container),
            "AZURE_STORAGE_ENDPOINT": f"{self.endpoint}/{sharedkey.ACCOUNT}",
            "AZURE_ALLOW_HTTP": "true",
        }


class Keyed(Azure):
    """A container that is reached with the account's key."""

    def settings(self):
        settings = Signed.settings(self) | {"AZURE_STORAGE_ACCOUNT_KEY": sharedkey.KEY}
        del settings["AZURE_STORAGE_SAS_TOKEN"]
        return settings


def spellings(secret):
    """A secret as it is, and as it may stand in a URL or in JSON."""
    quoted = {urllib.parse.quote(secret, safe=safe) for safe in ("", "/", "/=", "+/=")}
    return {secret, urllib.parse.unquote(secret), secret.replace("/", "\\/"), *quoted}


def secrets_of(place):
    """All that may never be shown of this place."""
    found = set()
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"):
        if secret := place.env.get(name):
            found |= spellings(secret)
            # of a shared access signature, this part is the secret
            if "sig=" in secret:
                found |= spellings(urllib.parse.parse_qs(secret)["sig"][0])
    assert found
    return found


@pytest.mark.parametrize("kind, log_format", [("s3", "text"), ("s3", "json"), ("sas", "text"), ("key", "json")])
def test_secrets_are_never_shown(binary, request, file, tmp_path, kind, log_format):
    """Not by commands that work and not by those that fail, at the highest log level, nor in what is stored."""

    def place(server, prefix):
        extra = SECRETS if kind == "s3" else {}
        return Place(binary, server, prefix, tmp_path, MEDTUNE_STORE_RETRY_SECONDS=1, **extra)

    def server(endpoint, name=None):
        bucket = name or "medtune-tests"
        return {"s3": S3, "sas": Signed, "key": Keyed}[kind](endpoint, bucket)

    endpoint = request.getfixturevalue("s3" if kind == "s3" else "azure").endpoint
    works = place(server(endpoint), f"secrets-{kind}-{log_format}")
    register, look = ["data", "register", "--name", "some", file], ["data", "list", "--json"]
    outcomes = [(works, True, [register, look, ["data", "verify", "some@1"]]), (works, False, [["model", "pull", "some@9", "there"]])]
    with answering(403, "AccessDenied") as denying, answering(500, "InternalError") as failing:
        for url in (denying, failing, nobody()):
            outcomes.append((place(server(url), "store"), False, [register, look]))
        outcomes.append((place(server(endpoint, "no-such-bucket"), "store"), False, [register, look]))
        for at, succeeds, commands in outcomes:
            for arguments in commands:
                done = at.call("--log-level", "trace", "--log-format", log_format, *arguments)
                assert (done.returncode == 0) == succeeds, (done.returncode, done.stderr[-2000:])
                said = done.stdout + done.stderr
                assert not [secret for secret in secrets_of(at) if secret in said], said[-4000:]
                # the answer repeats the request, in which there are such secrets
                assert at.server.endpoint != denying or kind == "key" or "***" in said, said[-4000:]
    for key in works.sizes():
        stored = works.read(key).decode(errors="replace")
        assert not [secret for secret in secrets_of(works) if secret in stored], key
