"""A headless Chromium, if one is installed: what it measures of a page, and its picture.

It loads nothing but the page it is given, and keeps its profile in a directory of its own, which is removed.
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from websockets.sync.client import ClientConnection, connect

from support.servers import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
"""Debian's package ``chromium`` brings it."""
Scheme: TypeAlias = Literal["dark", "light"]
SCHEMES: tuple[Scheme, ...] = ("dark", "light")
START = 60.0
"""Seconds that it may take to start on a busy machine."""
FLAGS = (
    ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars")
    + ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage")
    + ("--remote-debugging-port=0", "--password-store=basic")
)


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=START))
            if answer.get("id") == number:
                return answer["result"]

    def open(self, url: str, *, width: int, height: int, scheme: Scheme) -> None:
        """Load ``url`` into a window of that size, for a reader who prefers ``scheme``."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._call("Page.navigate", url=url)
        assert wait_until(lambda: self.evaluate("document.readyState + location.href") == f"complete{url}")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, which the policy of the page does not hinder."""
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self) -> bytes:
        """Return what the window shows, as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png", optimizeForSpeed=False)["data"])


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start a Chromium with ``profile`` as its empty directory, and stop it."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        active = profile / "DevToolsActivePort"
        assert wait_until(lambda: active.exists() and len(active.read_text().split()) == 2, START)
        port = active.read_text().split()[0]
        with connect(f"ws://127.0.0.1:{port}{active.read_text().split()[1]}", max_size=None) as socket:
            root = Page(socket)
            target = root._call("Target.createTarget", url="about:blank")["targetId"]
            with connect(f"ws://127.0.0.1:{port}/devtools/page/{target}", max_size=None) as tab:
                yield Page(tab)
            root._call("Browser.close")
            process.wait(START)
    finally:
        process.kill()
        process.wait()
