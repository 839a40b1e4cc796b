"""The floor plan of the package: imports run downwards and in no circle, and no folder or file outgrows its reader."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pointpeft"
# Each sub-package may import those of the lines below its own, and itself.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("view", "recipes"),
    ("runs",),
    ("checkpoints",),
    ("create",),
    ("methods", "tasks"),
    ("training",),
    ("model",),
    ("heads",),
    ("backbones", "compat"),
    ("ops",),
    ("weights", "data"),
    ("drawing", "files", "escapes", "locks", "progress", "_sources"),
)
MAX_FILES = 15  # of a folder, beside its __init__.py
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(path):
    """Names of the package's modules that a file imports anywhere, also inside of functions; but for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pointpeft":
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "pointpeft")


GRAPH = {name: set(imported(path)) - {name} for name, path in MODULES.items()}


def package_of(module):
    return module.split(".")[1] if "." in module else ""


def circles():
    """Modules from which a path of imports leads back to themselves."""
    reached = {}
    for start in GRAPH:
        seen, waiting = set(), list(GRAPH[start])
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += GRAPH.get(module, ())
        reached[start] = seen
    return sorted(name for name, seen in reached.items() if name in seen)


def test_there_are_modules_and_imports():
    assert len(GRAPH) > 150
    assert "pointpeft.ops.core.library" in GRAPH["pointpeft.ops"]


def test_no_folder_of_the_package_or_its_kernels_has_more_than_15_files():
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    counts = Counter(path.parent for path in [*files, *(ROOT / "csrc").rglob("*.*")])
    full = {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > MAX_FILES}
    assert full == {}


def test_no_circle_between_files():
    assert circles() == []


def test_every_package_has_its_floor():
    assert {package_of(name) for name in MODULES} - {""} == set(FLOOR)


@pytest.mark.parametrize("name", [name for name in MODULES if package_of(name)])
def test_no_import_points_upwards(name):
    own = package_of(name)
    others = [other for other in GRAPH[name] if package_of(other) not in ("", own)]
    assert [other for other in others if FLOOR[package_of(other)] <= FLOOR[own]] == []


def test_everything_public_is_found_by_tab():
    import pointpeft

    listed = set(dir(pointpeft))
    assert {"ops", "methods", "backbones", "data", "create_model", "finetune", "evaluate", "predict"} <= listed
    assert {"load_dataset", "load_adapter"} <= listed
    for name in listed:
        assert getattr(pointpeft, name) is not None
    assert listed - {"__version__"} >= {name for name in FLOOR if name not in ("cli", "__main__") and name[0] != "_"}
