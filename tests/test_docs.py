"""The parts of pages that are written from the code and from files of results."""

import re
import sys
from pathlib import Path

import pytest

from pointpeft.methods import method_class, method_names

ROOT = Path(__file__).resolve().parent.parent
NOT_MEASURED = {"gaprompt", "gft", "most", "ppt"}  # by the comparison of all methods, which is older than they are


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import pages
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return pages


def test_every_method_has_a_section_with_its_options(pages, monkeypatch):
    monkeypatch.setattr(pages, "backbones", lambda: ["point_mae"])
    text = pages.methods()
    assert sorted(re.findall(r"^\.\. _method-(\w+):", text, re.M)) == method_names()
    for name in method_names():
        section = text.split(f".. _method-{name}:")[1].split(".. _method-")[0]
        assert all(f"``{option}``" in section for option, _, _ in pages.options(method_class(name)))
    assert "1,087,771" in text.split(".. _method-dapt:")[1].split(".. _method-")[0]
    assert "85.08" in text.split(".. _method-dapt:")[1].split(".. _method-")[0]


@pytest.mark.parametrize(
    ("name", "equation"),
    [
        ("dapt", "a = s ⊙ W_up Dropout(GELU(W_down u))"),
        ("lora", "ΔW = (α / r) B A"),
        ("houlsby", "z becomes z + A(z)"),
        ("ia3", "k ← l_k ⊙ k"),
        ("ssf", "y = γ ⊙ x + β"),
    ],
)
def test_a_method_has_its_equations(pages, name, equation):
    assert any(equation in found for found in pages.equations(method_class(name)))


def test_options_have_defaults_and_meanings(pages):
    options = {name: (default, meaning) for name, default, meaning in pages.options(method_class("dora"))}
    assert options["rank"] == ("8", "r.")
    assert options["targets"][1].startswith("Which linear maps")


def test_results_name_methods_that_there_are(pages):
    for name in ("methods.csv", "published.csv"):
        assert {row["method"].partition(":")[0] for row in pages.read_rows(name)} <= set(method_names())
    measured = {row["method"].partition(":")[0] for row in pages.read_rows("methods.csv")}
    assert set(method_names()) - measured == NOT_MEASURED
    text = (ROOT / "docs" / "results.rst").read_text(encoding="utf-8")
    assert all(f"``{name}``" in text for name in NOT_MEASURED)


def test_markdown_tables_become_list_tables(pages):
    text = pages.from_markdown("| a | b |\n|---|---:|\n| `x_y` | 1 |")
    assert text.splitlines()[-2:] == ["   * - ``x_y``", "     - 1"]


def test_files_of_benchmarks_say_where_they_come_from(pages):
    for path in (ROOT / "benchmarks" / "results").glob("cpu*.json"):
        assert f"``{path.name}``" in pages.provenance()


def test_the_benchmarks_hold_every_overview(pages):
    report = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    assert pages.benchmarks().count("\nOverview\n~~~") == report.count("\n### Overview\n")
