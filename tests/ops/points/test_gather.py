import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointpeft.ops import gather, gather_reference
from tests.conftest import cut

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [
    (1, 1, 1, (1,)),
    (2, 7, 3, (5,)),
    (3, 33, 3, (4, 6)),
    (2, 129, 384, (17,)),
    (2, 5, 65, ()),
    (1, 64, 40, (3, 2, 9)),
]


def case(batch, n, channels, rest, generator, dtype=torch.float32, device="cpu"):
    features = torch.randn(batch, n, channels, generator=generator).to(device, dtype)
    return features, torch.randint(n, (batch, *rest), generator=generator).to(device)


@pytest.mark.parametrize(("batch", "n", "channels", "rest"), SHAPES)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool])
def test_equals_the_reference(batch, n, channels, rest, dtype, device, generator):
    features, idx = case(batch, n, channels, rest, generator, dtype, device)
    out = gather(features, idx)
    assert out.shape == (batch, *rest, channels)
    assert torch.equal(out, gather_reference(features, idx))


def test_takes_the_rows_that_the_indices_name(device, generator):
    features, idx = case(3, 20, 4, (5, 6), generator, device=device)
    out = gather(features, idx)
    for b, m, k in [(0, 0, 0), (1, 4, 5), (2, 3, 1)]:
        assert torch.equal(out[b, m, k], features[b, idx[b, m, k]])


def test_strides_and_offsets_do_not_matter(device, generator):
    features, idx = case(3, 20, 5, (4, 6), generator, device=device)
    assert torch.equal(gather(cut(features), cut(idx)), gather(features, idx))
    planar = features.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(gather(planar, idx), gather(features, idx))


@pytest.mark.parametrize(("batch", "n", "channels", "rest"), SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_are_the_references(batch, n, channels, rest, dtype, device, generator):
    features, idx = case(batch, n, channels, rest, generator, dtype, device)
    grad = torch.randn(*idx.shape, channels, generator=generator).to(device, dtype)
    mine = features.clone().requires_grad_()
    gather(mine, idx).backward(grad)
    wide = features.double().requires_grad_()
    gather_reference(wide, idx).backward(grad.double())
    # Sums of a few unit normals, rounded once to the dtype.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    assert mine.grad.dtype == dtype
    torch.testing.assert_close(mine.grad.double(), wide.grad, rtol=tolerance, atol=tolerance)


def test_half_precision_gradients_are_summed_in_float32(device):
    features = torch.zeros(1, 2, 1, dtype=torch.float16, device=device, requires_grad=True)
    gather(features, torch.zeros(1, 4097, dtype=torch.int64, device=device)).sum().backward()
    assert features.grad.flatten().tolist() == [4096.0, 0.0]  # float16 sums would stop at 2048


@pytest.mark.parametrize("batch", [1, 4])
def test_the_backward_gives_the_same_bits_on_every_run(batch, device, generator):
    features, idx = case(batch, 50, 70, (3000,), generator, device=device)
    grad = torch.randn(batch, 3000, 70, generator=generator).to(device)

    def once():
        mine = features.clone().requires_grad_()
        gather(mine, idx).backward(grad)
        return mine.grad

    torch.use_deterministic_algorithms(True)
    try:
        first = once()
        assert all(torch.equal(once(), first) for _ in range(3))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(once(), first, rtol=1e-4, atol=1e-4)


def test_gradcheck(device, generator):
    features, idx = case(2, 6, 3, (4, 2), generator, torch.float64, device)
    torch.autograd.gradcheck(lambda f: gather(f, idx), features.requires_grad_())
    torch.autograd.gradgradcheck(lambda f: gather(f, idx).square(), features)


def test_opcheck(device, generator):
    features, idx = case(2, 6, 3, (4, 2), generator, device=device)
    torch.library.opcheck(torch.ops.pointpeft.gather, (features.requires_grad_(), idx))
    torch.library.opcheck(torch.ops.pointpeft.gather, (cut(features.detach()), cut(idx)))
    grad = torch.randn(2, 4, 2, 3, generator=generator).to(device).requires_grad_()
    torch.library.opcheck(torch.ops.pointpeft.gather_backward, (grad, idx, 6))


def test_compiles_without_graph_breaks(device, generator):
    features, idx = case(2, 6, 3, (4, 2), generator, device=device)
    mine, twin = features.clone().requires_grad_(), features.clone().requires_grad_()
    compiled = torch.compile(lambda f, i: gather(f, i).square(), fullgraph=True, backend="aot_eager", dynamic=True)
    compiled(mine, idx).sum().backward()
    gather(twin, idx).square().sum().backward()
    assert torch.equal(mine.grad, twin.grad)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 20), st.integers(0, 40), st.integers(0, 2**31))
def test_any_shape_gives_what_the_reference_gives(batch, n, channels, rows, seed):
    features, idx = case(batch, n, channels, (rows,), torch.Generator().manual_seed(seed))
    assert torch.equal(gather(features, idx), gather_reference(features, idx))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": torch.zeros(2, 5)}, "features must be a real tensor (B, N, C), got (2, 5)"),
        ({"features": torch.zeros(2, 5, 3, dtype=torch.complex64)}, "features must be a real tensor (B, N, C)"),
        ({"features": [0.0]}, "features must be a real tensor (B, N, C), got list"),
        ({"idx": torch.zeros(2, 4, dtype=torch.int32)}, "idx must be an int64 tensor, got torch.int32"),
        ({"idx": 3}, "idx must be an int64 tensor, got int"),
        ({"idx": torch.zeros(3, 4, dtype=torch.int64)}, "idx must have shape (2, ...), got (3, 4)"),
        ({"idx": torch.tensor([[0, 5], [1, 2]])}, "idx must be between 0 and N - 1 = 4, got 5"),
        ({"idx": torch.tensor([[0, 4], [-1, 2]])}, "idx must be between 0 and N - 1 = 4, got -1"),
        ({"features": torch.zeros(2, 0, 3)}, "idx must be between 0 and N - 1 = -1, got 0"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_names_the_argument(arguments, message, backend, monkeypatch):
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    call = {"features": torch.zeros(2, 5, 3), "idx": torch.zeros(2, 4, dtype=torch.int64)} | arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        gather(**call)


@pytest.mark.parametrize(("batch", "rows"), [(0, 3), (2, 0)])
def test_empty_inputs_give_empty_results(batch, rows, device):
    features = torch.zeros(batch, 5, 3, device=device, requires_grad=True)
    out = gather(features, torch.zeros(batch, rows, dtype=torch.int64, device=device))
    assert out.shape == (batch, rows, 3)
    out.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))
