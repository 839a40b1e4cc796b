"""Derivatives of every operation: right, or an error that names it; never zeros without a word.

The examples are held against the registry and the public names, so an operation without one fails here.
"""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad

from pointpeft import ops
from pointpeft.ops.core import derivatives, library
from pointpeft.ops.frozen.attention import _cuda_backward as attention_on_cuda
from pointpeft.ops.points.aggregate_neighbors import MODES
from pointpeft.ops.points.gather import _sorted_formula, sum_rows

gradcheck = partial(torch.autograd.gradcheck, fast_mode=True)
gradgradcheck = partial(torch.autograd.gradgradcheck, fast_mode=True)

INDICES = {"furthest_point_sample", "ball_query"}
"""Public operations whose results are all indices."""

NO_GRADIENT = {"patch_embed", "patch_embed_statistics"}
"""Public operations that cut the gradient, as their docstrings say."""


def draw(*size):
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size) + len(size)), dtype=torch.float64)


XYZ, MORE = draw(2, 9, 3), draw(2, 7, 3)
IDX = torch.tensor([[[0, 3, 3], [8, 1, 0]], [[2, 2, 2], [5, 7, 4]]])  # repeated within a group and across groups
SHARES = draw(2, 2, 3)
ARGMAX = torch.tensor([0, 2, 1, 1, 0, 2, 2, 0, 1, 0, 0, 1], dtype=torch.uint8).view(2, 2, 3)
TOKENS, LAST = draw(2, 3, 6), draw(6)
FROZEN_MLP = [draw(8, 6), draw(8), draw(6, 8), draw(6)]
ADAPTER = [draw(6) + 1, draw(6), draw(1, 6), draw(1), draw(2, 6), draw(2), draw(6, 2), draw(6)]
PATCHES, PATCH_WEIGHTS = (
    draw(1, 2, 5, 3),
    [draw(4, 3), draw(4), draw(5, 4), draw(5), draw(6, 10), draw(6), draw(7, 6), draw(7)],
)
MLP = ops.MlpWeights(*FROZEN_MLP, draw(8) + 1, draw(8), draw(6) + 1, draw(6))


def _every_mlp(x, weight, bias, scale1, shift1, scale2, shift2, *adapter):
    """Without scales, with them, and with an adapter beside it."""
    plain, scaled = ops.MlpWeights(*MLP[:4]), ops.MlpWeights(*MLP[:4], scale1, shift1, scale2, shift2)
    beside = {"norm": ops.NormWeights(weight, bias), "adapter": ops.AdapterWeights(*adapter)}
    return ops.frozen_mlp(x, plain), ops.frozen_mlp(x, scaled), *ops.frozen_mlp(x, scaled, **beside)


CALLS = {"frozen_attention": ["attention", "frozen_linear"], "frozen_mlp": ["frozen_linear"]}
"""Operations that others are made of where a gradient is asked for, and whose errors these therefore pass on."""

MAPS = draw(12, 6), draw(12), draw(8, 6), draw(8)

