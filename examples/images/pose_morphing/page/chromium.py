"""A headless Chromium, driven by its DevTools protocol over a pipe: nothing to install for it."""

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--window-size=900,900",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no network
)


class Chromium:
    """One tab of a browser.

    Args:
        program: Path of the browser.
        folder: Where it may write.
    """

    def __init__(self, program: str, folder: Path) -> None:
        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()

        def place() -> None:
            """Put the ends of the pipes where the browser looks for them: 3 and 4."""
            first, second = os.dup(commands), os.dup(answers)
            os.dup2(first, 3)
            os.dup2(second, 4)

        self.process = subprocess.Popen(
            [program, *OPTIONS, f"--user-data-dir={folder}", "about:blank"],
            preexec_fn=place,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self.number, self.waiting, self.session = 0, b"", None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        answer = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = answer["sessionId"]
        self.call("Page.enable")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.number += 1
        said = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            said["sessionId"] = self.session
        os.write(self.commands, json.dumps(said).encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") == self.number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']['message']}")
                return found["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self.waiting:
            more = os.read(self.answers, 1 << 20)
            if not more:
                raise RuntimeError("the browser is gone")
            self.waiting += more
        message, self.waiting = self.waiting.split(b"\0", 1)
        return json.loads(message)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, of a promise once it is kept."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, buttons: int = 0) -> None:
        """Press, move or release the mouse; `kind` is mousePressed, mouseMoved or mouseReleased."""
        button = "left" if buttons or kind == "mouseReleased" else "none"
        self.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button=button,
            buttons=buttons,
            clickCount=int(kind != "mouseMoved"),
        )

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
