"""Where Triton kernels run in tests."""

import pytest
import torch

from tests.ops.interpreter import fault


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.triton),
        pytest.param("cuda", marks=[pytest.mark.triton, pytest.mark.gpu]),
    ]
)
def triton_device(request):
    """The CUDA device, for kernels that Triton compiles; where there is none the CPU, for Triton's interpreter."""
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("Triton compiles here, and compiled kernels take no CPU tensors")
    if request.param == "cpu" and fault():
        pytest.skip(fault())
    return torch.device(request.param)
