"""Headless Chromium, driven over its DevTools protocol: what the tests of pages need of it."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120  # seconds for anything, on a machine that is busy with other things


class Page:
    """The one page of a browser."""

    def __init__(self, socket: Any):
        self.socket = socket
        self.count = 0
        self.problems: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; what the page complains of meanwhile is kept in `problems`."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            said = json.loads(self.socket.recv())
            if said.get("method") == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(said["params"]["exceptionDetails"]))
            if said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.problems.append(said["params"]["entry"]["text"] + " " + said["params"]["entry"].get("url", ""))
            if said.get("id") == self.count:
                assert "error" not in said, said
                return said["result"]

    def run(self, script: str) -> Any:
        """The value of an expression on the page."""
        said = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def wait(self, script: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, f"not so within {PATIENCE} s: {script}"
            time.sleep(0.1)

    def open(self, address: str) -> None:
        """Loads a page."""
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def choose(self, selector: str, files: list[Path]) -> None:
        """Gives files to an input, as a visitor does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def drag(self, selector: str, files: list[Path], *steps: str) -> None:
        """Drags files over the middle of an element: any of dragEnter, dragOver, dragCancel, drop, in order."""
        x, y = self.middle(selector)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for step in steps:
            self.call("Input.dispatchDragEvent", type=step, x=x, y=y, data=data)

    def middle(self, selector: str) -> tuple[float, float]:
        """The middle of an element in the window."""
        x, y = self.run(
            f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        return x, y

    def picture(self, path: Path) -> None:
        """A PNG of what is seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def colours(self, selector: str = "canvas") -> int:
        """How many colours a canvas shows: 1 where nothing is drawn."""
        return self.run(
            f"""(() => {{ const canvas = document.querySelector({selector!r});
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(new Uint32Array(data.buffer)).size; }})()"""
        )


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser with a profile in `folder`, ended in any case; the test is skipped where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    websocket = pytest.importorskip("websocket", reason="websocket-client is not installed")
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--remote-debugging-port=0", "--remote-debugging-address=127.0.0.1", "--remote-allow-origins=*"]
    command += [f"--user-data-dir={folder}", "--window-size=1100,900", "--disable-background-networking", "about:blank"]
    with open(folder.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        port_file, end = folder / "DevToolsActivePort", time.monotonic() + PATIENCE
        while not (port_file.is_file() and port_file.read_text().count("\n")):
            assert process.poll() is None, folder.with_suffix(".log").read_text()
            assert time.monotonic() < end, "the browser did not start"
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE) as answer:
            (target,) = [entry for entry in json.load(answer) if entry["type"] == "page"]
        socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=PATIENCE)
        try:
            yield Page(socket)
        finally:
            socket.close()
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
