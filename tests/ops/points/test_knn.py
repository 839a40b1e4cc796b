import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointpeft.ops import knn, knn_reference
from tests.conftest import cut

SHAPES = [  # B, M, N, C, k
    (1, 1, 1, 3, 1),
    (2, 7, 7, 3, 7),
    (3, 33, 65, 3, 16),
    (2, 64, 1031, 3, 32),
    (1, 37, 300, 3, 128),
    (1, 9, 700, 3, 600),
    (1, 5, 130, 3, 129),
    (4, 17, 128, 1, 5),
    (2, 20, 90, 5, 40),
    (2, 20, 90, 16, 8),
]


def clouds(batch, m, n, channels, generator, dtype=torch.float32, device="cpu"):
    query = torch.rand(batch, m, channels, generator=generator)
    return query.to(device, dtype), torch.rand(batch, n, channels, generator=generator).to(device, dtype)


def assert_same(mine, reference):
    assert mine[0].dtype == reference[0].dtype
    assert torch.equal(mine[1], reference[1])
    assert torch.equal(mine[0], reference[0])


@pytest.mark.parametrize(("batch", "m", "n", "channels", "k"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equals_the_reference_index_for_index(batch, m, n, channels, k, dtype, device, generator):
    query, support = clouds(batch, m, n, channels, generator, dtype, device)
    assert_same(knn(query, support, k), knn_reference(query, support, k))


@pytest.mark.parametrize(("batch", "m", "n", "channels", "k"), SHAPES)
def test_each_vector_level_equals_the_reference(batch, m, n, channels, k, cpu_level, generator):
    query, support = clouds(batch, m, n, channels, generator)
    assert_same(knn(query, support, k), knn_reference(query, support, k))


@pytest.mark.parametrize(("m", "n", "k"), [(40, 200, 1), (300, 77, 20), (12, 500, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_many_channels_equal_the_exact_distances(m, n, k, dtype, device, generator):
    query, support = clouds(2, m, n, 384, generator, dtype, device)
    sq_distance, idx = knn(query, support, k)
    exact = torch.cdist(query.double().cpu(), support.double().cpu()).square()
    # |q|² and |s|² are near 128 here: a few roundings of float32 at that size bound the error of the difference.
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    nearest = exact.sort(-1).values[..., :k]
    torch.testing.assert_close(sq_distance.double().cpu(), nearest, rtol=0, atol=tolerance)
    torch.testing.assert_close(exact.gather(-1, idx.cpu()), nearest, rtol=0, atol=tolerance)
    assert (sq_distance.diff(dim=-1) >= 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [17, 64, 384])
def test_many_channels_do_not_depend_on_tf32(channels, generator, monkeypatch):
    query, support = clouds(2, 100, 900, channels, generator, device="cuda")
    query, support = query + 10, support + 10  # far from the origin the squared norms cancel
    exact = knn(query, support, 8)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    with_tf32 = knn(query, support, 8)
    assert all(torch.equal(a, b) for a, b in zip(exact, with_tf32, strict=True))
    true_distance = torch.cdist(query.double(), support.double()).square()
    assert torch.allclose(with_tf32[0].double(), true_distance.gather(2, with_tf32[1]), atol=1e-4 * channels)


def test_many_channels_never_give_a_negative_distance(device, generator):
    support = torch.randn(1, 100, 64, generator=generator).to(device) * 100
    sq_distance, idx = knn(support, support, 1)
    assert (sq_distance >= 0).all()
    assert torch.equal(idx[0, :, 0], torch.arange(100, device=device))


def test_many_channels_stay_exact_under_autocast(device, generator):
    query, support = clouds(2, 10, 50, 64, generator, device=device)
    expected = knn(query, support, 5)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert_same(knn(query, support, 5), expected)


def test_nothing_nearer_is_left_out(device, generator):
    query, support = clouds(2, 50, 400, 3, generator, device=device)
    sq_distance, idx = knn(query, support, 10)
    everything = torch.cdist(query.double(), support.double()).square()
    assert (sq_distance.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(everything.gather(-1, idx), sq_distance.double(), rtol=1e-5, atol=1e-6)
    others = everything.scatter(-1, idx, torch.inf)
    assert (others.amin(-1) >= everything.gather(-1, idx[..., -1:])[..., 0] - 1e-6).all()


# ---- large clouds: by a tree, from 4096 points and 256 queries on ----


def assert_some_equal_the_reference(query, support, k):
    """Asks for all queries, and compares a few: the reference sorts all of N for each."""
    mine = knn(query, support, k)
    some = torch.linspace(0, query.shape[1] - 1, 40, device=query.device).long()
    assert_same([part[:, some] for part in mine], knn_reference(query[:, some], support, k))


def large_cloud(kind, n, generator):
    rows = torch.rand(n, 3, generator=generator)
    if kind == "clustered":  # balls of very different size
        place = torch.randint(0, 5, (n,), generator=generator)
        return torch.eye(5, 3)[place] + (rows - 0.5) * 10.0 ** -place[:, None].float()
    if kind == "duplicated":
        return rows[torch.randint(0, 50, (n,), generator=generator)]
    if kind == "collinear":
        return rows[:, :1] * torch.tensor([1.0, -2.0, 0.5])
    if kind == "lattice":
        return (rows * 16).floor()
    if kind == "one point":
        return torch.ones(n, 3)
    return rows


LARGE = ["uniform", "clustered", "duplicated", "collinear", "lattice", "one point"]


def large_query(support, m, generator):
    """Half of them points of the cloud, half anywhere about it."""
    own = support[:, torch.randint(0, support.shape[1], (m,), generator=generator)]
    anywhere = support.amin(1, keepdim=True) - 1 + torch.rand(1, m, 3, generator=generator) * 6
    return torch.where(torch.rand(1, m, 1, generator=generator) < 0.5, own, anywhere)


@pytest.mark.parametrize("k", [1, 16, 33])
@pytest.mark.parametrize("kind", LARGE)
def test_large_clouds_equal_the_reference_index_for_index(kind, k, cpu_level, generator):
    support = large_cloud(kind, 5003, generator)[None]
    assert_some_equal_the_reference(large_query(support, 300, generator), support, k)


@pytest.mark.parametrize("kind", ["uniform", "lattice"])
@pytest.mark.parametrize("k", [300, 4100])
def test_large_clouds_with_many_neighbours(kind, k, cpu_level, generator):
    support = large_cloud(kind, 4100, generator)[None]
    assert_some_equal_the_reference(large_query(support, 256, generator), support, k)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_large_clouds_of_each_dtype(dtype, device, generator):
    query, support = clouds(1, 300, 7000, 3, generator, dtype, device)
    assert_some_equal_the_reference(query, support, 16)


@pytest.mark.parametrize("channels", [1, 2])
def test_large_clouds_of_few_channels(channels, device, generator):
    query, support = clouds(1, 300, 7000, channels, generator, device=device)
    assert_some_equal_the_reference(query, support, 16)


def test_large_clouds_of_any_length_and_stride(device, generator):
    query, support = clouds(4, 300, 5000, 3, generator, device=device)
    lengths = torch.tensor([5000, 4097, 20, 16], device=device)
    if device.type == "cpu":
        for b in range(4):
            support[b, lengths[b] :] = torch.nan
    sq_distance, idx = knn(cut(query), cut(support), 16, lengths=lengths)
    for b in range(4):
        alone = knn_reference(query[b : b + 1, :40], support[b : b + 1, : lengths[b]], 16)
        assert_same((sq_distance[b : b + 1, :40], idx[b : b + 1, :40]), alone)


def test_large_clouds_whose_distances_overflow(cpu_level):
    support = torch.full((1, 5000, 3), 3e38)
    support[0, 4321] = 0
    sq_distance, idx = knn(torch.zeros(1, 256, 3), support, 40)
    assert torch.equal(idx[0], torch.cat([torch.tensor([4321]), torch.arange(39)]).expand(256, 40))
    assert (sq_distance[0, :, 0] == 0).all()
    assert torch.isinf(sq_distance[0, :, 1:]).all()


@pytest.mark.parametrize("which", ["query", "support"])
def test_large_clouds_must_be_finite(which):
    call = {"query": torch.zeros(1, 300, 3), "support": torch.zeros(1, 5000, 3)}
    call[which][0, 299, 1] = torch.nan
    with pytest.raises(ValueError, match=f"{which} must be finite"):
        knn(call["query"], call["support"], 3)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(LARGE), st.integers(4096, 9000), st.integers(256, 300), st.integers(1, 70), st.integers(0, 2**31)
)
def test_any_large_cloud_gives_what_the_reference_gives(kind, n, m, k, seed):
    generator = torch.Generator().manual_seed(seed)
    support = large_cloud(kind, n, generator)[None]
    assert_some_equal_the_reference(large_query(support, m, generator), support, k)


def test_twenty_thousand_points_among_themselves(generator):
    support = torch.rand(1, 20_000, 3, generator=generator)
    _, idx = knn(support, support, 1)
    assert torch.equal(idx[0, :, 0], torch.arange(20_000))
    assert_some_equal_the_reference(support, support, 8)


def test_ties_go_to_the_lowest_index(cpu_level):
    support = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0], [-1, 0, 0]], dtype=torch.float32)
    sq_distance, idx = knn(torch.zeros(1, 1, 3), support[None], 5)
    assert idx.tolist() == [[[3, 4, 0, 1, 2]]]
    assert sq_distance.tolist() == [[[0, 0, 1, 1, 1]]]


@pytest.mark.parametrize("n", [50, 3000])
def test_a_cloud_of_one_point_repeated(n, cpu_level):
    _, idx = knn(torch.ones(1, 2, 3), torch.zeros(1, n, 3), 40)
    assert torch.equal(idx, torch.arange(40).expand(1, 2, 40))


def test_overflowing_distances_are_still_ordered_by_index(cpu_level):
    support = torch.full((1, 40, 3), 3e38)
    support[0, 30] = 0
    sq_distance, idx = knn(torch.zeros(1, 1, 3), support, 4)
    assert idx.tolist() == [[[30, 0, 1, 2]]]
    assert sq_distance.tolist() == [[[0, torch.inf, torch.inf, torch.inf]]]


def test_lengths_hide_the_padding(device, generator):
    query, support = clouds(3, 11, 80, 3, generator, device=device)
    lengths = torch.tensor([80, 33, 7], device=device)
    mine = knn(query, support, 7, lengths=lengths)
    assert_same(mine, knn_reference(query, support, 7, lengths=lengths))
    for b in range(3):
        alone = knn(query[b : b + 1], support[b : b + 1, : lengths[b]], 7)
        assert_same((mine[0][b : b + 1], mine[1][b : b + 1]), alone)


@pytest.mark.parametrize("channels", [3, 4, 40])
def test_strides_and_offsets_do_not_matter(channels, device, generator):
    query, support = clouds(3, 21, 101, channels, generator, device=device)
    expected = knn(query, support, 20)
    assert_same(knn(cut(query), cut(support), 20), expected)
    planar = support.transpose(1, 2).contiguous().transpose(1, 2)
    assert_same(knn(query, planar, 20), expected)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 90), st.integers(1, 4), st.data())
