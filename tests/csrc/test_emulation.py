"""The emulator itself: what it computes, and that it reports each kind of fault with its line (probes.cu)."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.csrc.emulation import build, translation
from tests.csrc.emulation.kernels import SM75, SM90, SM90_CLUSTERS_OF_8, SM120, Finding, Kernels

pytestmark = pytest.mark.skipif(shutil.which("g++") is None and "CXX" not in os.environ, reason="no g++")
SOURCE = Path(__file__).with_name("probes.cu").read_text(encoding="utf-8")
X = torch.arange(64.0)
LANE = X % 32


@pytest.fixture(scope="module")
def probes():
    schema = ("probe(Tensor x, str name) -> Tensor",)
    return Kernels(90, {"csrc/probes.cu": SOURCE}, schemas=schema)


def probe(probes, name, device=SM90, seed=0, **options):
    return probes.call("probe", X, name, device=device, seed=seed, **options)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reversed", X.flip(0)),
        ("shuffle_up", torch.where(X % 16 >= 3, X - 3, X)),
        ("shuffle_down", torch.where(X % 16 < 13, X + 3, X)),
        ("shuffle_across", X + torch.tensor([(i ^ 5) - i for i in range(64)])),
        ("shuffle_from", X - X % 8 + 37 % 8),
        ("votes", torch.where(X < 32, 1110.0, 3201.0)),
        ("reductions", torch.where(X < 32, -10_000.0 + 21, 22_000.0 + 53)),
    ],
)
def test_lanes_and_barriers_compute_what_cuda_does(probes, name, expected, seed):
    assert torch.equal(probe(probes, name, seed=seed)[:64], expected)


def test_clusters_share_their_memory(probes):
    expected = torch.tensor([3.0, 0, 1, 2, 7, 4, 5, 6])
    assert all(torch.equal(probe(probes, "ring", seed=seed)[:8], expected) for seed in range(6))


def test_a_seed_draws_an_order_of_threads(probes):
    orders = [probe(probes, "tickets", seed=seed)[:64].tolist() for seed in range(8)]
    assert all(sorted(order) == X.tolist() for order in orders)
    assert len({tuple(order) for order in orders}) == 8
    assert orders[3] == probe(probes, "tickets", seed=3)[:64].tolist()


NOT_WRITTEN = r"|shared memory is read before it is written"  # as the order of threads has it
FAULTS = {
    "race_in_shared_memory": r"race in shared memory: .* by another thread of the block, with no barrier" + NOT_WRITTEN,
    "race_behind_a_vote": r"race in shared memory: .* by another thread of the warp, with no barrier" + NOT_WRITTEN,
    "race_of_warps": r"race in shared memory: .* by another thread of the block, with no barrier" + NOT_WRITTEN,
    "race_in_global_memory": r"race in global memory: write at .*, and write at",
    "race_of_blocks": r"race in global memory: .* by another thread of the grid",
    "race_with_an_atomic": r"race in global memory: (write|atomic) at .*, and (write|atomic) at",
    "half_of_a_block_at_a_barrier": r"__syncthreads at .* never reach|a thread ends, while others of its block wait",
    "two_barriers": r"the threads of a block diverge: __syncthreads at .*, while others wait at",
    "missing_lanes": r"an operation of a warp at .* never reach|a thread ends, while others of its warp wait",
    "part_of_a_warp": r"only full masks of a warp are emulated",
    "deadlock": r"deadlock: .* 63 threads wait at .* for their block|deadlock: .* 1 threads wait at .* for their warp",
    "endless_loop": r"a loop does not end",
    "endless_barriers": r"a loop does not end",
    "shared_memory_not_written": r"shared memory is read before it is written",
    "past_a_tensor": r"write of 4 bytes outside of all tensors",
    "before_a_tensor": r"read of 4 bytes outside of all tensors",
    "past_a_shared_array": r"write outside of all shared arrays",
    "past_a_member": r"index past the end of an array",
    "misaligned_word": r"misaligned",
    "write_to_an_input": r"write to a tensor whose address was asked for reading",
    "local_memory_of_another_thread": r"outside of all tensors",
    "trapped": r"__trap",
    "long_shift": r"shift by a negative number or by all bits",
    "overflow": r"signed overflow of a sum",
    "write_before_a_block_begins": r"another block, which may not have begun",
    "write_after_a_block_ends": r"another block, which may have ended",
    "race_in_a_cluster": r"race in shared memory: .* by another thread of the cluster" + NOT_WRITTEN,
    "large_shared_array": r"the shared arrays of a block take more than 48 KiB",
    "bounded": r"a device would refuse the launch: __launch_bounds__ of the kernel allows 32 threads a block, got 64",
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_reported_with_its_line(probes, name, seed):
    with pytest.raises(Finding, match=FAULTS[name]) as raised:
        probe(probes, name, seed=seed, max_steps=100_000)
    lines = {int(line) for line in re.findall(r"probes\.cu:(\d+)", str(raised.value))}
    assert name == "bounded" or lines & (
        lines_of(name) | lines_of("give_to_the_next")
    )  # launch bounds are those of a kernel, not of a line


def lines_of(function):
    """The lines of a function of probes.cu."""
    lines = SOURCE.splitlines()
    begin = next(i for i, line in enumerate(lines) if f"void {function}(" in line)
    end = next(i for i in range(begin, len(lines)) if lines[i].endswith("}") and not lines[i].startswith(" "))
    return set(range(begin + 1, end + 2))


REFUSED = {
    "no_blocks": "the grid must have 1 to",
    "too_many_threads": "a block must have 1 to 1024 threads, got 1025",
    "dynamic_shared_memory": "dynamic shared memory is not emulated",
    "another_stream": "the stream is not the one that torch has current",
    "no_guard": "no DeviceGuard is alive",
    "large_cluster_not_allowed": "clusters of more than 8 blocks need",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_launch_that_a_device_would_refuse_is_reported(probes, name):
    with pytest.raises(Finding, match="a device would refuse the launch: " + REFUSED[name]):
        probe(probes, name)


@pytest.mark.parametrize(
    ("device", "message"), [(SM75, "has no clusters"), (SM90_CLUSTERS_OF_8, "of 16 blocks"), (SM120, "of 16 blocks")]
)
def test_clusters_are_those_of_the_device(probes, device, message):
    with pytest.raises(Finding, match=message):
        probe(probes, "cluster_too_large", device=device)


def test_a_launch_whose_error_nobody_asks_for_is_reported(probes):
    with pytest.raises(Finding, match="cudaGetLastError is not asked after a launch"):
        probe(probes, "unchecked_launch")


def test_every_choice_of_the_tests_is_found_in_the_sources():
    translation.require_choices(translation.sources())
    with pytest.raises(ValueError, match=r"stands 0 times in csrc"):
        translation.require_choices({"csrc/none.cu": ""})


def test_code_of_another_architecture_is_compiled_alone_where_it_differs():
    text = "#if __CUDA_ARCH__ >= 900\n#endif\n#if __CUDA_ARCH__ < 800\n#endif\n"
    seen = [build.seen_architecture([text], architecture) for architecture in (75, 80, 86, 90, 100, 120)]
    assert seen == [0, 80, 80, 90, 90, 90]
    assert build.seen_architecture(["x = __CUDA_ARCH__;"], 120) == 120