PUBLIC = {
    "adapter": (
        lambda x, *weights: ops.adapter(x, ops.AdapterWeights(*weights), with_prompt=True),
        [TOKENS, *ADAPTER],
    ),
    "aggregate_neighbors": (
        lambda f, w: [ops.aggregate_neighbors(f, IDX, m, w if m == "weighted" else None) for m in MODES],
        [XYZ, SHARES],
    ),
    "attention": (
        lambda z, s, b: [ops.attention(z, 2), ops.attention(z, 2, s, b)],
        [draw(2, 3, 12), draw(12), draw(12) + 1],
    ),
    "ball_query": (lambda q, s: ops.ball_query(q, s, 0.9, 3), [XYZ, MORE]),
    "chamfer_distance": (lambda a, b: [ops.chamfer_distance(a, b, norm) for norm in (1, 2)], [XYZ, MORE]),
    "frozen_attention": (
        lambda x, s, b: ops.frozen_attention(x, *MAPS[:2], 2, s, b),
        [TOKENS, draw(12), draw(12) + 1],
    ),
    "frozen_linear": (
        lambda x, g, b: [ops.frozen_linear(x, *MAPS[2:]), ops.frozen_linear(x, *MAPS[2:], g, b)],
        [TOKENS, draw(8), draw(8) + 1],
    ),
    "frozen_mlp": (_every_mlp, [TOKENS, LAST + 1, LAST, *MLP[4:], *ADAPTER]),
    "furthest_point_sample": (lambda p: ops.furthest_point_sample(p, 4), [XYZ]),
    "gather": (lambda f: ops.gather(f, IDX), [XYZ]),
    "interpolate": (
        lambda q, s, f: [ops.interpolate(q, s, f, k, 0.1) for k in (3, "all")],
        [XYZ, MORE, draw(2, 7, 4)],
    ),
    "knn": (lambda q, s: ops.knn(q, s, 3)[0], [XYZ, MORE]),
    "layer_norm": (ops.layer_norm, [TOKENS, LAST + 1, LAST, LAST + 2, LAST]),
    "patch_embed": (lambda p, *w: ops.patch_embed(p, ops.PatchEmbedWeights(*w)), [PATCHES, *PATCH_WEIGHTS]),
    "patch_embed_statistics": (
        lambda p, w1, b1, w2, b2, w3, b3: ops.patch_embed_statistics(
            p, w1, b1, torch.ones(4).double(), torch.zeros(4).double(), 1e-5, w2, b2, w3, b3
        )[:4],
        [PATCHES, *PATCH_WEIGHTS[:6]],
    ),
    "sample_and_group": (lambda p: ops.sample_and_group(p, 4, 3)[:2], [XYZ]),
    "scale_shift": (ops.scale_shift, [TOKENS, LAST + 1, LAST]),
}
"""A function of tensors that calls the operation, and what it is differentiated at, by public name."""

_weighted, _maximum = 3, 0  # places in MODES
RIGHT = {
    "aggregate_neighbors": (lambda op, f, w: op(f, IDX, w, _weighted, False)[0], [XYZ, SHARES]),
    "aggregate_neighbors_backward": (
        lambda op, g, w: [
            op(g, IDX, w, None, None, None, 9, _weighted),
            op(g, IDX, None, ARGMAX, None, None, 9, _maximum),
            op(g, IDX, None, None, None, None, 9, 1),
            op(g, IDX, None, None, None, None, 9, 2),
        ],
        [draw(2, 2, 3), SHARES],
    ),
    "aggregate_neighbors_backward_weights": (lambda op, g, f: op(g, f, IDX), [draw(2, 2, 3), XYZ]),
    "chamfer_distance": (lambda op, a, b: op(a, b)[::2], [XYZ, MORE]),
    "chamfer_distance_backward": (
        lambda op, ga, gb, a, b: op(ga, gb, a, b, *torch.ops.pointpeft.chamfer_distance(a.detach(), b.detach())[1::2]),
        [draw(2, 9), draw(2, 7), XYZ, MORE],
    ),
    "gather": (lambda op, f: op(f, IDX), [XYZ]),
    "gather_backward": (lambda op, g: op(g, IDX, 9), [draw(2, 2, 3, 3)]),
    "knn": (lambda op, q, s: op(q, s, 3, None)[0], [XYZ, MORE]),
    "_knn_one_way": (lambda op, q, s: op(q, s, 3, "rows")[0], [XYZ, MORE]),
    "sample_and_group": (lambda op, p: op(p, 4, 3, None, None, 0, 0.0)[:2], [XYZ]),
}
"""Registered operations with derivatives of every kind: a function of the operation and tensors, and the tensors."""

REFUSED = {
    "adapted_mlp": lambda op, x: op(x, None, LAST, LAST, [*MLP, *ADAPTER], None, 1e-5, 1e-5, 0.0, False)[0],
    "adapter": lambda op, x: op(x, *ADAPTER, None, 1e-5, 0.0, True)[0],
    "adapter_backward": lambda op, x: op(x, None, TOKENS, *ADAPTER, None, 1e-5, 0.0)[0],
    "attention": lambda op, x: op(x, LAST, LAST, 2)[0],
    "attention_backward": lambda op, x: op(
        draw(2, 3, 2), x, LAST, LAST, *torch.ops.pointpeft.attention(TOKENS, LAST, LAST, 2), 2
    )[0],
    "frozen_attention": lambda op, x: op(x, draw(12, 6), None, None, None, 2),
    "frozen_linear": lambda op, x: op(x[0], draw(8, 6), None),
    "frozen_mlp": lambda op, x: op(x[0], *MLP)[0],
    "frozen_mlp_backward": lambda op, x: op(x[0], TOKENS[0], draw(3, 6), *MLP[:7])[0],
    "layer_norm": lambda op, x: op(x.float(), LAST.float(), LAST.float(), 1e-5, torch.bfloat16),
    "patch_embed": lambda op, x: op(x.view(1, 2, 6, 3), *PATCH_WEIGHTS),
    "scale_shift": lambda op, x: op(x[0], LAST, LAST),
    "scale_shift_backward": lambda op, x: op(x[0], TOKENS[0], LAST)[0],
}
"""Registered operations that the product calls inside a function of autograd: called alone they refuse."""

