"""A headless Chromium for tests, spoken to over two pipes; no library, no port.

The Chrome DevTools Protocol, https://chromedevtools.github.io/devtools-protocol/: with
``--remote-debugging-pipe`` the browser reads commands from file descriptor 3 and writes answers
and events to 4, each a JSON text that ends with a zero byte.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Browser", "chromium"]

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_SECONDS = 30.0


@functools.cache
def chromium() -> str:
    """The path of a Chromium that runs; where there is none the test is skipped."""
    for path in filter(None, map(shutil.which, _NAMES)):
        done = subprocess.run([path, "--version"], capture_output=True, timeout=60)
        if done.returncode == 0:
            return path
    pytest.skip("no Chromium here; on Debian, as root: apt-get install chromium")


class Browser:
    """One tab; a context manager.

    ``asked`` has the URL of every request, ``sent`` the headers that went out, ``complaints`` what
    the console has of errors and of what the page's policy stopped.
    """

    def __init__(self, folder: Path, *flags: str):
        path = chromium()
        # bash, since only a shell puts pipes at 3 and 4 without code between fork and exec.
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        self._log = open(folder / "chromium.log", "wb")
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash", path,
             "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--disable-background-networking", "--no-first-run", "--hide-scrollbars",
             "--remote-debugging-pipe",
             f"--user-data-dir={folder / 'profile'}", *flags],
            pass_fds=(commands, answers), stdin=subprocess.DEVNULL,
            stdout=self._log, stderr=self._log,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._rest, self._number, self._session = b"", 0, ""
        self.asked: list[str] = []
        self.sent: list[dict[str, str]] = []
        self.complaints: list[str] = []
        try:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            found = self.ask("Target.attachToTarget", targetId=target, flatten=True)
            self._session = found["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.ask(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give a command and return its answer; events on the way are noted."""
        self._number += 1
        said = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            said["sessionId"] = self._session
        os.write(self._to, json.dumps(said).encode() + b"\0")
        deadline = time.monotonic() + _SECONDS
        while True:
            heard = self._hear(deadline)
            if heard.get("id") == self._number:
                assert "error" not in heard, (method, heard["error"])
                return heard["result"]
            self._note(heard.get("method"), heard.get("params", {}))

    def _hear(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._from, 1 << 16) if ready else b""
            assert piece, f"the browser says nothing; it ended with {self._process.poll()}"
            self._rest += piece
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)

    def _note(self, method: str | None, found: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.asked.append(found["request"]["url"])
        elif method == "Network.requestWillBeSentExtraInfo":
            self.sent.append(found["headers"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(found["exceptionDetails"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.complaints.append(f"{found['entry']['text']} {found['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        """Go to an address, and wait until its page is there; forget what was noted before."""
        self._go("about:blank")  # so that the page before asks for nothing any more
        for noted in (self.asked, self.sent, self.complaints):
            noted.clear()
        self._go(url)

    def _go(self, url: str) -> None:
        self.ask("Page.navigate", url=url)
        start = "/".join(url.split("/")[:3])
        here = f"location.href.startsWith('{start}') && document.readyState === 'complete'"
        self.wait_for(here)

    def run(self, script: str) -> Any:
        """The value of an expression in the page, or what it promises."""
        answer = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = _SECONDS) -> Any:
        """The value of an expression as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, f"{script} did not come true in {seconds:g} s"
            time.sleep(0.1)
        return value

    def text(self, id_: str) -> str:
        """What an element says."""
        return self.run(f"document.getElementById('{id_}').innerText")

    def type(self, text: str) -> None:
        """Type a text, and Enter."""
        self.ask("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                     windowsVirtualKeyCode=13)  # fmt: skip

    def look(self, width: int, height: int, **media: str) -> None:
        """Be so wide, and prefer what ``prefers_color_scheme`` and the like say."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        features = [{"name": k.replace("_", "-"), "value": v} for k, v in media.items()]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.run("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")

    def picture(self, path: Path) -> None:
        """Write a PNG of the whole page."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        taken = self.ask(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1}
        )
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self) -> None:
        """End the browser; when its pipe is closed it goes by itself."""
        os.close(self._to)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._from)
            self._log.close()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
