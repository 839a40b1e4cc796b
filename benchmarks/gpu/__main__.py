"""Builds, tests, checks and times everything on the GPU of this machine, and writes what it finds as it comes.

python -m benchmarks.gpu --minutes 9 --output DIR     on a machine with a GPU, from a checkout; needs no network
python -m benchmarks.gpu --rehearse --output DIR      on any machine: the same steps, tiny, on the CPU

DIR/results.json holds the result of every step, DIR/log.txt what they printed, DIR/page.md a page of both. A step that
fails, or that this machine refuses, is noted and the others go on; only where the build or the compiled operations are
missing nothing else is begun. The exit code is 0 where no step failed.
"""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.gpu import page
from benchmarks.gpu.plan import plan
from benchmarks.gpu.runner import Run


def main(arguments: list[str] | None = None) -> int:
    """The command; gives its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all steps together")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone, besides those that all need")
    given = parser.parse_args(arguments)
    steps = plan(given.rehearse)
    names = [step.name for step in steps]
    unknown = sorted(set(given.only or []) - set(names))
    if unknown:
        parser.error(f"--only must be among {', '.join(names)}, got {', '.join(unknown)}")
    if given.only:
        steps = [step for step in steps if step.needed or step.name in given.only]
    facts = {"rehearsal": given.rehearse, "minutes": given.minutes, "date": time.strftime("%Y-%m-%d", time.gmtime())}
    run = Run(steps, given.output.resolve(), 60 * given.minutes, facts)
    code = run.run()
    page.write(run.output / "results.json", run.output / "page.md")
    print(f"{run.output / 'page.md'}; exit code {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
