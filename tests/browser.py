"""A headless Chromium over the pipe of its DevTools protocol: no driver and no library needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
TIMEOUT_SECONDS = 30.0


class Browser:
    """One page. `trouble` collects console errors, exceptions and policy violations; `requests` what it asked for elsewhere."""

    def __init__(self, reading: int, writing: int) -> None:
        """File descriptors of the pipe's two ends on our side."""
        self._reading, self._writing = reading, writing
        self._received, self._number, self._session = b"", 0, ""
        self.trouble: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, path: Path, width: int, scheme: str, height: int = 900) -> None:
        """Load a file in a window of so many CSS pixels and a colour scheme; forget what was collected before."""
        self.trouble.clear()
        self.requests.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._loaded = False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._take(self._message())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page, as far down as it goes."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def print(self, path: Path) -> None:
        """The page as a PDF on A4."""
        sheet = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True, "printBackground": True}
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", **sheet)["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._take(answer)

    def _message(self) -> dict[str, Any]:
        end = time.monotonic() + TIMEOUT_SECONDS
        while b"\0" not in self._received:
            ready = select.select([self._reading], [], [], max(0.0, end - time.monotonic()))[0]
            more = os.read(self._reading, 1 << 16) if ready else b""
            assert more, "Chromium does not answer"
            self._received += more
        message, self._received = self._received.split(b"\0", 1)
        return json.loads(message)

    def _take(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith("data:image/"):
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.trouble.append(str(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.trouble.append(str(parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.trouble.append(parameters["entry"]["text"])


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A fresh Chromium with its profile in an empty folder, ended at the end."""
    assert CHROMIUM is not None
    (its_in, our_out), (our_in, its_out) = os.pipe(), os.pipe()
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
    script = f'exec "$@" 3<&{its_in} 4>&{its_out}'  # Chromium reads descriptor 3 and writes 4
    running = subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        pass_fds=(its_in, its_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=profile,
    )
    os.close(its_in)
    os.close(its_out)
    try:
        yield Browser(our_in, our_out)
    finally:
        running.terminate()
        running.wait(timeout=TIMEOUT_SECONDS)
        os.close(our_in)
        os.close(our_out)
