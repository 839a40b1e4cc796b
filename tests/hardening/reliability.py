"""Writes RELIABILITY.md, the counts of the long runs: `python -m tests.hardening.reliability build/reliability/*.json`.

The counts come from `--output build/reliability/NAME.json` of `fuzz.ops`, `fuzz.readers`, `fuzz.cuda_path`,
`fuzz.atheris_readers`, `faults.inject` and `endurance`, modules of this package;
those of covered lines from `pytest -n 2 --cov=pointpeft --cov-report=json:build/reliability/coverage.json`.
"""

import argparse
import ast
import json
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
REGRESSIONS = ("regressions/test_ops.py", "regressions/test_readers.py", "faults/test_inject.py")
HEAD = """# Reliability

What was tried to make pointpeft crash, lose or let in anything, and what came of it. Written by
`python -m tests.hardening.reliability`; the numbers are those of the last long runs.

| command | seed | cases | seconds | outcomes | failures |
|---|---|---|---|---|---|
"""
COMMANDS = """
Every kind of case, how it is judged, and how a failure is repeated: the docstrings of the modules, and `--help`.

```sh
.ci/sanitize                                           # the operations' tests, every access to memory checked
SIMDE=path/to/simde .ci/avx512                         # the AVX-512 kernels on a processor without it
python -m tests.hardening.fuzz.ops --cases 1000000  # random calls of every operation, against the reference
python -m tests.hardening.fuzz.raw --cases 1000000  # the registered operations by themselves
python -m tests.hardening.fuzz.readers --cases 1000000  # damaged files
python -m tests.hardening.fuzz.cuda_path --cases 2000  # the Triton kernels, interpreted, on such calls
python -m tests.hardening.fuzz.on_device --cases 2000  # CUDA kernels against those of the CPU, where there is a GPU
python -m tests.csrc.emulated --cases 1000  # CUDA kernels with their host code, emulated on the CPU
python -m tests.csrc.faults  # faults put into those kernels, each of which must be noticed
python -m tests.hardening.fuzz.atheris_readers -runs=100000  # damaged files, led by what code they reach
python -m tests.hardening.kills --kills 60  # one run, killed so often, ends as one that was not
python -m tests.hardening.faults.inject --kills 50  # killed, interrupted, out of disk, damaged
python -m tests.hardening.endurance                              # 10 000 training steps, 200 000 predictions
pytest -n 2 --cov=pointpeft                            # lines that the tests reach
.ci/nightly                                            # all of these, and this page
```

`pytest` runs a slice of the first three fuzzers and of the faults: `POINTPEFT_FUZZ_SECONDS` (15 for each fuzzer) and
`POINTPEFT_FAULT_KILLS` (3) lengthen it. Hostile files are in `tests/security`.

"""


def row(report: dict[str, Any]) -> str:
    outcomes = ", ".join(f"{name} {count:,}" for name, count in report["outcomes"].items())
    cells = [
        f"`{report['what']}`",
        report.get("seed", ""),
        f"{report['cases']:,}",
        f"{report['seconds']:.0f}" if report["seconds"] else "",
        outcomes,
    ]
    return "| " + " | ".join(map(str, [*cells, report["failed"]])) + " |"


def of_coverage(report: dict[str, Any]) -> dict[str, Any]:
    """The counts of a report of `coverage json`, as the other commands give theirs."""
    lines = report["totals"]
    outcomes = {"lines reached": lines["covered_lines"], "not reached": lines["missing_lines"]}
    cases = lines["num_statements"]
    return {"what": "pytest --cov", "cases": cases, "seconds": 0, "outcomes": outcomes, "failures": [], "failed": 0}


def regressions(path: Path) -> list[str]:
    """The tests of a file, as sentences."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return [f"- {name.removeprefix('test_').replace('_', ' ')} (`{name}`)" for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hardening.reliability", description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=TESTS / "RELIABILITY.md")
    given = parser.parse_args()
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in given.reports]
    reports = [of_coverage(report) if "totals" in report else report for report in reports]
    reports.sort(key=lambda report: (report["what"], report.get("seed", 0)))
    text = HEAD + "\n".join(map(row, reports)) + "\n" + COMMANDS
    text += "## Defects found, and the tests that hold their mending\n"
    for name in REGRESSIONS:
        text += f"\n`tests/hardening/{name}`\n\n" + "\n".join(regressions(TESTS / name)) + "\n"
    open_ones = [(report["what"], failure) for report in reports for failure in report["failures"]]
    if open_ones:
        text += "\n## Failures of the last long runs\n\n"
        for what, failure in open_ones:
            lines = failure["why"].strip().splitlines() or [""]
            where = " ".join(str(failure[key]) for key in ("group", "kind", "case") if failure.get(key) is not None)
            # A fault's first line says what was wrong; a case's last one is its error.
            text += f"- `{what}`, {where}: {lines[0 if 'kind' in failure else -1]}\n"
    temporary = given.output.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(given.output)
    print(given.output)
    sys.exit(0)


if __name__ == "__main__":
    main()
