"""Runs steps one after another, each a process with a time limit of its own, and writes what they give as it comes."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import files

ROOT = Path(__file__).resolve().parents[2]
REFUSED = 77  # exit code of a step that the machine cannot do; its result holds the reason
MIN_SECONDS = 2.0  # below so much time left a step is not begun
POLL = 0.2
EVERY = 5.0  # seconds after which the results of a step under way are merged again
TAIL = 4000  # characters of output that the results keep of a step that did not pass


@dataclass(frozen=True)
class Step:
    """A process, and how long it may take.

    Args:
        name: Its key in the results.
        command: Arguments; in them and in the environment `{output}` becomes the file that it writes, `{seconds}` the
            time it has, `{most}` seven tenths of it: what is left is for its start and its end.
        limit: Seconds, as a share of what is left for this and all later steps; what one leaves goes to the next ones.
        needed: Whether nothing further is worth running where it fails.
        suffix: Of the file that it writes.
        summary: Makes a result of what it wrote, where that is not JSON.
        environment: Further variables.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    needed: bool = False
    suffix: str = ".json"
    summary: Callable[[Path], Any] = files.read
    environment: dict[str, str] = field(default_factory=dict)


class Run:
    """The steps of one run, its log and its results.

    Both are one file each: a machine that is lent may give few files back.
    """

    def __init__(self, steps: list[Step], output: Path, seconds: float, facts: dict[str, Any]):
        self.steps = steps
        self.output = output
        self.deadline = time.monotonic() + seconds
        self.results: dict[str, Any] = {**facts, "steps": {}}
        output.mkdir(parents=True, exist_ok=True)
        (output / "log.txt").write_text("")

    def run(self) -> int:
        """Runs all steps; gives 0 where each has passed or was refused by the machine, else 1."""
        with tempfile.TemporaryDirectory() as folder:
            for step in self.steps:
                state = self._run_step(step, Path(folder) / f"{step.name}{step.suffix}")
                print(f"{step.name}: {state['status']} after {state['seconds']} s", flush=True)
                if step.needed and state["status"] != "passed":
                    self._stop_after(step)
                    break
        good = all(state["status"] in ("passed", "refused") for state in self.results["steps"].values())
        self.results["exit_code"] = 0 if good else 1
        self._write()
        return int(self.results["exit_code"])

    def _stop_after(self, step: Step) -> None:
        for other in self.steps[self.steps.index(step) + 1 :]:
            self._note(other, "not begun", 0.0, reason=f"{step.name} did not pass")

    def _write(self) -> None:
        files.write(self.output / "results.json", self.results)

    def _note(self, step: Step, status: str, seconds: float, **more: Any) -> dict[str, Any]:
        state = {"status": status, "seconds": round(seconds, 1), **more}
        self.results["steps"][step.name] = state
        self._write()
        return state

    def _time_for(self, step: Step) -> float:
        """Seconds that a step may take; one that all others need may take all there are."""
        left = self.deadline - time.monotonic()
        later = self.steps[self.steps.index(step) :]
        return left if step.needed else left * step.limit / sum(each.limit for each in later)

    def _run_step(self, step: Step, path: Path) -> dict[str, Any]:
        limit = self._time_for(step)
        if limit < MIN_SECONDS:
            return self._note(step, "not begun", 0.0, reason="no time was left")
        values = {"{output}": str(path), "{seconds}": f"{limit:.0f}", "{most}": f"{0.7 * limit:.0f}"}

        def filled(text: str) -> str:
            for name, value in values.items():
                text = text.replace(name, value)
            return text

        command = [filled(part) for part in step.command]
        environment = {name: filled(value) for name, value in step.environment.items()}
        begin = time.monotonic()
        log_path = path.with_suffix(".log")
        with log_path.open("wb") as log:
            code = self._wait(step, command, environment, log, path, limit)
        seconds = time.monotonic() - begin
        text = log_path.read_text(errors="replace")
        with (self.output / "log.txt").open("a") as whole:
            whole.write(f"==== {step.name}: {' '.join(command)}\n{text}\n")
        status = {0: "passed", REFUSED: "refused", None: "timed out"}.get(code, "failed")
        more: dict[str, Any] = {"exit": code} if status == "failed" else {}
        if status != "passed":
            more["output"] = text[-TAIL:]
        return self._note(step, status, seconds, **more, **self._result(step, path))

    def _result(self, step: Step, path: Path) -> dict[str, Any]:
        """What a step has written so far; a file that cannot be read is noted and ends nothing."""
        try:
            found = step.summary(path)
        except (OSError, ValueError, SyntaxError) as error:
            return {"unreadable": f"{type(error).__name__}: {error}"}
        return {} if found is None else {"result": found}

    def _wait(
        self, step: Step, command: list[str], more: dict[str, str], log: Any, path: Path, limit: float
    ) -> int | None:
        """The exit code, or None where time ran out and the process with all its children was ended."""
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | more
        try:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
            )
        except OSError as error:
            log.write(f"{command[0]} does not run: {error}\n".encode())
            return 1
        begin = merged = time.monotonic()
        try:
            while process.poll() is None:
                now = time.monotonic()
                if now - begin > limit:
                    return None
                if now - merged > EVERY:
                    merged = now
                    self._note(step, "running", now - begin, **self._result(step, path))
                time.sleep(POLL)
            return process.returncode
        finally:
            with suppress(ProcessLookupError):  # children may outlive the step
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module of this checkout with this Python."""
    return (sys.executable, "-m", module, *arguments)