ON_CUDA = {"gather_backward_sorted"}


def as_tuple(function, *first):
    """`function` with a tuple of tensors as its result, as gradcheck wants it."""

    def run(*tensors):
        result = function(*first, *tensors)
        return (result,) if isinstance(result, torch.Tensor) else tuple(result)

    return run


def op_of(name):
    return getattr(torch.ops.pointpeft, name).default


def leaves(tensors):
    return [t.clone().requires_grad_() for t in tensors]


def refusal(check):
    """The message of the error that `check` raises; None where it holds."""
    try:
        assert check()
    except RuntimeError as error:
        return str(error)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """Fused operations warn once per process that plain PyTorch replaces them; here that is expected."""
    monkeypatch.setattr(library, "_say_once", lambda *_: None)


def test_every_public_operation_has_an_example():
    assert set(PUBLIC) == {name for name in ops.__all__ if f"{name}_reference" in ops.__all__}


def test_every_registered_operation_has_an_autograd_kernel_and_an_example():
    names = derivatives.names()
    assert all(torch._C._dispatch_has_kernel_for_dispatch_key(f"pointpeft::{name}", "Autograd") for name in names)
    given = {name for name in names if not name.startswith("_")}
    assert given == {name for name in {*RIGHT, *REFUSED, *INDICES, *ON_CUDA} if not name.startswith("_")}


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_registered_operation_has_right_derivatives_of_every_kind(name):
    function, tensors = RIGHT[name]
    function = as_tuple(function, op_of(name))
    inputs = leaves(tensors)
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_registered_operation_without_derivatives_raises_and_names_itself(name):
    x = TOKENS if name != "patch_embed" else TOKENS[:, :, :3].repeat(2, 1, 1)
    op, function = op_of(name), REFUSED[name]
    with pytest.raises(RuntimeError, match=f"pointpeft::{name} has no derivative"):
        function(op, x.clone().requires_grad_())
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=f"pointpeft::{name} has no derivative"):
        function(op, forward_ad.make_dual(x, torch.ones_like(x)))
    with pytest.raises(RuntimeError, match=f"pointpeft::{name} has no derivative"):
        torch.func.jvp(lambda x: function(op, x), (x,), (torch.ones_like(x),))
    with pytest.raises(RuntimeError, match=f"pointpeft::{name} has no derivative"):
        torch.func.grad(lambda x: function(op, x).sum())(x)


def test_new_operation_that_says_nothing_of_derivatives_refuses_them():
    with torch.library._scoped_library("pointpeft", "FRAGMENT") as scope:
        scope.define("test_twice(Tensor x) -> Tensor")
        scope.impl("test_twice", lambda x: 2 * x, "CPU")
        derivatives.refuse_the_rest(scope)
        assert torch.equal(op_of("test_twice")(TOKENS), 2 * TOKENS)
        with pytest.raises(RuntimeError, match="pointpeft::test_twice has no derivative"):
            op_of("test_twice")(TOKENS.clone().requires_grad_())


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - INDICES - NO_GRADIENT))
def test_forward_mode_is_right(name):
    function, tensors = PUBLIC[name]
    assert gradcheck(as_tuple(function), leaves(tensors), check_forward_ad=True)