def test_any_cloud_gives_what_the_reference_gives(batch, m, n, channels, data):
    k = data.draw(st.integers(1, n))
    # Few distinct values: many ties and duplicates.
    size = batch * (m + n) * channels
    values = torch.tensor(data.draw(st.lists(st.integers(-2, 2), min_size=size, max_size=size)), dtype=torch.float32)
    query = values[: batch * m * channels].view(batch, m, channels)
    support = values[batch * m * channels :].view(batch, n, channels)
    assert_same(knn(query, support, k), knn_reference(query, support, k))


@pytest.mark.parametrize("channels", [3, 20])
def test_gradients_of_the_distances(channels, device, generator):
    query, support = clouds(2, 4, 9, channels, generator, torch.float64, device)
    inputs = (query.requires_grad_(), support.requires_grad_())
    torch.autograd.gradcheck(lambda q, s: knn(q, s, 3)[0], inputs)
    torch.autograd.gradgradcheck(lambda q, s: knn(q, s, 3)[0], inputs)
    torch.autograd.gradcheck(lambda q, s: knn_reference(q, s, 3)[0], inputs)


def test_gradients_reach_only_what_asks_for_them(generator):
    query, support = clouds(2, 4, 9, 3, generator, torch.float16)
    query.requires_grad_()
    knn(query, support, 3)[0].sum().backward()
    twin = query.detach().clone().requires_grad_()
    knn_reference(twin, support, 3)[0].sum().backward()
    torch.testing.assert_close(query.grad, twin.grad, rtol=2e-3, atol=2e-3)
    assert support.grad is None


