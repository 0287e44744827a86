"""Requests to Azurite's blob service, signed with the well-known key of its account: enough for what tests look at."""

import base64
import hashlib
import hmac
import http.client
import urllib.parse
from email.utils import formatdate

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2021-08-06"


def request(url, method, path, query=None, headers=None, body=b""):
    """Sends one request to the server at `url`; `path` is CONTAINER or CONTAINER/KEY. Returns status, headers and body."""
    query = query or {}
    resource = f"/{ACCOUNT}/{urllib.parse.quote(path)}"
    headers = {k.lower(): v for k, v in (headers or {}).items()}
    headers |= {"x-ms-date": formatdate(usegmt=True), "x-ms-version": VERSION}
    length = str(len(body)) if body else ""
    text = [method, "", "", length, "", "", "", headers.get("if-modified-since", ""), headers.get("if-match", "")]
    text += [headers.get("if-none-match", ""), "", headers.get("range", "")]
    text += [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("x-ms-")]
    text += [f"/{ACCOUNT}{resource}", *(f"{name}:{query[name]}" for name in sorted(query))]
    signature = hmac.new(base64.b64decode(KEY), "\n".join(text).encode(), hashlib.sha256).digest()
    headers["authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}"
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=60)
    target = f"{resource}?{urllib.parse.urlencode(query)}" if query else resource
    try:
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()