@pytest.mark.parametrize("name", sorted(NO_GRADIENT))
def test_operation_that_cuts_the_gradient_has_a_right_forward_mode_and_no_gradient_of_zeros(name):
    function, tensors = PUBLIC[name]
    assert gradcheck(as_tuple(function), leaves(tensors), check_forward_ad=True, check_backward_ad=False)
    with pytest.raises(RuntimeError, match=f"{name} has no gradient"):
        torch.func.grad(lambda *t: as_tuple(function)(*t)[0].sum())(*tensors)


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - INDICES - NO_GRADIENT))
def test_second_derivative_is_right_or_an_error_that_names_the_operation(name):
    function, tensors = PUBLIC[name]
    message = refusal(lambda: gradgradcheck(as_tuple(function), leaves(tensors)))
    assert message is None or "can be differentiated once, not twice" in message
    assert message is None or any(part in message for part in (name, *CALLS.get(name, ())))


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - INDICES - NO_GRADIENT))
def test_gradient_penalty_on_a_sum_is_right_or_an_error(name):
    function, tensors = PUBLIC[name]
    function = as_tuple(function)

    def penalty(*inputs):
        # The gradient that comes into the operation is a constant: only the saved tensors are differentiated twice.
        grads = torch.autograd.grad(
            sum(t.sum() for t in function(*inputs)), inputs, create_graph=True, allow_unused=True
        )
        return sum(x.square().sum() for x in inputs) + sum(g.square().sum() for g in grads if g is not None)

    message = refusal(lambda: gradcheck(penalty, leaves(tensors)))
    assert message is None or "can be differentiated once, not twice" in message


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - INDICES - NO_GRADIENT))
def test_transforms_of_torch_func_are_right(name):
    function, tensors = PUBLIC[name]

    def loss(*tensors):
        return sum(t.square().sum() for t in as_tuple(function)(*tensors))

    every = tuple(range(len(tensors)))
    inputs = leaves(tensors)
    expected = torch.autograd.grad(loss(*inputs), inputs)
    torch.testing.assert_close(torch.func.grad(loss, every)(*tensors), expected)
    torch.testing.assert_close(torch.func.jacrev(loss, every)(*tensors), expected)
    torch.testing.assert_close(torch.func.jacfwd(loss, every)(*tensors), expected)
    several = [torch.stack([t, 0.9 * t]) for t in tensors]
    per_sample = torch.func.vmap(torch.func.grad(loss, every))(*several)
    torch.testing.assert_close([g[0] for g in per_sample], list(expected))


@pytest.mark.parametrize("name", ["aggregate_neighbors", "chamfer_distance", "interpolate", "knn", "scale_shift"])
def test_hessian_is_right(name):
    function, tensors = PUBLIC[name]
    first, *rest = tensors

    def loss(x):
        return sum(t.pow(3).sum() for t in as_tuple(function)(x, *rest))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POINTPEFT_BACKEND", "reference")
        expected = torch.autograd.functional.hessian(loss, first)
    torch.testing.assert_close(torch.func.hessian(loss)(first), expected)


@pytest.mark.parametrize("name", sorted(INDICES))
def test_indices_carry_no_derivative(name):
    function, tensors = PUBLIC[name]
    assert not function(*leaves(tensors)).requires_grad
    expected = function(*tensors)
    tangents = tuple(torch.ones_like(t) for t in tensors)
    assert torch.equal(torch.func.jvp(function, tuple(tensors), tangents)[0], expected)
    assert torch.equal(torch.func.vmap(function)(*(t[None] for t in tensors))[0], expected)


def test_formula_of_the_sorted_sum_is_that_of_the_unsorted():
    grad = draw(2, 2, 3, 4).requires_grad_()
    sorted_idx, row_of = IDX.flatten(1).sort(dim=1, stable=True)
    assert gradcheck(lambda g: _sorted_formula((g, sorted_idx, row_of, 9), None), grad, check_forward_ad=True)
    torch.testing.assert_close(_sorted_formula((grad, sorted_idx, row_of, 9), None), sum_rows(grad, IDX, 9))


def test_fused_operation_says_that_plain_pytorch_answers_a_transform(monkeypatch):
    said = []
    monkeypatch.setattr(library, "_say_once", lambda *what: said.append(what))
    torch.func.grad(lambda x: ops.scale_shift(x, LAST, LAST).sum())(TOKENS)
    assert said
    assert "torch.func" in said[0][1]


def test_kernel_can_differentiate_by_autograd_below_the_autograd_kernel():
    z, grad = draw(2, 3, 12), draw(2, 3, 4)
    expected = torch.autograd.grad(ops.attention_reference(leaf := z.clone().requires_grad_(), 2), leaf, grad)[0]
    with torch._C._AutoDispatchBelowAutograd():
        actual, *rest = attention_on_cuda(grad, z, None, None, None, None, 2)
    torch.testing.assert_close(actual, expected)
    assert [t.numel() for t in rest] == [0, 0]
