"""Runs compute-sanitizer over every path of every kernel, and counts what it reports.

python -m benchmarks.gpu.sanitize memcheck --output memcheck.json --seconds 60
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu import files
from benchmarks.gpu.runner import REFUSED, ROOT

TOOLS = ("memcheck", "racecheck", "synccheck")
MOST_REPORTS = 20  # kept in full
MARGIN = 25.0  # seconds of a step that the sanitizer takes to begin and to sum up
LAST = 4.0  # seconds before its limit, at which a step ends the sanitizer
# What says that the tool cannot work on this machine, and nothing of the kernels.
CANNOT_WORK = ("not supported", "Unable to", "insufficient permissions", "Target application terminated before first")


def find_sanitizer() -> str | None:
    """The program, or None."""
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


def read_report(text: str) -> dict[str, Any]:
    """What the output of a run says.

    Args:
        text: Lines of the sanitizer begin with `=========`; the others are the names of the paths, as they begin.

    Returns:
        `errors`, as the sanitizer sums them up, None where it did not come to that; `reports`, the first of each, with
        the path that ran; `refused`, why the sanitizer cannot work here, or an empty string.
    """
    errors, reports, path, refused = None, [], "", ""
    for line in text.splitlines():
        if not line.startswith("========="):
            path = line.strip() or path
            continue
        said = line.lstrip("= ").rstrip()
        summed = re.match(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+)", said)
        if summed:
            errors = int(summed[1])
        elif said.startswith(("Error:", "Internal Sanitizer Error")) and any(words in said for words in CANNOT_WORK):
            refused = refused or said
        elif re.match(r"(Invalid|Error|Race|Barrier|Divergent|Warning|Program hit|Uninitialized|Leaked)", said):
            reports.append({"path": path, "report": said})
    return {"errors": errors, "reports": reports[:MOST_REPORTS], "reported": len(reports), "refused": refused}


def run_within(command: list[str], seconds: float) -> tuple[int | None, str]:
    """The exit code and the output of a program; None for the code where it was ended after so many seconds."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
        output.seek(0)
        return code, output.read()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120.0)
    given = parser.parse_args()
    program = find_sanitizer()
    if program is None:
        files.write(given.output, {"refused": "no compute-sanitizer on PATH or in /usr/local/cuda/bin"})
        sys.exit(REFUSED)
    paths = given.output.with_suffix(".paths.json")
    command = [program, f"--tool={given.tool}", "--error-exitcode=9", "--target-processes=all", sys.executable, "-m"]
    command += ["benchmarks.gpu.paths", "--output", str(paths), "--seconds", str(max(1.0, given.seconds - MARGIN))]
    code, text = run_within(command, max(1.0, given.seconds - LAST))
    print(text)
    result = {"exit": code, **read_report(text), **(files.read(paths) or {"paths": []})}
    files.write(given.output, result)
    if result["refused"] and not result["paths"]:
        sys.exit(REFUSED)
    if code is None:
        sys.exit(f"{given.tool} did not end in time: {len(result['paths'])} paths were run")
    sys.exit(0 if code == 0 and result["errors"] == 0 else 1)


if __name__ == "__main__":
    main()
