import pytest
import torch

from pointpeft.runs.config import FinetuneConfig
from pointpeft.runs.finetune import finetune
from pointpeft.training.out_of_memory import explain_out_of_memory
from tests.clouds import TINY, TINY_MODEL


def test_a_run_out_of_memory_names_batch_size_and_method(clouds_folder, tmp_path, monkeypatch):
    def full(*ignored):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("accelerate.Accelerator.backward", full)
    options = {"data": str(clouds_folder), "set": TINY_MODEL, "checkpoint": "none", "device": "cpu", "quiet": True}
    config = FinetuneConfig(**options, **{**TINY, "batch_size": 6}, probe=False, output=tmp_path / "run")
    with pytest.raises(
        MemoryError,
        match=r"out of memory with batch size 6 and method dapt on point_mae_tiny: --batch-size 3 .*Tried to allocate",
    ):
        finetune(config)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_every_out_of_memory_error_is_explained(error):
    with pytest.raises(MemoryError, match=r"out of memory with batch size 1 and method x: less"):
        with explain_out_of_memory("method x", 1, "less"):
            raise error


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match=r"^other$"), explain_out_of_memory("method x", 1, "less"):
        raise RuntimeError("other")
