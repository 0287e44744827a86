"""s3.py BUCKET: an S3 server in memory with one empty bucket, for tests.

Prints one line of JSON, {"endpoint": ..., "bucket": ...}, when it can be used, and ends when its standard input is closed.

The server is moto. It looks whether an object is there and then writes it, without a lock, so a conditional PUT could have two
winners; here one request at a time changes anything, as in the real service. For a range it reads the whole object, twice; here
only the range is read, so that objects may be large. Credentials and signatures are not checked.
"""

import io
import json
import logging
import os
import re
import sys
import threading

from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server
from werkzeug.test import Client

CHANGES = ("PUT", "POST", "DELETE")


class OneChangeAtATime:
    def __init__(self, app):
        self.app, self.lock = app, threading.Lock()

    def __call__(self, environ, start_response):
        if environ["REQUEST_METHOD"] not in CHANGES:
            return self.app(environ, start_response)
        # the body first: a slow sender must not hold up the others
        length = environ.get("CONTENT_LENGTH")
        body = environ["wsgi.input"].read(int(length)) if length else b""
        if not length and environ.get("wsgi.input_terminated"):
            body = environ["wsgi.input"].read()
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        with self.lock:
            return list(self.app(environ, start_response))


class Ranges:
    """Answers a GET of a range with the headers that a HEAD gets, conditions and refusals included, and these bytes alone."""

    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", environ.get("HTTP_RANGE", ""))
        if environ["REQUEST_METHOD"] != "GET" or not wanted:
            return self.app(environ, start_response)
        answer = []
        head = {name: value for name, value in environ.items() if name != "HTTP_RANGE"} | {"REQUEST_METHOD": "HEAD"}
        b"".join(self.app(head, lambda status, headers, *_: answer.append((status, headers))))
        [(status, headers)] = answer
        part = self.part(environ["PATH_INFO"], dict(headers).get("ETag"), *map(int, wanted.groups())) if status[:3] == "200" else None
        if part is None:
            return self.app(environ, start_response)
        begin, body, size = part
        about = ("content-length", "content-range", "x-amz-checksum")
        headers = [(name, value) for name, value in headers if not name.lower().startswith(about)]
        headers += [("Content-Length", str(len(body))), ("Content-Range", f"bytes {begin}-{begin + len(body) - 1}/{size}")]
        start_response("206 Partial Content", headers)
        return [body]

    @staticmethod
    def part(path, tag, begin, end):
        """The first byte's number, the bytes and the object's size; nothing when it is better left to moto."""
        bucket, _, name = path.encode("latin-1").decode().lstrip("/").partition("/")
        key = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].get_object(bucket, name)
        if key is None or key.etag != tag or begin >= key.size or end < begin:
            return None
        with key.lock:
            key._value_buffer.seek(begin)
            return begin, key._value_buffer.read(end + 1 - begin), key.size


def main():
    [bucket] = sys.argv[1:]
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = Ranges(OneChangeAtATime(DomainDispatcherApplication(create_backend_app)))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    made = Client(app).put(f"/{bucket}", base_url=f"http://127.0.0.1:{server.port}")
    if made.status_code != 200:
        sys.exit(f"no bucket '{bucket}': {made.status} {made.text}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"endpoint": f"http://127.0.0.1:{server.port}", "bucket": bucket}), flush=True)
    sys.stdin.buffer.read()
    # requests that are still running must not hold it up
    os._exit(0)


if __name__ == "__main__":
    main()
