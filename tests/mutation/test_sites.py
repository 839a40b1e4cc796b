"""What is changed, and that nothing else is."""

import ast

import pytest

from tests.mutation import sites
from tests.mutation.trial import tests_of
from tests.mutation.verdicts import VERDICTS

PYTHON = '''"""A + b."""
def f(a: int, *, b=2) -> "c < d":
    # a + b
    γ = (a + 1) * b if not (a < b or b == 0) else max(a, b)
    return f"{a + b}", γ
'''
CPP = """// a + b
#include <x>
template <int N = 3>
int f(const int* a, int b) {
  const char* text = "a < b";  /* 1 +
  1 */ if (!(a[0] < b) && b >= 2.0f) return std::min(b, 7) * a[b + 1];
}
"""


@pytest.mark.parametrize(
    ("name", "source", "changes"),
    [
        ("a.py", PYTHON, "2 3 + - 1 2 * + not  < <= or and == != 0 1 max min"),
        ("a.cpp", CPP, "!  0 1 < <= && || >= > min max 7 8 * + + - 1 2"),
    ],
)
def test_every_site_is_found_and_changed_alone(name, source, changes, tmp_path, monkeypatch):
    monkeypatch.setattr(sites, "ROOT", tmp_path)
    (tmp_path / name).write_text(source)
    found = sites.python_sites(name) if name.endswith(".py") else sites.cpp_sites(name)
    assert " ".join(f"{site.old.strip()} {site.new}" for site in found) == changes
    for site in found:
        line = source.splitlines()[site.line - 1]
        put = line[: site.column] + site.new + line[site.column + len(site.old) :]
        assert site.put(source) == source.replace(line, put)
        assert site.mutated != site.original


def test_there_are_sites_in_every_file_and_they_parse():
    assert {site.file for site in sites.sites("cpp")} > {"csrc/knn.cpp", "csrc/knn_tree.h", "csrc/rows.h"}
    assert "csrc/furthest_point_plan.h" not in sites.files("cpp")  # of CUDA alone
    for file in sites.files("python"):
        source = (sites.ROOT / file).read_text(encoding="utf-8")
        for site in sites.python_sites(file)[::7]:
            ast.parse(site.put(source))


def test_a_file_is_tried_by_the_tests_of_its_operations():
    assert tests_of("pointpeft/ops/knn.py") == ("tests/ops/test_knn.py",)
    assert tests_of("csrc/knn_tree.h") == ("tests/ops/test_knn.py",)
    assert "tests/ops/test_dynamic_adapter.py" in tests_of("pointpeft/ops/_adapter.py")


def test_verdicts_are_of_code_that_is_there():
    known = {(s.file, s.original, s.mutated) for language in ("python", "cpp") for s in sites.sites(language)}
    assert set(VERDICTS) <= known
