import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointpeft.ops import ball_query, ball_query_reference
from tests.conftest import cut

SHAPES = [(1, 1, 1, 1), (2, 7, 7, 7), (3, 5, 63, 8), (2, 33, 64, 64), (2, 17, 65, 3), (1, 301, 1031, 40)]


def clouds(batch, m, n, generator, dtype=torch.float32, device="cpu"):
    return [torch.rand(batch, size, 3, generator=generator).to(device, dtype) for size in (m, n)]


@pytest.mark.parametrize(("batch", "m", "n", "k"), SHAPES)
@pytest.mark.parametrize("radius", [0.05, 0.3, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equals_the_reference_index_for_index(batch, m, n, k, radius, dtype, device, generator):
    query, support = clouds(batch, m, n, generator, dtype, device)
    idx = ball_query(query, support, radius, k)
    assert idx.is_contiguous()
    assert torch.equal(idx, ball_query_reference(query, support, radius, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_vector_level_equals_the_reference(cpu_level, dtype, generator):
    query, support = clouds(3, 50, 777, generator, dtype)
    for radius in (0.1, 0.4):
        assert torch.equal(ball_query(query, support, radius, 31), ball_query_reference(query, support, radius, 31))


def test_finds_the_first_points_within_the_radius_and_pads_with_the_first(device, generator):
    query, support = clouds(2, 40, 200, generator, device=device)
    k, radius = 12, 0.25
    idx = ball_query(query, support, radius, k).cpu()
    distance = torch.cdist(query.double(), support.double()).cpu()
    assert ((distance - radius).abs() > 1e-6).all()  # no pair hangs on rounding
    counts = set()
    for b in range(2):
        for m in range(40):
            inside = [n for n in range(200) if distance[b, m, n] < radius]
            found = inside[:k]
            counts.add(min(len(inside), k))
            assert idx[b, m].tolist() == found + [found[0] if found else 0] * (k - len(found))
    assert k in counts
    assert len(counts) > 3


def test_a_point_on_the_sphere_is_outside_and_nothing_found_gives_zeros(device):
    support = torch.tensor([[[9, 0, 0], [1, 0, 0], [0, 0.5, 0], [0, 0, 0]]], dtype=torch.float32, device=device)
    query = torch.zeros(1, 1, 3, device=device)
    assert ball_query(query, support, 1.0, 4).tolist() == [[[2, 3, 2, 2]]]
    assert ball_query(query, support + 20, 1.0, 4).tolist() == [[[0, 0, 0, 0]]]


def test_the_radius_is_squared_in_the_precision_of_the_distances(device):
    radius = 0.1
    sq_radius = torch.tensor(radius) * torch.tensor(radius)
    for step, expected in ((-1, 1), (1, 0)):  # the two float32 neighbours of the radius
        x = torch.nextafter(torch.tensor(radius), torch.tensor(float(step) + radius))
        support = torch.tensor([[[7.0, 0, 0], [float(x), 0, 0]]], device=device)
        assert bool(x * x < sq_radius) == bool(expected)
        assert ball_query(torch.zeros(1, 1, 3, device=device), support, radius, 1).tolist() == [[[expected]]]


def test_strides_and_offsets_do_not_matter(device, generator):
    query, support = clouds(3, 21, 101, generator, device=device)
    expected = ball_query(query, support, 0.3, 9)
    assert torch.equal(ball_query(cut(query), cut(support), 0.3, 9), expected)
    planar = support.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ball_query(query, planar, 0.3, 9), expected)
    one = query[:1].expand(3, -1, -1)
    assert torch.equal(ball_query(one, support, 0.3, 9), ball_query(one.contiguous(), support, 0.3, 9))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 140), st.sampled_from([1.0, 2.0, 2.5]), st.data())
def test_any_cloud_gives_what_the_reference_gives(batch, m, n, radius, data):
    k = data.draw(st.integers(1, n))
    # Few distinct values: many duplicates, and many distances that equal the radius.
    seed = data.draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    query, support = (torch.randint(-2, 3, (batch, size, 3), generator=generator).float() for size in (m, n))
    assert torch.equal(ball_query(query, support, radius, k), ball_query_reference(query, support, radius, k))


def test_opcheck(device, generator):
    query, support = clouds(2, 9, 50, generator, device=device)
    op = torch.ops.pointpeft.ball_query
    torch.library.opcheck(op, (query, support, 0.3, 7))
    torch.library.opcheck(op, (cut(query).requires_grad_(), cut(support), 0.3, 7))


def test_compiles_without_graph_breaks(device, generator):
    query, support = clouds(2, 9, 50, generator, device=device)
    compiled = torch.compile(lambda q, s: ball_query(q, s, 0.3, 9) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(query, support), ball_query(query, support, 0.3, 9) + 1)


def test_reference_backend_can_be_forced(monkeypatch, generator):
    query, support = clouds(2, 9, 30, generator)
    expected = ball_query(query, support, 0.3, 5)
    monkeypatch.setenv("POINTPEFT_BACKEND", "reference")
    assert torch.equal(ball_query(query, support, 0.3, 5), expected)


@pytest.mark.gpu
def test_points_that_are_not_finite_are_never_found_on_cuda(generator):
    query, support = clouds(1, 9, 50, generator, device="cuda")
    support[:, ::2] = torch.nan
    support[:, 1] = torch.inf
    idx = ball_query(query, support, float("inf"), 20)
    assert (idx == torch.arange(3, 43, 2, device="cuda")).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": torch.zeros(2, 4)}, "query must have 3 dimensions, got shape (2, 4)"),
        ({"query": torch.zeros(2, 4, 2)}, "query must have 3 entries in its last dimension, got shape (2, 4, 2)"),
        ({"support": torch.zeros(2, 5, 2)}, "support must have 3 entries in its last dimension, got shape (2, 5, 2)"),
        ({"support": torch.zeros(2, 5, 3, dtype=torch.int64)}, "support must be float32"),
        ({"support": torch.zeros(2, 5, 3).double()}, "support is torch.float64, but query is torch.float32"),
        ({"support": torch.zeros(2, 5, 3, device="meta")}, "support is on meta, but query is on cpu"),
        ({"support": torch.zeros(3, 5, 3)}, "support must have B = 2 clouds like query, got 3"),
        ({"support": torch.zeros(2, 0, 3)}, "k = 3 cannot be taken from N = 0"),
        ({"query": [[0.0]]}, "query must be a tensor, got list"),
        ({"k": 6}, "k must be between 1 and N = 5, got 6"),
        ({"k": 0}, "k must be between 1 and N = 5, got 0"),
        ({"k": 1.0}, "k must be an int, got float"),
        ({"radius": 0.0}, "radius must be a number above 0, got 0.0"),
        ({"radius": -1}, "radius must be a number above 0, got -1"),
        ({"radius": float("nan")}, "radius must be a number above 0, got nan"),
        ({"radius": torch.tensor(1.0)}, "radius must be a number above 0, got tensor(1.)"),
        ({"query": torch.full((2, 4, 3), torch.nan)}, "query must be finite"),
        ({"support": torch.full((2, 5, 3), torch.inf)}, "support must be finite"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(arguments, message, backend, monkeypatch):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    call = {"query": torch.zeros(2, 4, 3), "support": torch.zeros(2, 5, 3), "radius": 1.0, "k": 3} | arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        ball_query(**call)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_no_clouds_or_no_queries_give_an_empty_result(device, backend, monkeypatch):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    points = torch.zeros(2, 5, 3, device=device)
    assert ball_query(points[:0], points[:0], 1.0, 3).shape == (0, 5, 3)
    assert ball_query(points[:, :0], points, 1.0, 3).shape == (2, 0, 3)
