import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointpeft.ops import interpolate, interpolate_reference
from tests.conftest import cut

# B, M, N, C, k
SHAPES = [(1, 1, 1, 1, 1), (2, 7, 3, 5, 3), (3, 33, 20, 64, 3), (2, 128, 64, 131, "all"), (2, 9, 17, 6, 17)]
# The sums run in another order than the reference's; the last digit of a half or a bfloat16 may differ.
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
}


def inputs(batch, m, n, channels, generator, dtype=torch.float32, device="cpu"):
    query, support = (torch.rand(batch, size, 3, generator=generator).to(device, dtype) for size in (m, n))
    return query, support, torch.randn(batch, n, channels, generator=generator).to(device, dtype)


@pytest.mark.parametrize(("batch", "m", "n", "channels", "k"), SHAPES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_values_and_gradients_are_those_of_the_reference(batch, m, n, channels, k, dtype, device, generator):
    query, support, features = inputs(batch, m, n, channels, generator, dtype, device)
    grad = torch.randn(batch, m, channels, generator=generator).to(device, dtype)
    results = []
    for op in (interpolate, interpolate_reference):
        leaf = features.clone().requires_grad_()
        out = op(query, support, leaf, k)
        assert out.dtype == dtype
        assert out.is_contiguous()
        out.backward(grad)
        results.append((out.detach(), leaf.grad))
    for ours, theirs in zip(*results, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours / scale, theirs / scale, **TOLERANCE[dtype])


def test_each_vector_level_equals_the_reference(cpu_level, generator):
    query, support, features = inputs(2, 50, 40, 77, generator)
    torch.testing.assert_close(
        interpolate(query, support, features), interpolate_reference(query, support, features), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("k", [1, 3, "all"])
def test_is_the_mean_weighted_by_inverse_squared_distance(k, device, generator):
    query, support, features = inputs(2, 12, 9, 4, generator, torch.float64, device)
    out = interpolate(query, support, features, k, eps=1e-3)
    for b in range(2):
        for m in range(12):
            sq_distance = (support[b] - query[b, m]).square().sum(-1)
            nearest = sq_distance.argsort()[: 9 if k == "all" else k]
            weight = 1 / (sq_distance[nearest] + 1e-3)
            expected = (weight[:, None] * features[b, nearest]).sum(0) / weight.sum()
            torch.testing.assert_close(out[b, m], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, "all"])
def test_gives_back_the_features_at_their_points_and_constants_everywhere(k, device, generator):
    query, support, features = inputs(2, 30, 20, 5, generator, device=device)
    # A weight of 1e8 against at most 20 / 1e-4: the others change the sixth digit at the most, and mostly less.
    torch.testing.assert_close(interpolate(support, support, features, k), features, rtol=0, atol=1e-2)
    constant = torch.full_like(features, 2.5)
    torch.testing.assert_close(interpolate(query, support, constant, k), constant.new_full((2, 30, 5), 2.5))


@pytest.mark.parametrize("k", [2, "all"])
def test_gradcheck_in_features_and_in_both_coordinates(k, device, generator):
    leaves = [leaf.requires_grad_() for leaf in inputs(2, 4, 5, 3, generator, torch.float64, device)]
    torch.autograd.gradcheck(lambda q, s, f: interpolate(q, s, f, k, 1e-2), leaves)


@pytest.mark.parametrize("k", [3, "all"])
def test_strides_and_offsets_do_not_matter(k, device, generator):
    query, support, features = inputs(3, 21, 11, 33, generator, device=device)
    expected = interpolate(query, support, features, k)
    torch.testing.assert_close(interpolate(cut(query), cut(support), cut(features), k), expected, rtol=1e-6, atol=1e-6)
    planar = features.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(interpolate(query, support, planar, k), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [3, "all"])
def test_half_features_keep_float32_weights_also_under_autocast(k, device, generator):
    query, support, features = inputs(2, 30, 20, 8, generator, device=device)
    features = features.bfloat16()
    expected = interpolate(query, support, features.float(), k).bfloat16()
    with torch.autocast(device.type, torch.bfloat16):
        out = interpolate(query, support, features, k)
    torch.testing.assert_close(out, expected, rtol=8e-3, atol=1e-6)  # at the most the last digit


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 30), st.integers(1, 70), st.data())
def test_any_cloud_gives_what_the_reference_gives(batch, m, n, channels, data):
    k = data.draw(st.one_of(st.just("all"), st.integers(1, n)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    # Few distinct values: many duplicates and equal distances.
    query, support = (torch.randint(-1, 2, (batch, size, 3), generator=generator).float() for size in (m, n))
    features = torch.randn(batch, n, channels, generator=generator)
    expected = interpolate_reference(query, support, features, k)
    torch.testing.assert_close(interpolate(query, support, features, k), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [3, "all"])
def test_compiles_without_graph_breaks(k, device, generator):
    query, support, features = inputs(2, 9, 7, 5, generator, device=device)
    compiled = torch.compile(lambda *a: interpolate(*a, k) + 1, fullgraph=True, backend="aot_eager")
    results = []
    for run in (compiled, lambda *a: interpolate(*a, k) + 1):
        leaf = features.clone().requires_grad_()
        out = run(query, support, leaf)
        out.sum().backward()
        results.append((out.detach(), leaf.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [3, "all"])
def test_reference_backend_can_be_forced(k, monkeypatch, generator):
    query, support, features = inputs(2, 9, 7, 5, generator)
    expected = interpolate_reference(query, support, features, k)
    monkeypatch.setenv("POINTPEFT_BACKEND", "reference")
    assert torch.equal(interpolate(query, support, features, k), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_xyz": torch.zeros(2, 4)}, "query_xyz must have 3 dimensions, got shape (2, 4)"),
        ({"query_xyz": torch.zeros(2, 4, 2)}, "query_xyz must have 3 entries in its last dimension"),
        ({"support_xyz": torch.zeros(2, 5, 4)}, "support_xyz must have 3 entries in its last dimension"),
        (
            {"support_xyz": torch.zeros(2, 5, 3).double()},
            "support_xyz is torch.float64, but query_xyz is torch.float32",
        ),
        ({"support_xyz": torch.zeros(3, 5, 3)}, "support_xyz must have B = 2 clouds like query_xyz, got 3"),
        ({"support_features": torch.zeros(2, 5)}, "support_features must have 3 dimensions, got shape (2, 5)"),
        ({"support_features": torch.zeros(2, 5, 6).int()}, "support_features must be float32"),
        (
            {"support_features": torch.zeros(2, 4, 6)},
            "support_features must have shape (2, 5, 'C') to go with support_xyz, got (2, 4, 6)",
        ),
        (
            {"support_features": torch.zeros(2, 5, 6, device="meta")},
            "support_features is on meta, but support_xyz is on cpu",
        ),
        ({"k": 6}, "k must be between 1 and N = 5, got 6"),
        ({"k": 0}, "k must be between 1 and N = 5, got 0"),
        ({"k": "most"}, "k must be an int or \"all\", got 'most'"),
        ({"k": 2.0}, "k must be an int, got float"),
        ({"eps": 0.0}, "eps must be a finite number above 0, got 0.0"),
        ({"eps": float("nan")}, "eps must be a finite number above 0, got nan"),
        ({"query_xyz": torch.full((2, 4, 3), torch.nan)}, "query_xyz must be finite"),
        ({"support_xyz": torch.full((2, 5, 3), torch.inf)}, "support_xyz must be finite"),
        (
            {"support_xyz": torch.zeros(2, 0, 3), "support_features": torch.zeros(2, 0, 6), "k": "all"},
            "support_xyz must have at least 1 point, got N = 0",
        ),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(arguments, message, backend, monkeypatch):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    call = {
        "query_xyz": torch.zeros(2, 4, 3),
        "support_xyz": torch.zeros(2, 5, 3),
        "support_features": torch.zeros(2, 5, 6),
    } | arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        interpolate(**call)


@pytest.mark.parametrize("k", [3, "all"])
def test_no_clouds_or_no_queries_give_an_empty_result(k, device):
    points, features = torch.zeros(2, 5, 3, device=device), torch.zeros(2, 5, 6, device=device)
    assert interpolate(points[:0], points[:0], features[:0], k).shape == (0, 5, 6)
    assert interpolate(points[:, :0], points, features, k).shape == (2, 0, 6)
