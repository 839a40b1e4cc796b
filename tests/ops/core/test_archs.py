"""Which GPUs the compiled CUDA code runs on, and what is said of the others."""

import re
from pathlib import Path

import pytest
import torch

from pointpeft.cli.commands import info
from pointpeft.ops.core import library
from pointpeft.ops.core.archs import has_code_for
from pointpeft.ops.core.library import LibraryStatus

ROOT = Path(library.__file__).parents[3]


@pytest.mark.parametrize(
    ("archs", "runs", "does_not"),
    [
        ("8.0", [(8, 0), (8, 6), (8, 9)], [(7, 5), (7, 0), (9, 0), (10, 0), (12, 0)]),
        ("8.6", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("9.0+PTX", [(9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1), (13, 0)], [(8, 9), (7, 5)]),
        ("12.0+PTX", [(12, 0), (12, 1), (13, 0)], [(11, 0), (10, 3), (9, 0)]),
        ("8.0;9.0;10.0;12.0+PTX", [(8, 9), (9, 0), (10, 3), (12, 1)], [(7, 0), (7, 5), (11, 0)]),
        ("9.0a", [(9, 0)], [(10, 0), (8, 0)]),
        ("10.3a+PTX", [(10, 3)], [(10, 0), (11, 0), (12, 0)]),
        ("10.0f+PTX", [(10, 0), (10, 3)], [(11, 0), (12, 0)]),
        ("7.5 8.0", [(7, 5), (8, 0)], [(7, 2), (9, 0)]),
        ("", [], [(8, 0), (9, 0)]),
    ],
)
def test_code_runs_on_its_major_version_and_ptx_on_all_that_follow(archs, runs, does_not):
    assert [c for c in runs + does_not if has_code_for(archs, c)] == runs


def test_the_default_targets_serve_every_gpu_that_torch_serves():
    archs = re.search(r'^DEFAULT_ARCHS = "(.*)"$', (ROOT / "setup.py").read_text(), re.MULTILINE)[1]
    known = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1), (13, 0)]
    assert [c for c in known if has_code_for(archs, c)] == known


def test_a_target_that_is_no_version_is_named():
    with pytest.raises(ValueError, match=r"archs must hold versions .* got 'sm_90'"):
        has_code_for("8.0;sm_90", (9, 0))


@pytest.fixture
def gpu(monkeypatch):
    """Stands for a GPU with a library of CUDA code for sm_80 alone; gives the function that sets its capability."""
    monkeypatch.setitem(library.LIBRARIES, "cuda", LibraryStatus(True, "loaded", ""))
    monkeypatch.setattr(library, "_gpus_with_code", {})
    monkeypatch.setattr(library, "_cuda_archs", lambda: "8.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")

    def set_capability(*capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

    return set_capability


def test_the_reference_answers_on_a_gpu_without_code(gpu):
    gpu(7, 5)
    assert library.backend("cuda") == library.backend("cuda:0") == "reference"
    part = library.status_of("cuda")
    assert not part.live
    assert "has code for 8.0" in part.reason
    assert "Tesla T4 of compute capability 7.5" in part.reason
    assert part.remedy == "install again with TORCH_CUDA_ARCH_LIST=7.5"
    facts = info.collect()
    assert facts["operations_answer_with"]["cuda"] == "reference"
    assert not facts["backends"]["cuda"]["live"]


def test_kernels_answer_on_a_gpu_with_code(gpu):
    gpu(8, 9)
    assert library.backend("cuda") == "compiled"
    assert library.status_of("cuda").live
    assert info.collect()["backends"]["cuda"]["live"]


def test_the_question_does_not_break_a_graph():
    def answer(x):
        return x + 1 if library._has_code_for_gpu(x.dim()) else x - 1

    x = torch.zeros(2)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(answer, backend="eager", fullgraph=True)(x), answer(x))
