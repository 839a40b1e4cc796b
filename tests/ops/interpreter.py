"""Whether Triton's interpreter runs here: that of Triton 3.6 fails with numpy 2.4 and later."""

from functools import cache
from importlib.metadata import version

import torch

from pointpeft.ops.core import triton_launch


def _count(out, N):
    for i in range(0, N):
        tl.store(out + i, i)  # noqa: F821  the name is given when the kernel is jitted


@cache
def fault() -> str:
    """Why kernels cannot run in the interpreter; nothing where they can."""
    out = torch.zeros(3)
    try:
        triton_launch.kernel([({}, 1, 1)], key=[])(_count).launch(lambda meta: (1,), out, 3)
    except Exception as error:  # the interpreter wraps errors of numpy in its own
        return f"the interpreter of Triton {version('triton')} fails with numpy {version('numpy')}: {error}"
    assert out.tolist() == [0, 1, 2]
    return ""
