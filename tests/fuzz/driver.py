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
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAILED = "FAILED"
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
    parser.add_argument("--output", type=Path, help="write the counts here, as JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        _work(case, given.seed, given.first, memory)
        return
    report = run(module, given.seed, given.seconds, given.cases, given.first, patience)
    if given.output:
        write(given.output, report)
    print(json.dumps(report, indent=2))
    sys.exit(1 if report["failures"] else 0)


def write(path: Path, report: dict[str, Any]) -> None:
    """Writes a report beside its name and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=2) + "\n")
    temporary.replace(path)


def _work(case: Callable[[int, int], tuple[str, str]], seed: int, first: int, memory: int) -> None:
    """Cases from `first` on, one line each on standard output, until the parent closes it."""
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
            number += 1
    except BrokenPipeError:
        os._exit(0)


def run(
    module: str, seed: int, seconds: float | None, cases: int | None, first: int, patience: float
) -> dict[str, Any]:
    """Runs workers until the time is up or the cases are done; gives the counts."""
    if seconds is None and cases is None:
        cases = 1000
    started = time.monotonic()
    until = None if seconds is None else started + seconds
    stop = None if cases is None else first + cases
    counts: Counter[str] = Counter()
    groups: dict[str, Counter[str]] = {}
    failures: list[dict[str, Any]] = []
    number = first

    def failed(**what: Any) -> None:
        failures.append({"seed": seed, **what})
        print(json.dumps(failures[-1]), file=sys.stderr, flush=True)  # a long run is watched

    def over() -> bool:
        return (stop is not None and number >= stop) or (until is not None and time.monotonic() >= until)

    while not over():
        with _Worker(module, seed, number) as worker:
            slow = 120.0  # the first case waits for the imports
            while not over():
                line = worker.line(slow)
                slow = patience
                if line is None:
                    why = worker.end()
                    failed(case=number, why=why)
                    counts["hang" if "no answer" in why else "crash"] += 1
                    number += 1
                    break
                counts[line["outcome"]] += 1
                groups.setdefault(line["group"], Counter())[line["outcome"]] += 1
                if line["outcome"] == FAILED:
                    failed(case=line["case"], group=line["group"], why=line["why"])
                number = line["case"] + 1
    return {
        "what": module,
        "seed": seed,
        "first": first,
        "cases": number - first,
        "seconds": round(time.monotonic() - started, 1),
        "outcomes": dict(sorted(counts.items())),
        "groups": {name: dict(sorted(count.items())) for name, count in sorted(groups.items())},
        "failures": failures[:MOST_FAILURES],
        "failed": len(failures),
    }


class _Worker:
    """A process at work on the cases from `first` on."""

    def __init__(self, module: str, seed: int, first: int) -> None:
        command = [sys.executable, "-m", module, "--worker", "--seed", str(seed), "--first", str(first)]
        self.errors = os.memfd_create("errors")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors)
        self.buffer = b""

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *ignored: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        os.close(self.errors)

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
