"""faults.py URL [OPTION...]: a proxy in front of the HTTP server at URL that does what networks and busy services do.

Prints one line of JSON, {"endpoint": ...}, when it can be used, and ends when its standard input is closed. Targets and headers
go through as they are, Host included, so that signatures stay right. GET /-/counts answers what has happened so far.

HOW_OFTEN is a probability below 1, or a whole number N: every Nth request. Chance is drawn from --seed, in the order of arrival.
"""

import argparse
import http.client
import http.server
import json
import os
import random
import re
import socketserver
import sys
import threading
import time
import urllib.parse

PIECE = 1 << 16
# these belong to one connection
HOP = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "expect", "te", "upgrade"}


class Cut(Exception):
    """The client's connection is to be closed without another word."""


class Often:
    """True as often as was asked for."""

    def __init__(self, text, random):
        self.value, self.random, self.seen = float(text), random, 0

    def __bool__(self):
        if self.value >= 1:
            self.seen += 1
            return self.seen % int(self.value) == 0
        return self.random.random() < self.value


class Flip:
    """KEYPART@OFFSET:COUNT, where COUNT may be `always`."""

    def __init__(self, text):
        matched = re.fullmatch(r"(.+)@(\d+):(\d+|always)", text)
        if not matched:
            raise argparse.ArgumentTypeError(f"'{text}' is not KEYPART@OFFSET:COUNT")
        self.key, self.offset = matched[1], int(matched[2])
        self.left = float("inf") if matched[3] == "always" else int(matched[3])

    def at(self, key, start, piece):
        """Whether the byte is to be flipped that lies in this piece, which begins at `start`."""
        return self.left > 0 and self.key in key and start <= self.offset < start + len(piece)


class Faults:
    """What is to happen, and what has happened."""

    def __init__(self, options):
        chance = random.Random(options.seed)
        self.lock = threading.Lock()
        self.lost_ack, self.busy = Often(options.lost_ack, chance), Often(options.busy, chance)
        self.conflict = Often(options.conflict, chance)
        self.cut, self.until_cut, self.latency = options.cut, options.cut, options.latency
        self.flips = {"down": options.flip, "up": options.flip_up}
        # KEY is the path, percent-encoding undone; bytes are those of bodies
        self.counts = dict.fromkeys(["requests", "lost_ack", "busy", "conflict", "cut", "flip", "flip_up"], 0)
        self.counts |= {"methods": {}, "down": {}, "up": {}}

    def happens(self, fault):
        with self.lock:
            if not getattr(self, fault):
                return False
            self.counts[fault] += 1
            return True

    def request(self, method):
        with self.lock:
            self.counts["requests"] += 1
            self.counts["methods"][method] = self.counts["methods"].get(method, 0) + 1

    def pass_on(self, direction, key, start, piece):
        """The piece of a body as it arrives on the other side, and whether the connection ends behind it."""
        with self.lock:
            for flip in self.flips[direction]:
                if flip.at(key, start, piece):
                    flip.left -= 1
                    self.counts["flip" if direction == "down" else "flip_up"] += 1
                    changed = bytearray(piece)
                    changed[flip.offset - start] ^= 0x20
                    piece = bytes(changed)
            ends = False
            if self.cut:
                ends = len(piece) >= self.until_cut
                piece = piece[: self.until_cut]
                self.until_cut -= len(piece)
                if ends:
                    self.until_cut = self.cut
                    self.counts["cut"] += 1
            self.counts[direction][key] = self.counts[direction].get(key, 0) + len(piece)
            return piece, ends


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # answers go out in two writes
    disable_nagle_algorithm = True
    upstream = faults = verbose = None

    def log_message(self, text, *arguments):
        if self.verbose:
            super().log_message(text, *arguments)

    def handle(self):
        try:
            super().handle()
        except (Cut, ConnectionError, TimeoutError, http.client.HTTPException):
            # also when either side went away
            self.close_connection = True

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.serve
        raise AttributeError(name)

    def serve(self):
        if self.path == "/-/counts":
            with self.faults.lock:
                return self.answer(200, json.dumps(self.faults.counts).encode(), "application/json")
        self.faults.request(self.command)
        time.sleep(self.faults.latency)
        key = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        body = b"".join(self.body(key))
        if self.faults.happens("busy"):
            return self.refuse(503, "SlowDown")
        conditional = self.command == "PUT" and ("If-None-Match" in self.headers or "If-Match" in self.headers)
        if conditional and self.faults.happens("conflict"):
            return self.refuse(409, "ConditionalRequestConflict")
        self.forward(key, body)

    def body(self, key):
        """The pieces of the request's body."""
        start = 0
        for piece in self.incoming():
            piece, ends = self.faults.pass_on("up", key, start, piece)
            if ends:
                raise Cut
            start += len(piece)
            yield piece

    def incoming(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self.rfile.read1(min(left, PIECE))
            if not piece:
                raise Cut
            left -= len(piece)
            yield piece

    def forward(self, key, body):
        connection = http.client.HTTPConnection(self.upstream, timeout=120)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP and name.lower() != "content-length":
                    connection.putheader(name, value)
            if body or "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            if self.faults.happens("lost_ack"):
                answer.read()
                raise Cut
            self.send_back(key, answer)
        finally:
            connection.close()

    def send_back(self, key, answer):
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOP:
                self.send_header(name, value)
        no_body = self.command == "HEAD" or answer.status in (204, 304)
        chunked = not no_body and answer.getheader("Content-Length") is None
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.log_request(answer.status)
        if no_body:
            return
        ranged = re.match(r"bytes (\d+)-", answer.getheader("Content-Range") or "")
        start = int(ranged[1]) if ranged else 0
        while piece := answer.read1(PIECE):
            piece, ends = self.faults.pass_on("down", key, start, piece)
            start += len(piece)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            if ends:
                raise Cut
        if answer.length:
            # the server went away in the middle of it
            raise Cut
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def refuse(self, status, code):
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>please try again</Message></Error>'
        self.answer(status, text.encode(), "application/xml")

    def answer(self, status, body, kind):
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.log_request(status)
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("url")
    add("--lost-ack", default="0", metavar="HOW_OFTEN", help="forward, drop the answer and close")
    add("--busy", default="0", metavar="HOW_OFTEN", help="503, without forwarding")
    add("--conflict", default="0", metavar="HOW_OFTEN", help="409 ConditionalRequestConflict to a conditional PUT, without forwarding")
    add("--cut", type=int, default=0, metavar="BYTES", help="close a connection whenever BYTES of bodies have passed, in all")
    add("--flip", type=Flip, action="append", default=[], metavar="KEYPART@OFFSET:COUNT", help="flip a byte of what is read")
    add("--flip-up", type=Flip, action="append", default=[], metavar="KEYPART@OFFSET:COUNT", help="flip a byte of what is written")
    add("--latency", type=float, default=0, metavar="SECONDS", help="wait before each request")
    add("--seed", type=int, default=1)
    add("--verbose", action="store_true", help="print request lines to standard error")
    options = parser.parse_args()

    Handler.upstream = urllib.parse.urlsplit(options.url).netloc
    Handler.faults, Handler.verbose = Faults(options), options.verbose
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"endpoint": f"http://127.0.0.1:{server.server_address[1]}"}), flush=True)
    sys.stdin.buffer.read()
    # requests that are still running must not hold it up
    os._exit(0)


if __name__ == "__main__":
    main()
