import subprocess
import sys
import textwrap

import pytest

import pointpeft.compat
from pointpeft.compat import MODULES, install, is_installed, is_ours

pytestmark = pytest.mark.usefixtures("bare")


def package(folder, name, **files):
    (folder / name).mkdir(parents=True)
    for stem, text in ({"__init__": ""} | files).items():
        (folder / name / f"{stem}.py").write_text(textwrap.dedent(text))


def test_every_name_is_answered_by_ours():
    assert install() == list(MODULES)
    for name, ours in MODULES.items():
        assert __import__(name, fromlist=["_"]).__name__ == ours
        assert is_ours(name)
    from pointnet2_ops import pointnet2_modules, pointnet2_utils  # noqa: F401

    assert install() == list(MODULES)  # again is no harm


def test_single_names_can_be_chosen():
    assert install("knn_cuda", "pytorch3d.ops") == ["knn_cuda", "pytorch3d.ops"]
    assert "chamfer_dist" not in sys.modules
    with pytest.raises(ValueError, match=r"names must be among .* got \['pointops_cuda'\]"):
        install("pointops_cuda", "knn_cuda")


def test_an_installed_package_stays_unless_it_is_to_be_replaced(tmp_path, monkeypatch):
    package(tmp_path, "knn_cuda", __init__="theirs = True")
    monkeypatch.syspath_prepend(tmp_path)
    assert is_installed("knn_cuda")
    assert "knn_cuda" not in install()
    import knn_cuda

    assert knn_cuda.theirs
    assert "knn_cuda" in install(replace=True)
    assert is_ours("knn_cuda")


def test_a_package_whose_build_is_broken_can_be_replaced(tmp_path, monkeypatch):
    broken = 'raise ImportError("no kernel image")'
    package(tmp_path, "pointnet2_ops", __init__="from pointnet2_ops import pointnet2_utils", pointnet2_utils=broken)
    monkeypatch.syspath_prepend(tmp_path)
    assert "pointnet2_ops.pointnet2_utils" not in install()
    install(replace=True)
    from pointnet2_ops import pointnet2_utils

    assert pointnet2_utils.__name__ == "pointpeft.compat.pointnet2_utils"


def test_the_other_modules_of_a_replaced_package_stay_reachable(tmp_path, monkeypatch):
    package(tmp_path, "pytorch3d", structures="size = 3", ops="import not_built_here")
    monkeypatch.syspath_prepend(tmp_path)
    install(replace=True)
    import pytorch3d.ops
    import pytorch3d.structures

    assert pytorch3d.structures.size == 3
    assert pytorch3d.ops.knn_points is pointpeft.compat.pytorch3d_ops.knn_points


def test_the_extensions_folder_of_a_repository_keeps_its_other_modules(tmp_path, monkeypatch):
    package(tmp_path, "extensions", gridding="cells = 8")
    package(tmp_path / "extensions", "chamfer_dist", __init__="import chamfer_needs_a_build")
    monkeypatch.syspath_prepend(tmp_path)
    install()
    from extensions.chamfer_dist import ChamferDistanceL1
    from extensions.gridding import cells

    assert cells == 8
    assert ChamferDistanceL1.__module__ == "pointpeft.compat.chamfer_dist"


def test_the_earth_movers_distance_has_the_names_of_three_repositories():
    install()
    import emd_module
    from emd import emdModule
    from extensions.emd import emd
    from extensions.emd import emd_module as module

    assert emd_module.emdModule is emdModule is module.emdModule
    assert emd.__name__ == "earth_mover_distance"


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "pointpeft.compat", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_a_script_runs_as_if_by_python_with_the_modules_in_place(tmp_path):
    (tmp_path / "beside.py").write_text("value = 5")
    (tmp_path / "train.py").write_text(
        textwrap.dedent("""
        import sys, torch
        import beside
        from pointnet2_ops import pointnet2_utils
        from knn_cuda import KNN
        xyz = torch.rand(1, 10, 3)
        print(pointnet2_utils.furthest_point_sample(xyz, 4).shape, KNN(2, True)(xyz, xyz)[1].shape)
        print(__name__, beside.value, sys.argv[1:])
        """)
    )
    said = run(tmp_path / "train.py", "--epochs", "3")
    assert said.returncode == 0, said.stderr
    shapes, rest = said.stdout.splitlines()
    assert shapes == "torch.Size([1, 4]) torch.Size([1, 10, 2])"
    assert rest == "__main__ 5 ['--epochs', '3']"


def test_the_names_are_listed():
    said = run("--list")
    assert said.returncode == 0, said.stderr
    assert [line.split()[0] for line in said.stdout.splitlines()] == list(MODULES)


@pytest.fixture
def entry(monkeypatch):
    """The command, in this process, which keeps its way to CUDA: that it is taken from scripts is for good."""
    from pointpeft.compat import __main__ as entry

    monkeypatch.setattr(entry, "stay_on_cpu", lambda: None)
    return entry


@pytest.mark.parametrize("arguments", [[], ["--replace"], ["--unknown"], ["no such.py"]])
def test_a_wrong_call_says_what_is_wrong(arguments, entry, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compat", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match=r"there is no file no such\.py" if "no such.py" in arguments else "usage: "):
        entry.main()


def test_a_module_runs_too(tmp_path, entry, monkeypatch, capsys):
    package(tmp_path, "tool", main="import sys, knn_cuda\nprint(knn_cuda.KNN(2).k, sys.argv[1:])")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compat", "-m", "tool.main", "-x"])
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    entry.main()
    assert capsys.readouterr().out == "2 ['-x']\n"
