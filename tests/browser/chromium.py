"""A headless Chromium, spoken to over two pipes in the DevTools protocol: no driver, no library.

Chromium reads commands from descriptor 3 and writes answers and events to descriptor 4, JSON texts that end with a zero
byte (`--remote-debugging-pipe`). The protocol: https://chromedevtools.github.io/devtools-protocol/.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip
FACTOR = float(os.environ.get("TEST_TIME_FACTOR", "1"))
ANSWER_S, EXIT_S = 20.0 * FACTOR, 10.0 * FACTOR
# Where Chromium expects its pipes; ours are moved out of the way of these first.
READS, WRITES, BEYOND = 3, 4, 10


class Browser:
    """One Chromium process with a profile of its own, gone after the `with` block."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        path = next((found for name in NAMES if (found := shutil.which(name))), None)
        assert path is not None, "no Chromium: apt-get install chromium"
        self._profile = tempfile.mkdtemp(prefix="c", dir="/tmp")
        command_out, self._commands = os.pipe()
        self._answers, answer_in = os.pipe()
        ours = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, BEYOND) for fd in (command_out, answer_in)]
        actions = [(os.POSIX_SPAWN_DUP2, ours[0], READS), (os.POSIX_SPAWN_DUP2, ours[1], WRITES)]
        words = [path, *OPTIONS, f"--user-data-dir={self._profile}", "about:blank"]
        self._pid = os.posix_spawn(
            path, words, dict(environ if environ is not None else os.environ), file_actions=actions, setpgroup=0
        )
        for fd in (command_out, answer_in, *ours):
            os.close(fd)
        self._waiting = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.call("Browser.close")
            self._await_exit()
        except (AssertionError, OSError):
            os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._commands)
        os.close(self._answers)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, session: str | None = None, **arguments: Any) -> dict[str, Any]:
        """One command and its result; what happens meanwhile is added to `events`."""
        self._number += 1
        command: dict[str, Any] = {"id": self._number, "method": method, "params": arguments}
        if session is not None:
            command["sessionId"] = session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_S
        while True:
            for message in self._read(deadline):
                if message.get("id") == self._number:
                    assert "error" not in message, f"{method}: {message['error']}"
                    result: dict[str, Any] = message["result"]
                    return result
                self.events.append(message)

    def open(self, url: str, width: int = 1280, height: int = 900, *, dark: bool = False) -> Page:
        """A page that has loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        page.prefer(dark=dark)
        page.go(url)
        return page

    def _read(self, deadline: float) -> list[dict[str, Any]]:
        left_s = deadline - time.monotonic()
        readable, _, _ = select.select([self._answers], [], [], max(0.0, left_s))
        assert readable, f"Chromium did not answer within {ANSWER_S:g} s"
        piece = os.read(self._answers, 1 << 20)
        assert piece, "Chromium has ended"
        *texts, self._waiting = (self._waiting + piece).split(b"\0")
        return [json.loads(text) for text in texts]

    def _await_exit(self) -> None:
        deadline = time.monotonic() + EXIT_S
        while os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            assert time.monotonic() < deadline, "Chromium did not end"
            time.sleep(0.02)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One command to this tab."""
        return self._browser.call(method, self._session, **arguments)

    def go(self, url: str) -> None:
        """Load it."""
        assert "errorText" not in self.call("Page.navigate", url=url), url

    def run(self, program: str) -> Any:
        """The JSON value of a JavaScript expression; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=program, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, f"{program}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        """What is to be read in the first element that matches; nothing while there is none."""
        found = self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        assert isinstance(found, str)
        return found

    def press(self, key: str) -> None:
        """A key goes down and up."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def resize(self, width: int, height: int) -> None:
        """The size of the window, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def prefer(self, *, dark: bool) -> None:
        """What the system's theme is."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """What the console was told: exceptions, and what a policy or the network refused."""
        self.run("0")
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            facts = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(facts["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and facts["entry"]["level"] == "error":
                found.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")
        return found

    def asked(self) -> list[str]:
        """Every address that the page has asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self._browser.events
            if event["method"] == "Network.requestWillBeSent" and event.get("sessionId") == self._session
        ]
