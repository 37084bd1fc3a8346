"""A headless Chromium for tests, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp  # Ray's dashboard needs it, so it is there wherever the package is

NAMES = (os.environ.get("SENSORLAB_TEST_BROWSER", ""), "chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, filter(None, NAMES))), None)


class Page:
    """One tab. Collects what it asks of the network and what it complains about."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._next = 0
        self.requests: list[str] = []
        self.complaints: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._next += 1
        await self._socket.send_json({"id": self._next, "method": method, "params": params})
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), 60)
            self._take(message)
            if message.get("id") == self._next:
                assert "error" not in message, message
                return dict(message["result"])

    def _take(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message.get("method") == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))

    async def open(self, place: Path | str, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a file or an address in a window of this size, in a light or a dark system."""
        for domain in ("Page", "Network", "Log", "Runtime"):
            await self.call(f"{domain}.enable")
        await self.call("Log.clear")
        self.requests.clear()  # the log begins with what an earlier page in this tab has left
        self.complaints.clear()
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Page.navigate", url=place.as_uri() if isinstance(place, Path) else place)
        while await self.value("document.readyState") != "complete":
            await asyncio.sleep(0.05)

    async def wait_for(self, expression: str, seconds: float) -> Any:
        """The value of an expression as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (found := await self.value(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}"
            await asyncio.sleep(0.3)
        return found

    async def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    async def screenshot(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    async def pdf(self) -> bytes:
        return base64.b64decode((await self.call("Page.printToPDF", printBackground=True))["data"])


@contextlib.contextmanager
def browser() -> Iterator[str]:
    """A running browser: the address of the socket of its one tab. It ends with the block."""
    assert BROWSER is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        switches = ["--headless=new", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--disable-quic"]
        switches += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        switches += ["--no-sandbox"] if os.geteuid() == 0 else []
        process = subprocess.Popen(
            [BROWSER, *switches, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield asyncio.run(_tab(_port(Path(profile) / "DevToolsActivePort", process)))
        finally:
            process.terminate()
            process.wait(20)


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(file.read_text().splitlines()[0])
        time.sleep(0.05)
    raise RuntimeError(f"{BROWSER} did not start")


async def _tab(port: int) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        return str(next(tab["webSocketDebuggerUrl"] for tab in await answer.json() if tab["type"] == "page"))


@contextlib.asynccontextmanager
async def connected(address: str) -> Any:
    """The tab at ``address``."""
    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=2**28) as socket:
        yield Page(socket)
