"""What an import gets in a checkout that was never built, or whose sources have changed since."""

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

import pointpeft
from pointpeft import _sources
from pointpeft.ops.core import library as _library

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(pointpeft.__file__).parent
pytestmark = pytest.mark.skipif(not _library.compiled(), reason="the CPU library was not built")
UNBUILT = shutil.ignore_patterns("*.so", "__pycache__")
WHERE = "import pointpeft, pointpeft.ops; print(pointpeft.__file__, pointpeft.ops.backend())"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A fresh virtual environment that shares the packages of this one, without pointpeft."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    shared = {str(Path(torch.__file__).parent.parent), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "shared.pth").write_text("\n".join(sorted(shared)))
    return folder / "bin" / "python", packages


@pytest.fixture
def installed(environment):
    """The environment with the compiled package in it, as a wheel would put it there."""
    package = environment[1] / "pointpeft"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    yield package
    shutil.rmtree(package)


@pytest.fixture
def checkout(tmp_path):
    """A checkout without libraries."""
    folder = tmp_path / "checkout"
    for name in ("pointpeft", "csrc", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=UNBUILT)
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def run_python(python, folder, *arguments, **settings):
    hidden = ("PYTHONPATH", "POINTPEFT_BACKEND", "PYTEST_ADDOPTS", "PYTHONWARNINGS")
    env = {name: value for name, value in os.environ.items() if name not in hidden} | settings
    command = [str(python), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_an_installed_package_wins_over_a_checkout_that_was_never_built(environment, installed, checkout):
    done = run_python(environment[0], checkout, "-c", WHERE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(installed / "__init__.py"), "compiled"]
    said = f"the checkout {checkout} has no compiled operations and shadows the installed pointpeft, so {installed} is"
    assert said in done.stderr
    assert f"type `pip install -e .` in {checkout}" in done.stderr


def test_the_command_line_is_that_of_the_installed_package(environment, installed, checkout):
    done = run_python(environment[0], checkout, "-m", "pointpeft", "info", "--json")
    assert done.returncode == 0, done.stderr
    assert '"cpu": "compiled"' in done.stdout
    assert str(installed) in done.stderr


TESTS = ("tests/ops/points/test_gather.py", "-k", "cpu and float32")
ROWS = ("benchmarks/points/bench_gather.py", "-k", "cpu and pointpeft", "--benchmark-disable")


@pytest.mark.parametrize("command", [TESTS, ROWS], ids=["tests", "benchmarks"])
def test_pytest_takes_the_installed_package(environment, installed, checkout, command):
    # A row of ours fails by itself where nothing is compiled.
    done = run_python(
        environment[0], checkout, "-c", "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))", *command
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"so {installed} is imported instead" in done.stdout + done.stderr


def test_alone_a_checkout_that_was_never_built_says_what_to_type(environment, checkout):
    code = "import torch; from pointpeft.ops import gather; gather(torch.rand(1, 4, 2), torch.zeros(1, 3).long())"
    done = run_python(environment[0], checkout, "-c", code)
    assert done.returncode == 0, done.stderr
    library = checkout / "pointpeft" / "_cpu.so"
    said = f"pointpeft runs plain PyTorch on cpu: {library} was not built; type `pip install -e .` in {checkout}"
    assert done.stderr.count(said) == 1


def test_the_reference_can_be_forced(environment, installed, checkout):
    done = run_python(environment[0], checkout, "-c", WHERE, POINTPEFT_BACKEND="reference")
    assert done.stdout.split() == [str(checkout / "pointpeft" / "__init__.py"), "reference"]


def test_a_built_checkout_is_imported_and_libraries_of_other_sources_are_named(environment, installed, checkout):
    for library in PACKAGE.glob("_c*.so"):
        shutil.copy(library, checkout / "pointpeft")
    done = run_python(environment[0], checkout, "-c", WHERE)
    assert done.stdout.split() == [str(checkout / "pointpeft" / "__init__.py"), "compiled"]
    assert not done.stderr
    with open(checkout / "csrc" / "points" / "gather" / "gather.cpp", "a") as file:
        file.write("// changed\n")
    done = run_python(environment[0], checkout, "-c", WHERE)
    library = checkout / "pointpeft" / "_cpu.so"
    assert f"{library} was compiled from other sources than those of {checkout / 'csrc'}" in done.stderr
    assert f"type `pip install -e .` in {checkout}" in done.stderr


def test_the_fingerprint_is_of_names_and_contents(tmp_path):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    before = _sources.fingerprint(tmp_path / "csrc")
    assert before == _sources.fingerprint(ROOT / "csrc")
    (tmp_path / "csrc" / "notes.txt").touch()
    assert _sources.fingerprint(tmp_path / "csrc") == before
    (tmp_path / "csrc" / "points" / "gather" / "gather.cpp").rename(tmp_path / "csrc" / "points" / "moved.cpp")
    assert _sources.fingerprint(tmp_path / "csrc") != before
