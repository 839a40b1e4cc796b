"""Every package that is imported is declared in pyproject.toml."""

import ast
import re
import sys
from pathlib import Path

import pytest

from pointpeft.compat import MODULES

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 reads no TOML itself")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Import names that differ from the names of their packages.
PACKAGES = {
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
    "h11": "uvicorn",  # its requirement
    "starlette": "fastapi",  # its requirement
    "pluggy": "pytest",  # its requirement
    "distutils": "setuptools",
    "triton": "torch",  # comes with torch where there is a GPU
    "_pytest": "pytest",
    "websocket": "websocket-client",
}
# Imported by functions of other files where the extra is there.
FILES_OF_EXTRAS = {"pointpeft/methods/reparameterized/_peft_layers.py", "pointpeft/view/service_connections.py"}
# Names that compat answers for; modules of published repositories; the engine of the guided fuzzer, which looks for it.
OWN = {"pointpeft", "tests", "benchmarks", "setup"} | {path.stem for path in (ROOT / "docs").glob("*.py")}
COMPAT = {name.partition(".")[0] for name in MODULES}
LOOKED_FOR = {"atheris", "models", "utils", "pages"}


def normalized(name):
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", name)[0]).lower()


def declared(*extras):
    project = PROJECT["project"]
    lists = [project["dependencies"], PROJECT["build-system"]["requires"]]
    lists += [requirements for name, requirements in project["optional-dependencies"].items() if name in extras]
    return {normalized(requirement) for entries in lists for requirement in entries}


def imports(path):
    """(package, whether it is imported at the top of the file) of each import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            package = name.split(".")[0]
            if package not in sys.stdlib_module_names | OWN:
                yield normalized(PACKAGES.get(package, package)), id(node) in top


def missing(folder, known, only_top=False):
    return {
        f"{path.relative_to(ROOT)}: {package}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for package, at_top in imports(path)
        if (at_top or not only_top) and package not in known
    }


def all_extras():
    return declared(*PROJECT["project"]["optional-dependencies"])


def test_what_the_package_imports_is_declared():
    assert not missing("pointpeft", all_extras() | set(map(normalized, COMPAT)))


@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_what_tests_and_benchmarks_import_is_declared(folder):
    assert not missing(folder, all_extras() | set(map(normalized, COMPAT | LOOKED_FOR)))


def test_extras_are_imported_late_but_by_their_own_files():
    known = declared() | set(map(normalized, COMPAT))
    assert {line.split(":")[0] for line in missing("pointpeft", known, only_top=True)} == FILES_OF_EXTRAS


def test_the_lowest_releases_are_those_that_are_declared():
    lowest = {re.sub(r"(>=[0-9.]+).*", r"\1", requirement) for requirement in PROJECT["project"]["dependencies"]}
    lines = (ROOT / "tests" / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()

    def release(text):
        name, version = re.split("[>=]=", text)
        return name, (*map(int, version.split(".")), 0, 0)[:3]

    assert {release(line) for line in lines} == {release(requirement) for requirement in lowest}