def test_opcheck(device, generator):
    query, support = clouds(2, 7, 50, 3, generator, device=device)
    op = torch.ops.pointpeft.knn
    torch.library.opcheck(op, (query.requires_grad_(), support.requires_grad_(), 7, None))
    torch.library.opcheck(op, (cut(query.detach()), cut(support.detach()), 7, torch.tensor([50, 30], device=device)))
    query, support = clouds(2, 7, 50, 32, generator, device=device)
    torch.library.opcheck(op, (query, support, 3, None))


def test_compiles_without_graph_breaks(device, generator):
    query, support = clouds(2, 7, 50, 3, generator, device=device)
    compiled = torch.compile(lambda q, s: knn(q, s, 9), fullgraph=True, backend="aot_eager")
    assert_same(compiled(query, support), knn(query, support, 9))


def test_reference_backend_can_be_forced(monkeypatch, generator):
    query, support = clouds(2, 7, 50, 3, generator)
    expected = knn(query, support, 5)
    monkeypatch.setenv("POINTPEFT_BACKEND", "reference")
    assert_same(knn(query, support, 5), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": torch.zeros(2, 3)}, "query must have 3 dimensions, got shape (2, 3)"),
        ({"support": torch.zeros(5, 3)}, "support must have 3 dimensions, got shape (5, 3)"),
        (
            {"support": torch.zeros(2, 5, 4)},
            "query and support must agree in B and C, got shapes (2, 4, 3) and (2, 5, 4)",
        ),
        ({"support": torch.zeros(1, 5, 3)}, "query and support must agree in B and C"),
        ({"query": torch.zeros(2, 4, 0), "support": torch.zeros(2, 5, 0)}, "query must have at least 1 channel"),
        (
            {"support": torch.zeros(2, 5, 3, dtype=torch.float64)},
            "support is torch.float64, but query is torch.float32",
        ),
        ({"query": torch.zeros(2, 4, 3, dtype=torch.int64)}, "query must be float32"),
        ({"k": 6}, "k must be between 1 and N = 5, got 6"),
        ({"k": 0}, "k must be between 1 and N = 5, got 0"),
        ({"k": 2.0}, "k must be an int, got float"),
        ({"support": torch.zeros(2, 0, 3)}, "k = 3 cannot be taken from N = 0"),
        ({"lengths": torch.tensor([5, 2])}, "lengths must be between k = 3 and N = 5, got values from 2 to 5"),
        ({"lengths": torch.tensor([5])}, "lengths must have shape (2,)"),
        ({"support": torch.full((2, 5, 3), torch.nan)}, "support must be finite"),
        ({"query": torch.full((2, 4, 3), torch.inf)}, "query must be finite"),
        ({"query": torch.full((2, 4, 20), torch.inf), "support": torch.zeros(2, 5, 20)}, "query must be finite"),
        ({"query": torch.zeros(2, 4, 20), "support": torch.full((2, 5, 20), torch.nan)}, "support must be finite"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(arguments, message, backend, monkeypatch):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    call = {"query": torch.zeros(2, 4, 3), "support": torch.zeros(2, 5, 3), "k": 3} | arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        knn(call.pop("query"), call.pop("support"), call.pop("k"), **call)


def test_padding_may_hold_anything(generator):
    query, support = clouds(1, 4, 20, 3, generator)
    expected = knn(query, support[:, :12], 5)
    support[:, 12:] = torch.nan
    assert_same(knn(query, support, 5, lengths=torch.tensor([12])), expected)


@pytest.mark.parametrize(("batch", "m"), [(0, 4), (2, 0)])
@pytest.mark.parametrize("channels", [3, 20])
def test_empty_inputs_give_empty_results(batch, m, channels, device):
    query, support = torch.zeros(batch, m, channels, device=device), torch.zeros(batch, 5, channels, device=device)
    sq_distance, idx = knn(query, support, 3)
    assert sq_distance.shape == idx.shape == (batch, m, 3)


@pytest.mark.parametrize("way", ["rows", "tree", "product"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (5, 70, 70), (40, 1500, 9), (3, 700, 200)])
def test_each_way_equals_the_reference_at_sizes_that_do_not_choose_it(way, m, n, k, cpu_level, generator):
    # On a lattice every product is exact, so that all three ways round alike; and there are many ties.
    support = torch.randint(-9, 10, (2, n, 3), generator=generator).float()
    query = torch.randint(-9, 10, (2, m, 3), generator=generator).float()
    got, expected = torch.ops.pointpeft._knn_one_way(query, support, k, way), knn_reference(query, support, k)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize(
    ("channels", "way", "message"),
    [
        (3, "grid", "way must be rows, tree or product, got grid"),
        (4, "tree", "way tree takes at most 3 channels"),
        (17, "rows", "way rows takes at most 16 channels"),
    ],
)
def test_a_way_that_cannot_be_taken_is_named(channels, way, message):
    with pytest.raises(ValueError, match=message):
        torch.ops.pointpeft._knn_one_way(torch.zeros(1, 2, channels), torch.zeros(1, 5, channels), 2, way)
