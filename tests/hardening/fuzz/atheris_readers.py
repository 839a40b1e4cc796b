"""Fuzzes every reader, guided by coverage: `python -m tests.hardening.fuzz.atheris_readers -runs=100000`.

Needs atheris (`pip install atheris`). An input is one byte that picks the kind of file, and the file's content; it
begins with the valid files of `tests.hardening.fuzz.files`, changes them as libFuzzer and as
`tests.hardening.fuzz.readers` do, keeps what reaches new branches of pointpeft, and ends at the first failure, which
it writes to `crash-*`. Arguments are libFuzzer's (`-runs=`, `-max_total_time=`, `-artifact_prefix=`, a folder that
keeps the inputs), and `--output=REPORT`.
"""

import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pointpeft"]):
    from tests.hardening.fuzz.readers import originals, verdict

from tests.hardening.fuzz.draw import Draw
from tests.hardening.fuzz.driver import FAILED, write
from tests.hardening.fuzz.files import damage

EVERY = 100  # inputs between two reports: libFuzzer ends its process without a word to Python


def main() -> None:
    _, files, contents = originals()
    names = sorted(files)
    outputs = [Path(word.removeprefix("--output=")) for word in sys.argv if word.startswith("--output=")]
    started = time.monotonic()
    outcomes: Counter[str] = Counter()
    failures = []

    def report() -> None:
        for path in outputs:
            facts = {
                "what": "tests.hardening.fuzz.atheris_readers",
                "cases": outcomes.total(),
                "outcomes": dict(outcomes),
            }
            took = {"seconds": round(time.monotonic() - started, 1)}
            write(path, {**facts, **took, "failures": failures, "failed": len(failures)})

    def one(data: bytes) -> None:
        if not data:
            return
        name = names[data[0] % len(names)]
        files[name].write_bytes(data[1:])
        try:
            outcomes[verdict(name, files[name])] += 1
        except Exception as error:
            outcomes[FAILED] += 1
            failures.append({"group": name, "why": f"{type(error).__name__}: {error}"})
            report()
            raise
        if outcomes.total() % EVERY == 0:
            report()

    def changed(data: bytes, most: int, seed: int) -> bytes:
        kind, content = data[:1] or b"\0", data[1:]
        draw = Draw("atheris", seed)
        if draw.happens(0.5):
            content = damage(content, draw, list(contents.values()))
        else:
            content = atheris.Mutate(content, most - 1)
        return (kind + content)[:most]

    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            (Path(folder) / str(number)).write_bytes(bytes([number]) + contents[name])
        words = [word for word in sys.argv if not word.startswith("--output=")]
        child = os.fork()  # the folders are cleared by the parent
        if not child:
            atheris.Setup([*words, folder], one, custom_mutator=changed)
            atheris.Fuzz()
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
