"""The steps of the CUDA sampling, run on emulated warps, against the operation on the CPU: no GPU is needed."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from pointpeft.ops import furthest_point_sample

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
HELD, BUCKETS, MEMORY = range(3)
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    source, program = HERE / "furthest_point_sample.cpp", tmp_path_factory.mktemp("csrc") / "furthest_point_sample"
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-Werror"]
    subprocess.run(["g++", *flags, "-D__CUDA_ARCH__=800", f"-I{CSRC}", source, "-o", program], check=True)
    return program


def emulated(program, way, xyz, num_samples, lengths=None, start=None, min_sq_norm=0.0, warps=2, blocks=1):
    batch, n, _ = xyz.shape
    lengths = torch.full((batch,), n) if lengths is None else lengths
    start = torch.zeros(batch, dtype=torch.int64) if start is None else start
    is_double = xyz.dtype == torch.float64
    asked = struct.pack("7qd", way, is_double, warps, blocks, batch, n, num_samples, min_sq_norm)
    asked += b"".join(part.numpy().tobytes() for part in (xyz, lengths, start))
    said = subprocess.run([program], input=asked, capture_output=True, check=True).stdout
    return torch.frombuffer(bytearray(said), dtype=torch.int64).view(batch, num_samples)


def clouds(kind, batch, n, generator):
    """Clouds that a wrong bound, a wrong tie or an overflow would give away."""
    xyz = torch.rand(batch, n, 3, generator=generator)
    if kind == "lattice":  # hundreds of equal distances in every step
        return (xyz * 8).floor()
    if kind == "line":
        return xyz[..., :1] * torch.tensor([1.0, 2.0, -1.0])
    if kind == "duplicates":
        return xyz[:, torch.randint(0, 20, (n,), generator=generator)]
    if kind == "one point":
        return xyz[:, :1].expand(-1, n, -1).contiguous()
    if kind == "outlier":
        xyz[:, 7] = 1e6
    if kind == "far away":  # spacing of the numbers is coarse: many ties by rounding
        return xyz + 1e5
    if kind == "huge":  # squares overflow, and so does the extent
        return (xyz - 0.5) * 2 * 3e38
    if kind == "tiny":  # squares vanish
        return xyz * 1e-30
    if kind == "clusters":
        return xyz * 1e-3 + torch.randint(0, 5, (batch, n, 1), generator=generator)
    return xyz


KINDS = ["uniform", "lattice", "line", "duplicates", "one point", "outlier", "far away", "huge", "tiny", "clusters"]


@pytest.mark.parametrize("kind", KINDS)
def test_buckets_give_every_index(program, kind, generator):
    xyz = clouds(kind, 2, 701, generator)
    start = torch.tensor([3, 700])
    idx = emulated(program, BUCKETS, xyz, 120, start=start)
    assert torch.equal(idx, furthest_point_sample(xyz, 120, start=start))


@pytest.mark.parametrize("way", [HELD, BUCKETS, MEMORY])
@pytest.mark.parametrize(("warps", "blocks"), [(1, 1), (4, 1), (8, 4)])
def test_teams_of_any_size(program, way, warps, blocks, generator):
    xyz = clouds("lattice", 1, 251, generator)
    idx = emulated(program, way, xyz, 100, warps=warps, blocks=blocks)
    assert torch.equal(idx, furthest_point_sample(xyz, 100))


@pytest.mark.parametrize("n", [33, 128 * 32, 128 * 32 + 1, 9999])
@pytest.mark.parametrize("kind", ["uniform", "lattice"])
def test_buckets_of_more_than_32_points(program, kind, n, generator):
    xyz = clouds(kind, 1, n, generator)
    assert torch.equal(emulated(program, BUCKETS, xyz, 30, warps=1), furthest_point_sample(xyz, 30))


@pytest.mark.parametrize("way", [HELD, BUCKETS, MEMORY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lengths_starts_and_the_threshold(program, way, dtype, generator):
    xyz = (clouds("uniform", 3, 400, generator) - 0.5).to(dtype)
    arguments = {"lengths": torch.tensor([400, 61, 60]), "start": torch.tensor([399, 60, 0]), "min_sq_norm": 0.06}
    idx = emulated(program, way, xyz, 60, **arguments)  # more than the last cloud has beyond the threshold
    assert torch.equal(idx, furthest_point_sample(xyz, 60, **arguments))


@pytest.mark.parametrize("way", [HELD, BUCKETS, MEMORY])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_points_that_are_not_finite_are_the_last(program, way, bad, generator):
    xyz = clouds("lattice", 1, 300, generator)
    good = torch.rand(300, generator=generator) < 0.8
    good[0] = True
    wrong = xyz.clone()
    wrong[0, ~good, torch.randint(0, 3, (int((~good).sum()),), generator=generator)] = bad
    among_good = furthest_point_sample(xyz[:, good], 200)
    assert torch.equal(emulated(program, way, wrong, 200), good.nonzero()[:, 0][among_good])


@pytest.mark.parametrize("way", [HELD, BUCKETS, MEMORY])
def test_a_start_that_is_not_finite_changes_no_distance(program, way, generator):
    xyz = clouds("uniform", 1, 200, generator)
    xyz[0, 9, 1] = torch.nan
    idx = emulated(program, way, xyz, 20, start=torch.tensor([9]))
    assert idx[0, 0] == 9
    others = torch.tensor([i for i in range(200) if i != 9])
    assert torch.equal(idx[:, 1:], others[furthest_point_sample(xyz[:, others], 19)])
