"""Every vector level gives the same answer, and a system that denies the tiles of AMX takes nothing but speed."""

import ctypes
import platform
import struct
import subprocess
import sys

import pytest
import torch

from pointpeft import ops
from tests.conftest import CPU_LEVELS

# Indices and what is computed from them are equal to the bit. Sums of products differ in their order: relative to the
# largest value, by float32's 6e-8 times the few dozen roundings that a sum of these lengths meets.
TOLERANCE = 2e-6


def answers():
    """Exact answers, and those that are sums."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 1037, 3, generator=generator)
    y = torch.randn(3, 211, 3, generator=generator)
    features = torch.randn(3, 1037, 37, generator=generator)
    distance, nearest = ops.knn(y, x, 9)
    wide, near = ops.knn(features[:, :64].contiguous(), features, 5)
    exact = {
        "furthest_point_sample": ops.furthest_point_sample(x, 129),
        "knn": nearest,
        "knn of features": near,
        "ball_query": ops.ball_query(y, x, 0.6, 16),
        "gather": ops.gather(features, nearest),
    }
    exact = {name: value[-1] if isinstance(value, tuple) else value for name, value in exact.items()}
    sums = {"distances": distance, "distances of features": wide}
    layer = torch.nn.Linear(96, 64).requires_grad_(False)
    with torch.no_grad():
        weights = torch.randn(64, 96, generator=generator), torch.randn(64, generator=generator)
        layer.weight.copy_(weights[0])
        layer.bias.copy_(weights[1])
        tokens = torch.randn(5, 33, 96, generator=generator)
        sums["frozen_linear"] = ops.frozen_linear(tokens, layer.weight, layer.bias)
    return exact, sums


def test_all_vector_levels_give_the_same(monkeypatch):
    from pointpeft import _C

    levels = CPU_LEVELS[: CPU_LEVELS.index(_C.supported_cpu_level()) + 1]
    monkeypatch.setenv("POINTPEFT_CPU_LEVEL", levels[0])
    exact, sums = answers()
    for level in levels[1:]:
        monkeypatch.setenv("POINTPEFT_CPU_LEVEL", level)
        found, added = answers()
        for name, value in exact.items():
            assert torch.equal(found[name], value), (level, name)
        for name, value in sums.items():
            assert (added[name] - value).abs().max() <= TOLERANCE * value.abs().max(), (level, name)


def deny_amx():
    """Makes the kernel refuse arch_prctl(ARCH_REQ_XCOMP_PERM), by a filter on system calls."""
    arch_prctl, request_permission, eperm = 158, 0x1023, 1
    instructions = [
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 3, arch_prctl),
        (0x20, 0, 0, 16),  # its first argument
        (0x15, 0, 1, request_permission),
        (0x06, 0, 0, 0x00050000 | eperm),  # an error
        (0x06, 0, 0, 0x7FFF0000),  # let it pass
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in instructions))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, mode_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(seccomp, mode_filter, header, 0, 0):
        raise OSError(ctypes.get_errno(), "no filter on system calls")


DENIED = """
from tests.hardening.test_levels import answers, deny_amx
deny_amx()
import torch
from pointpeft import _C
assert _C.supported_cpu_level() != "amx", _C.supported_cpu_level()
torch.save(answers(), {path!r})
"""


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="AMX is of x86-64")
def test_a_system_that_denies_amx_takes_only_speed(tmp_path):
    code = DENIED.format(path=str(tmp_path / "answers.pt"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    exact, sums = torch.load(tmp_path / "answers.pt")
    here, added = answers()
    for name, value in exact.items():
        assert torch.equal(here[name], value), name
    for name, value in sums.items():
        assert (added[name] - value).abs().max() <= TOLERANCE * value.abs().max(), name
