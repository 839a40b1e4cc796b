"""Runs cases in a worker process, so that a crash, a hang or a flood of memory is a finding and not the end."""

import argparse
import faulthandler
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAILED = "FAILED"
REPORT_INTERVAL = 30.0  # seconds between two lines of progress
MOST_FAILURES = 50  # reported in full; the rest is counted


def main(module: str, about: str, case: Callable[[int, int], tuple[str, str]], memory: int, patience: float) -> None:
    """The command line of a fuzzer.

    Args:
        module: Its name, as `python -m` takes it.
        about: One line of meaning.
        case: Runs case number n of a seed; gives its group and its outcome, or raises what is a failure.
        memory: Bytes of address space a worker may take beyond what it has at its start.
        patience: Seconds of processor time a case may take.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--cases", type=int, help="stop after so many cases (default 1000 where no --seconds)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case; to see one again: --cases 1")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the cases")
    parser.add_argument("--output", type=Path, help="write the counts here, as JSON")
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)  # of a worker: every so many cases one is its own
    given = parser.parse_args()
    if given.step:
        _work(case, given.seed, given.first, given.step, memory)
        return
    parts = given.seed, given.seconds, given.cases, given.first, patience, given.workers, given.output
    report = run(module, *parts, progress=True)
    print(json.dumps(report, indent=2))
    sys.exit(1 if report["failures"] else 0)


def write(path: Path, report: dict[str, Any]) -> None:
    """Writes a report beside its name and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=2) + "\n")
    temporary.replace(path)


def _work(case: Callable[[int, int], tuple[str, str]], seed: int, first: int, step: int, memory: int) -> None:
    """Cases from `first` on in steps, one line each on standard output, until the parent closes it."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no report
    faulthandler.enable()
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # it reserves terabytes of addresses
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, resource.RLIM_INFINITY))
    number = first
    try:
        while True:
            try:
                group, outcome = case(seed, number)
                line = {"case": number, "group": group, "outcome": outcome}
            except Exception as error:
                text = "".join(traceback.format_exception(error))[-3000:]
                line = {"case": number, "group": getattr(error, "group", "?"), "outcome": FAILED, "why": text}
            out.write(json.dumps(line) + "\n")
            number += step
    except BrokenPipeError:
        os._exit(0)


def run(
    module: str,
    seed: int,
    seconds: float | None,
    cases: int | None,
    first: int,
    patience: float,
    workers: int = 1,
    output: Path | None = None,
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """Runs workers until the time is up or the cases are done; gives the counts.

    With an `output` they are written there too, twice a minute and at the end: a run that is cut short has counted.
    With `progress` a line on standard error says as often how far the run is.
    """
    if seconds is None and cases is None:
        cases = 1000
    started = time.monotonic()
    until = None  # known with the first case: the imports before it are no time to test in
    counts = _Counts(module, seed, first, started)

    def watch(worker: int) -> None:
        nonlocal until
        number = first + worker

        def over() -> bool:
            return (cases is not None and number >= first + cases) or (until is not None and time.monotonic() >= until)

        while not over():
            with _Worker(module, seed, number, workers) as process:
                slow = 120.0  # the first case waits for the imports
                while not over():
                    line = process.line(slow)
                    slow = patience
                    if line is None:
                        counts.ended(number, process.end())
                        number += workers
                        break
                    if until is None and seconds is not None:
                        until = time.monotonic() + seconds
                    counts.add(line)
                    number = line["case"] + workers

    threads = [threading.Thread(target=watch, args=(worker,), daemon=True) for worker in range(workers)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for thread in threads:
            thread.join(REPORT_INTERVAL / len(threads))
        if output:
            write(output, counts.report())
        if progress:
            print(counts.line(cases, seconds), file=sys.stderr, flush=True)
    return counts.report()


class _Counts:
    """What came of the cases; several threads count."""

    def __init__(self, module: str, seed: int, first: int, started: float) -> None:
        self.facts = {"what": module, "seed": seed, "first": first}
        self.started = started
        self.lock = threading.Lock()
        self.done = self.failed = 0
        self.outcomes: Counter[str] = Counter()
        self.groups: dict[str, Counter[str]] = {}
        self.failures: list[dict[str, Any]] = []

    def add(self, line: dict[str, Any]) -> None:
        with self.lock:
            self.done += 1
            self.outcomes[line["outcome"]] += 1
            self.groups.setdefault(line["group"], Counter())[line["outcome"]] += 1
            if line["outcome"] == FAILED:
                self._failure(case=line["case"], group=line["group"], why=line["why"])

    def ended(self, number: int, why: str) -> None:
        """A worker came to an end at a case."""
        with self.lock:
            self.done += 1
            self.outcomes["hang" if "no answer" in why else "crash"] += 1
            self._failure(case=number, why=why)

    def _failure(self, **what: Any) -> None:
        what = {"seed": self.facts["seed"], **what}
        self.failed += 1
        if self.failed <= MOST_FAILURES:
            self.failures.append(what)
        print(json.dumps(what), file=sys.stderr, flush=True)  # a long run is watched

    def line(self, cases: int | None, seconds: float | None) -> str:
        """How far the run is, in one line."""
        with self.lock:
            done = f"{self.done} of {cases} cases" if cases is not None else f"{self.done} cases"
            spent = f"{time.monotonic() - self.started:.0f} s" + (f" of {seconds:g}" if seconds is not None else "")
            return f"{done}, {self.failed} failed, {spent}" + ("" if self.done else ": waiting for the imports")

    def report(self) -> dict[str, Any]:
        with self.lock:
            return {
                **self.facts,
                "cases": self.done,
                "seconds": round(time.monotonic() - self.started, 1),
                "outcomes": dict(sorted(self.outcomes.items())),
                "groups": {name: dict(sorted(count.items())) for name, count in sorted(self.groups.items())},
                "failures": list(self.failures),
                "failed": self.failed,
            }


class _Worker:
    """A process at work on the cases from `first` on, in steps."""

    def __init__(self, module: str, seed: int, first: int, step: int) -> None:
        numbers = {"--seed": seed, "--first": first, "--step": step}
        command = [sys.executable, "-m", module, *(f"{name}={value}" for name, value in numbers.items())]
        self.errors = os.memfd_create("errors")
        memory = Path("/dev/shm")  # no disk: a reader's case writes a file
        # A folder of its own for what it leaves when it is killed.
        self.folder = tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)
        where = os.environ | {"TMPDIR": self.folder.name}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors, env=where)
        self.buffer = b""

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *ignored: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        os.close(self.errors)
        self.folder.cleanup()

    def line(self, patience: float) -> dict[str, Any] | None:
        """The next line, or None where the process has ended, or works for so many seconds without one.

        Its own time counts, not the clock's: a busy machine is no hang. A process that sleeps has ten times as long.
        """
        until, most = time.monotonic() + 10 * patience, self.busy() + patience
        while b"\n" not in self.buffer:
            if not select.select([self.process.stdout], [], [], 0.5)[0]:
                if time.monotonic() > until or self.busy() > most:
                    return None
                continue
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                return None
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def busy(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> str:
        """Why there is no line: a signal, an exit, or silence; with the end of what it wrote to standard error."""
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler writes where it was
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
            code = None
        size = os.fstat(self.errors).st_size
        said = os.pread(self.errors, 6000, max(0, size - 6000)).decode(errors="replace")
        what = "no answer in time" if code is None else f"ended with {code}"
        return f"{what}\n{said}"
