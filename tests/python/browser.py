"""A headless Chromium, driven through its pipe for development tools: one JSON message after another, each ended by a zero byte."""

import base64
import fcntl
import json
import os
import subprocess
import threading
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / ".chromium"
# no sandbox, which root may not have, and no helper process, which needs one
OPTIONS = ("--headless", "--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--disable-background-networking", "--hide-scrollbars")


class Browser:
    """A browser with one tab. `events` holds what it has told unasked."""

    def __init__(self, folder, limit=900):
        assert PROGRAM.exists(), f"{PROGRAM} is missing: scripts/setup --test gets it"
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # the browser reads from 3 and writes to 4; numbers above these cannot be overwritten before they are copied
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, to_write)]
        # a name that is looked up is an error, as is a connection
        options = [*OPTIONS, f"--user-data-dir={folder}", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe", "about:blank"]
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{ends[0]} 4>&{ends[1]}', str(PROGRAM), *options]
        self._log = open(f"{folder}.log", "w+b")
        self.process = subprocess.Popen(command, pass_fds=ends, stdout=self._log, stderr=self._log, env=os.environ | {"HOME": str(folder)})
        for end in (to_read, to_write, *ends):
            os.close(end)
        self._watchdog = threading.Timer(limit, self.process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()
        self._number, self._rest, self._session, self.events = 0, b"", None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def _message(self):
        while b"\0" not in self._rest:
            data = os.read(self._from, 1 << 16)
            if not data:
                self._log.seek(0)
                raise AssertionError(f"the browser has ended: {self._log.read().decode(errors='replace')}")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def call(self, method, **parameters):
        """Sends a command and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def open(self, path):
        """Opens a file and waits until it is loaded; returns the addresses that were asked for."""
        self.events.clear()
        failed = self.call("Page.navigate", url=path.as_uri()).get("errorText")
        assert not failed, (path, failed)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())
        # drawn twice, so that what a picture or a font would ask for has been asked for
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return [event["params"]["request"]["url"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]

    def look(self, width, height=900, scheme="light", media="screen"):
        """Sets the window's size and the colours that the user prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}])

    def evaluate(self, expression):
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path):
        """The whole page as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path):
        """The page as it is printed."""
        data = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)["data"]
        path.write_bytes(base64.b64decode(data))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._to)
        os.close(self._from)
        self.process.kill()
        self.process.wait()
        self._watchdog.cancel()
        self._log.close()
