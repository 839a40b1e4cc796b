"""Runs random cases of the CUDA kernels on the emulator, and compares them with their definitions.

    python -m tests.csrc.emulated --cases 500 --seed 1
    python -m tests.csrc.emulated --only knn --seed 1 --first 37 --cases 1     # one case again, as a failure prints it

Prints how often each path and each instance of a kernel ran; ends with 1 where something differs or is found. No GPU
is needed: g++ compiles the kernels once (build/emulation).
"""

import argparse
import collections
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from pointpeft import files
from tests.csrc.cases import OPERATIONS, Case, Draw, makers
from tests.csrc.emulation.kernels import BUILT, Finding, Kernels, kernels


def draw_case(operation: str, seed: int, number: int, scale: float = 1.0) -> Case:
    """Case `number` of an operation: always the same one for the same seed."""
    chosen = makers(operation)
    maker = chosen[number % len(chosen)]
    return maker(Draw(f"{operation} {seed} {number}", scale))


def difference(got: Tensor, want: Tensor, tolerance: float | None) -> str | None:
    """How an output differs from what it must be, or None."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{tuple(got.shape)} in the place of {want.dtype}{tuple(want.shape)}"
    same = (got == want) | ((got != got) & (want != want))
    if tolerance is not None:
        same |= (got.double() - want.double()).abs() <= tolerance
    if bool(same.all()):
        return None
    place = tuple(int(i) for i in (~same).nonzero()[0])
    return f"{int((~same).sum())} of {same.numel()} values, the first at {place}: {got[place]} for {want[place]}"


def run_case(case: Case, seed: int, of: Kernels | None = None) -> str | None:
    """What is wrong with a case in the order of threads that `seed` draws, or None."""
    chosen = of or kernels(case.device.architecture)
    try:
        outputs = chosen.call(case.operation, *case.arguments, device=case.device, seed=seed, **case.options)
    except Finding as finding:
        return str(finding)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    for number, (got, (want, tolerance)) in enumerate(zip(outputs, case.expected(), strict=False)):
        if (wrong := difference(got, want, tolerance)) is not None:
            return f"output {number} differs: {wrong}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200, help="of each operation")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies how large cases may become")
    parser.add_argument("--only", nargs="*", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument("--output", type=Path, help="a JSON file of the counts and findings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    paths: collections.Counter[str] = collections.Counter()
    findings = []
    for operation in options.only:
        began = time.monotonic()
        for number in range(options.first, options.first + options.cases):
            case = draw_case(operation, options.seed, number, options.scale)
            paths[f"{case.operation}: {case.path}, sm_{case.device.architecture}"] += 1
            if (wrong := run_case(case, number)) is not None:
                again = f"--only {operation} --seed {options.seed} --scale {options.scale} --first {number} --cases 1"
                findings.append(f"{case}\n  {wrong}\n  again: python -m tests.csrc.emulated {again}")
                print(findings[-1], file=sys.stderr, flush=True)
        print(f"{operation}: {options.cases} cases in {time.monotonic() - began:.0f} s", flush=True)
    launches: collections.Counter[str] = collections.Counter()
    for built in BUILT.values():
        launches.update(built.launches())
    for title, counts in (("cases of a path", paths), ("launches of a kernel", launches)):
        print(f"\n{title}:")
        for name, count in sorted(counts.items()):
            print(f"{count:8} {name}")
    print(f"\n{paths.total()} cases, {launches.total()} launches, {len(findings)} findings")
    if options.output:
        outcomes = {"kernels": len(launches), "paths": len(paths), "launches": launches.total()}
        record = {"what": "tests.csrc.emulated", "seed": options.seed, "cases": paths.total(), "outcomes": outcomes}
        record |= {"seconds": time.monotonic() - started, "failed": len(findings)}
        record["failures"] = [{"why": finding} for finding in findings]
        files.write_json(options.output, record | {"paths": paths, "launches": launches})
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
