import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import pointpeft
import pointpeft.methods
import pointpeft.ops

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = [
    pytest.param(getattr(module, name), id=f"{module.__name__}.{name}")
    for module in (pointpeft, pointpeft.ops, pointpeft.methods)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
]


@pytest.mark.parametrize("function", PUBLIC)
def test_every_public_function_says_its_types(function):
    signature = inspect.signature(function)
    untyped = [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
    assert not untyped
    assert signature.return_annotation is not inspect.Signature.empty


def test_the_types_agree(tmp_path):
    """What the hook of pre-commit asks, in a few seconds."""
    if importlib.util.find_spec("pyrefly") is None:
        pytest.skip("pyrefly is not installed: pip install 'pointpeft[dev]'")
    command = [sys.executable, "-m", "pyrefly", "check", "--python-interpreter-path", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
