"""s3.py BUCKET: an S3 server in memory with one empty bucket, for tests.

Prints one line of JSON, {"endpoint": ..., "bucket": ...}, when it can be used, and ends when its standard input is closed.

The server is moto. It looks whether an object is there and then writes it, without a lock, so a conditional PUT could have two
winners; here one request at a time changes anything, as in the real service. Credentials and signatures are not checked.
"""

import io
import json
import logging
import os
import sys
import threading

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
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


def main():
    [bucket] = sys.argv[1:]
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = OneChangeAtATime(DomainDispatcherApplication(create_backend_app))
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
