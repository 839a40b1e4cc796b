"""The night runs every program of this folder, and the page of its counts is as its program writes it."""

from pathlib import Path

import pytest

from tests.hardening import reliability

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
NIGHTLY = (ROOT / ".ci" / "nightly").read_text(encoding="utf-8")
HELPERS = {"service"}  # started by a test
PROGRAMS = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts)
    for path in FOLDER.rglob("*.py")
    if "\nif __name__ ==" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name not in HELPERS])
def test_the_night_runs_every_program(program):
    family, _, name = program.rpartition(".")
    in_loop = (
        f"tests.hardening.{family}.$fuzzer" in NIGHTLY and f" {name}" in NIGHTLY.split("for fuzzer in")[1].split(";")[0]
    )
    assert f"tests.hardening.{program}" in NIGHTLY or in_loop


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name not in {*HELPERS, "reliability"}])
def test_the_page_says_how_to_run_it(program):
    assert f"python -m tests.hardening.{program} " in reliability.COMMANDS


def test_the_page_is_the_generated_one():
    page = (FOLDER / "RELIABILITY.md").read_text(encoding="utf-8")
    assert page.startswith(reliability.HEAD)
    assert reliability.COMMANDS in page
