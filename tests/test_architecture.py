"""The floor plan of the package: imports run downwards and in no circle, and no folder or file outgrows its reader."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pointpeft"
# Each room may import those of the lines below its own, and itself.
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
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
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


def room(module):
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


def test_no_circle_between_files():
    assert circles() == []


def test_every_room_has_its_floor():
    assert {room(name) for name in MODULES} - {""} == set(FLOOR)


@pytest.mark.parametrize("name", [name for name in MODULES if room(name)])
def test_no_import_points_upwards(name):
    here = FLOOR[room(name)]
    above = [other for other in GRAPH[name] if room(other) and room(other) != room(name) and FLOOR[room(other)] <= here]
    assert above == []


def test_everything_public_is_found_by_tab():
    import pointpeft

    listed = set(dir(pointpeft))
    assert {"ops", "methods", "backbones", "data", "create_model", "finetune", "evaluate", "predict"} <= listed
    assert {"load_dataset", "load_adapter"} <= listed
    for name in listed:
        assert getattr(pointpeft, name) is not None
    assert listed - {"__version__"} >= {name for name in FLOOR if name not in ("cli", "__main__") and name[0] != "_"}
