"""Puts small faults into the operations, one at a time, and counts those that a test sees.

`python -m tests.mutation --python 60 --cpp 25 --seed 1 --output build/reliability/mutation.json`. A fault is killed by
the tests of its operation, by the fuzzer's regression tests or by ten seconds of the fuzzer; where those tests fail
without it too it is not judged, and they are quoted. Survivors without a verdict in `tests/mutation/verdicts.py`, and
faults that were not judged, end the command with 1. `--again REPORT` tries both of a report.
"""

import argparse
import importlib.util
import json
import queue
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.driver import write
from tests.mutation.sites import Site, sites
from tests.mutation.trial import NOT_COMPILED, NOT_JUDGED, SURVIVED, NotJudged, Trial
from tests.mutation.verdicts import VERDICTS


def chosen(number: dict[str, int], seed: int, only: str = "") -> list[Site]:
    """So many sites of each language, in a random order, in files whose name holds `only`; the same for the same code
    and seed.
    """
    found = []
    for language, count in number.items():
        every = [site for site in sites(language) if only in site.file]
        found += random.Random(f"{language}/{seed}").sample(every, min(count, len(every)))
    random.Random(seed).shuffle(found)  # a run that is cut short has tried some of each
    return found


def left(report: dict[str, Any]) -> list[Site]:
    """The sites of a report's survivors, and of what it could not judge, in the code as it is now."""
    wanted = {(one["file"], one["original"], one["mutated"]) for one in report["survivors"] + report["failures"]}
    return [s for language in ("python", "cpp") for s in sites(language) if (s.file, s.original, s.mutated) in wanted]


class Counts:
    """What came of the faults; several threads count."""

    def __init__(self, seed: int, outcomes: Counter[str]) -> None:
        self.seed = seed
        self.outcomes = outcomes
        self.survivors: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.started = time.monotonic()
        self.lock = threading.Lock()

    def add(self, site: Site, outcome: str, why: str = "") -> None:
        with self.lock:
            self.outcomes[outcome] += 1
            print(
                f"{outcome}: {site.file}:{site.line}: {site.original}  ->  {site.mutated}", file=sys.stderr, flush=True
            )
            what = {"file": site.file, "line": site.line, "original": site.original, "mutated": site.mutated}
            if outcome == SURVIVED:
                self.survivors.append(what)
            if outcome == NOT_JUDGED:
                print(why, file=sys.stderr, flush=True)
                self.failures.append({"kind": site.file, **what, "why": why})

    def report(self) -> dict[str, Any]:
        with self.lock:
            unseen = [one for one in self.survivors if (one["file"], one["original"], one["mutated"]) not in VERDICTS]
            return {
                "what": "tests.mutation",
                "seed": self.seed,
                "cases": sum(count for name, count in self.outcomes.items() if name not in (NOT_COMPILED, NOT_JUDGED)),
                "seconds": round(time.monotonic() - self.started, 1),
                "outcomes": {name: count for name, count in sorted(self.outcomes.items()) if count},
                "survivors": list(self.survivors),
                "failures": list(self.failures),
                "failed": len(unseen) + len(self.failures),
            }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", type=int, default=60, help="faults in pointpeft/ops")
    parser.add_argument("--cpp", type=int, default=25, help="faults in the CPU kernels of csrc")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="in files whose name holds this text")
    parser.add_argument("--workers", type=int, default=1, help="copies of the tree that share the faults")
    parser.add_argument("--again", type=Path, help="try only what this report left open, and correct its counts")
    parser.add_argument("--output", type=Path, help="write the counts and the survivors here, as JSON")
    given = parser.parse_args()
    outcomes: Counter[str] = Counter()
    seed = given.seed
    if given.again:
        before = json.loads(given.again.read_text(encoding="utf-8"))
        outcomes, seed, todo = Counter(before["outcomes"]), before["seed"], left(before)
        outcomes[SURVIVED] -= len(before["survivors"])
        outcomes[NOT_JUDGED] -= len(before["failures"])
    else:
        if given.python and importlib.util.find_spec("triton") is None:
            parser.error("--python needs Triton, of whose kernels no fault would be seen")
        todo = chosen({"cpp": given.cpp, "python": given.python}, seed, given.only)
    counts = Counts(seed, outcomes)
    waiting: queue.SimpleQueue[Site] = queue.SimpleQueue()
    for site in todo:
        waiting.put(site)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
                trial = Trial(Path(folder).resolve())
                while not errors:
                    site = waiting.get_nowait()
                    try:
                        counts.add(site, trial.outcome(site))
                    except NotJudged as error:
                        counts.add(site, NOT_JUDGED, str(error))
                    if given.output:
                        write(given.output, counts.report())
        except queue.Empty:
            return
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(given.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = counts.report()
    print(json.dumps(report, indent=2))
    if errors:
        raise errors[0]
    sys.exit(1 if report["failed"] else 0)


if __name__ == "__main__":
    main()
