"""What the fuzzer of the operations found, one test each."""

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pointpeft import ops
from pointpeft.ops.core.library import use_fused_reference
from tests.ops.frozen.fused import assert_all_close, draw, results


@pytest.fixture(params=["auto", "reference"])
def backend(request, monkeypatch):
    monkeypatch.setenv("POINTPEFT_BACKEND", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_reads_channels_that_are_not_side_by_side(dtype, generator):
    # The fused attention of the CPU took memory that is not the tensor's for values.
    z, scale, shift = draw(generator, 2, 9, 27), draw(generator, 27), draw(generator, 27)
    columns = z.to(dtype).transpose(1, 2).contiguous().transpose(1, 2)
    weights, grad = [scale.to(dtype), shift.to(dtype)], draw(generator, 2, 9, 9)
    mine = results(lambda z, *t: ops.attention(z, 3, *t), [columns, *weights], grad.to(dtype))
    exact = results(lambda z, *t: ops.attention_reference(z, 3, *t), [t.double() for t in (columns, *weights)], grad)
    rough = results(lambda z, *t: ops.attention_reference(z, 3, *t), [columns, *weights], grad.to(dtype))
    assert_all_close(mine, exact, dtype, rough)


@pytest.mark.parametrize("shape", [(2, 0, 12), (0, 5, 12), (0, 0, 12)])
def test_attention_over_nothing_is_empty(shape, generator):
    # Without tokens the fused attention divided by zero and ended the process.
    z, scale, shift = torch.zeros(shape), draw(generator, 12).float(), draw(generator, 12).float()
    out, *grads = results(lambda z, *t: ops.attention(z, 2, *t), [z, scale, shift], torch.zeros(*shape[:2], 4))
    assert out.shape == (*shape[:2], 4)
    assert [g.shape for g in grads] == [z.shape, scale.shape, shift.shape]
    assert not grads[1].any()
    assert not grads[2].any()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("heads", [1.5, None, True])
def test_attention_refuses_a_number_of_heads_that_is_none(heads):
    with pytest.raises(ValueError, match=f"num_heads must be an int, got {heads!r}"):
        ops.attention(torch.zeros(1, 2, 12), heads, torch.ones(12), torch.zeros(12))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_the_adapter_refuses_tokens_without_channels(dropout_p):
    weights = ops.AdapterWeights(*map(torch.zeros, [(0,), (0,), (1, 0), (1,), (4, 0), (4,), (0, 4), (0,)]))
    with pytest.raises(ValueError, match="x must have channels"):
        ops.adapter(torch.zeros(2, 3, 0), weights, dropout_p=dropout_p)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout_p": None}, "dropout_p must be at least 0 and below 1, got None"),
        ({"eps": "3"}, "eps must be a finite number of at least 0, got '3'"),
        ({"down_weight": [[1.0]]}, "down_weight must be a tensor, got list"),
    ],
)
def test_the_adapter_names_an_argument_of_another_kind(change, message):
    weights = ops.AdapterWeights(*map(torch.zeros, [(4,), (4,), (1, 4), (1,), (1, 4), (1,), (4, 1), (4,)]))
    options = {name: change[name] for name in change.keys() - set(weights._fields)}
    weights = weights._replace(**{name: change[name] for name in change.keys() & set(weights._fields)})
    with pytest.raises(ValueError, match=re.escape(message)):
        ops.adapter(torch.zeros(1, 2, 4), weights, **options)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("empty", [0, 1, 2, 3])
def test_patch_embed_refuses_a_layer_without_rows(empty):
    widths = [4, 5, 6, 7]
    widths[empty] = 0
    h1, h2, h3, c = widths
    shapes = [(h1, 3), (h1,), (h2, h1), (h2,), (h3, 2 * h2), (h3,), (c, h3), (c,)]
    weights = ops.PatchEmbedWeights(*(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match=f"w{empty + 1} must have at least one row"):
        ops.patch_embed(torch.zeros(1, 2, 3, 3), weights)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w1": torch.zeros(4)}, "w1 must have 2 dimensions, got shape (4,)"),
        ({"b2": [0.0]}, "b2 must be a tensor, got list"),
        ({"w3": torch.zeros(6, 10, dtype=torch.complex64)}, "w3 must be float32, float64, float16 or bfloat16"),
        ({"w3": torch.zeros(6, 9)}, "w3 must have shape (6, 10), got (6, 9)"),
        ({"eps1": "3"}, "eps1 must be a finite number of at least 0, got '3'"),
    ],
)
def test_patch_embed_statistics_names_a_wrong_weight(change, message):
    sizes = {"w1": (4, 3), "b1": (4,), "gamma1": (4,), "beta1": (4,)}
    sizes |= {"w2": (5, 4), "b2": (5,), "w3": (6, 10), "b3": (6,)}
    arguments = {name: torch.zeros(shape) for name, shape in sizes.items()} | {"eps1": 1e-5} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        ops.patch_embed_statistics(torch.ones(1, 2, 3, 3), **arguments)


def test_the_reference_of_patch_embed_statistics_measures_short_types_in_float32(generator):
    shapes = [(1, 2, 3, 3), (4, 3), (4,), (4,), (4,), (5, 4), (5,), (6, 10), (6,)]
    patches, w1, b1, gamma1, beta1, *rest = (draw(generator, *shape).bfloat16() for shape in shapes)
    arguments = (patches, w1, b1, gamma1, beta1, 1e-5, *rest)
    mine, reference = ops.patch_embed_statistics(*arguments), ops.patch_embed_statistics_reference(*arguments)
    for m, r in zip(mine, reference, strict=True):
        torch.testing.assert_close(m, r, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("backend")
def test_padding_may_hold_anything_for_the_reference_too(generator):
    xyz = torch.rand(2, 9, 3, generator=generator)
    lengths = torch.tensor([6, 9])
    poisoned = xyz.clone()
    poisoned[0, 6:] = torch.nan
    for op in (
        lambda p: ops.knn(xyz, p, 4, lengths=lengths)[1],
        lambda p: ops.furthest_point_sample(p, 6, lengths=lengths),
        lambda p: ops.sample_and_group(p, 3, 4, lengths=lengths).patches,
    ):
        assert torch.equal(op(poisoned), op(xyz))
    poisoned[0, 5] = torch.inf
    with pytest.raises(ValueError, match="support must be finite"):
        ops.knn(xyz, poisoned, 4, lengths=lengths)


@pytest.mark.usefixtures("backend")
def test_a_search_without_queries_looks_at_its_points_all_the_same():
    nothing, points = torch.zeros(1, 0, 3), torch.tensor([[[0.0, 1, 2], [0, torch.nan, 1]]])
    for search in (lambda: ops.knn(nothing, points, 1), lambda: ops.ball_query(nothing, points, 1.0, 1)):
        with pytest.raises(ValueError, match="support must be finite"):
            search()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_sq_norm": "3"}, "min_sq_norm must be at least 0, got '3'"),
        ({"min_sq_norm": None}, "min_sq_norm must be at least 0, got None"),
        ({"start": None}, "start must be an int or an int64 tensor, got NoneType"),
        ({"start": "3"}, "start must be an int or an int64 tensor, got str"),
    ],
)
def test_sampling_names_an_option_of_another_kind(change, message):
    for op in (ops.furthest_point_sample, lambda x, k, **options: ops.sample_and_group(x, k, 1, **options)):
        with pytest.raises(ValueError, match=re.escape(message)):
            op(torch.zeros(1, 4, 3), 2, **change)


@pytest.mark.usefixtures("backend")
def test_weights_for_a_mode_that_takes_none_may_be_of_any_kind():
    with pytest.raises(ValueError, match="weights must be None for mode 'max', got int"):
        ops.aggregate_neighbors(torch.zeros(1, 4, 2), torch.zeros(1, 1, 1, dtype=torch.int64), "max", 0)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"bias": torch.zeros(4, dtype=torch.int64)},
            "bias must be float32, float64, float16 or bfloat16, got torch.int",
        ),
        ({"scale": torch.zeros(4).half()}, "scale is torch.float16, but x is torch.float32"),
    ],
)
def test_layer_norm_names_a_weight_of_another_dtype(change, message):
    weights = {name: torch.ones(4) for name in ("weight", "bias", "scale", "shift")} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        ops.layer_norm(torch.zeros(2, 4), **weights)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shift": torch.zeros(4, device="meta")}, "shift is on meta, but x is on cpu"),
        ({"x": torch.zeros(2, 4, device="meta")}, "weight is on cpu, but x is on meta"),
    ],
)
def test_layer_norm_names_a_weight_on_another_device(change, message):
    tensors = {"x": torch.zeros(2, 4)} | {name: torch.ones(4) for name in ("weight", "bias", "scale", "shift")}
    with pytest.raises(ValueError, match=message):
        ops.layer_norm(**(tensors | change))


@pytest.mark.usefixtures("backend")
def test_operations_name_a_weight_on_another_device_than_x():
    with pytest.raises(ValueError, match="scale is on cpu, but x is on meta"):
        ops.scale_shift(torch.zeros(2, 4, device="meta"), torch.ones(4), torch.ones(4))
    shapes = [(1, 2, 3, 3), (4, 3), (4,), (4,), (4,), (5, 4), (5,), (6, 10), (6,)]
    patches, w1, b1, gamma1, beta1, w2, b2, w3, b3 = (torch.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match="w3 is on meta, but patches is on cpu"):
        ops.patch_embed_statistics(patches, w1, b1, gamma1, beta1, 1e-5, w2, b2, w3.to("meta"), b3)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("name", "given"), [("norm", None), ("weights", 3), ("adapter", ())])
def test_the_frozen_mlp_names_weights_that_are_none(name, given):
    ones = torch.ones(4)
    arguments = {"weights": ops.MlpWeights(*[ones] * 8), "adapter": ops.AdapterWeights(*[ones] * 8)}
    arguments |= {"norm": ops.NormWeights(ones, ones), name: given}
    with pytest.raises(ValueError, match=rf"{name} must be \w+Weights\(.*\), got (tuple|NoneType|int)"):
        ops.frozen_mlp(torch.zeros(1, 2, 4), **arguments)


def test_operations_that_switch_autocast_off_trace_tensors_without_values():
    xyz, features = torch.zeros(2, 5, 3, device="meta"), torch.zeros(2, 5, 7, device="meta")
    assert ops.interpolate(xyz, xyz, features, "all").shape == (2, 5, 7)
    shapes = [(1, 2, 3, 3), (4, 3), (4,), (4,), (4,), (5, 4), (5,), (6, 10), (6,)]
    patches, w1, b1, gamma1, beta1, *rest = (torch.ones(shape, device="meta") for shape in shapes)
    moments = ops.patch_embed_statistics(patches, w1, b1, gamma1, beta1, 1e-5, *rest)
    assert [moment.shape for moment in moments] == [(4,), (4,), (6,), (6,)]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("wide", ["weight", "bias", "scale", "shift"])
def test_layer_norm_takes_one_weight_of_float32_beside_short_ones(wide, generator):
    names = ("weight", "bias", "scale", "shift")
    weights = {name: draw(generator, 6).to(torch.float32 if name == wide else torch.bfloat16) for name in names}
    x = draw(generator, 3, 6).bfloat16()
    y = ops.layer_norm(x, **weights)
    exact = ops.layer_norm_reference(x.double(), **{name: w.double() for name, w in weights.items()})
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=0.03, atol=0.03)


@pytest.mark.usefixtures("backend")
def test_frozen_linear_names_a_weight_that_is_no_tensor():
    with pytest.raises(ValueError, match="weight must be a tensor, got NoneType"):
        ops.frozen_linear(torch.zeros(1), None)


@pytest.mark.usefixtures("backend")
def test_patch_embed_names_a_weight_that_is_no_tensor():
    shapes = [(4, 3), (4,), (5, 4), (5,), (6, 10), (6,), (7, 6), (7,)]
    weights = ops.PatchEmbedWeights(*(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match="w1 must be a tensor, got list"):
        ops.patch_embed(torch.zeros(1, 2, 3, 3), weights._replace(w1=[[0.0]]))


def test_an_adapter_over_no_clouds_has_zero_gradients(generator):
    # The prompt's gradient was refused, as zero clouds divide nothing.
    sizes = [(12,), (12,), (1, 12), (1,), (4, 12), (4,), (12, 4), (12,)]
    weights = [draw(generator, *size).float().requires_grad_() for size in sizes]
    x = torch.zeros(0, 5, 12, requires_grad=True)
    a, prompt = ops.adapter(x, ops.AdapterWeights(*weights), with_prompt=True)
    assert a.shape == (0, 5, 12)
    assert prompt.shape == (0, 12)
    for weight, grad in zip(weights, torch.autograd.grad(a.sum() + prompt.sum(), weights), strict=True):
        assert grad.shape == weight.shape
        assert not grad.any()


def test_no_rows_may_have_any_strides():
    x = torch.empty_strided((0, 32), (134, 2))
    assert ops.scale_shift(x, torch.ones(32), torch.zeros(32)).shape == (0, 32)


def test_the_gradients_of_short_norms_are_summed_in_float32():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 8, generator=generator).bfloat16()
    weights = [(torch.rand(8, generator=generator) + 0.5).bfloat16().requires_grad_() for _ in range(4)]
    grad = torch.rand(4096, 8, generator=generator).bfloat16()
    double = [tensor.detach().double().requires_grad_() for tensor in weights]
    got = torch.autograd.grad(ops.layer_norm(x, *weights), weights, grad)
    exact = torch.autograd.grad(ops.layer_norm_reference(x.double(), *double), double, grad.double())
    for g, e in zip(got, exact, strict=True):  # two roundings, and those of the normalised values
        assert (g.double() - e).norm() < 0.01 * e.norm()


def test_a_search_of_many_channels_lets_padding_hold_anything():
    query, support = torch.rand(1, 2, 17), torch.rand(1, 7, 17)
    support[0, 4:] = torch.nan
    lengths = torch.tensor([4])
    expected = ops.knn(query, support[:, :4], 2)
    for got, needed in zip(ops.knn(query, support, 2, lengths=lengths), expected, strict=True):
        torch.testing.assert_close(got, needed)
    support[0, 3] = torch.nan
    with pytest.raises(ValueError, match="support must be finite"):
        ops.knn(query, support, 2, lengths=lengths)


def test_float64_on_cuda_takes_the_reference(monkeypatch):
    # The Triton kernels rounded it to float32.
    monkeypatch.setattr("pointpeft.ops.core.triton_launch.available", lambda: True)
    with FakeTensorMode():
        double, single = (torch.empty(2, device="cuda", dtype=dtype) for dtype in (torch.float64, torch.float32))
        assert use_fused_reference(double)
        assert not use_fused_reference(single)


def test_rows_without_channels_are_gathered():
    # Their copy was one between null pointers, which only a sanitizer sees.
    idx = torch.zeros(2, 3, dtype=torch.int64)
    assert ops.gather(torch.empty(2, 4, 0), idx).shape == (2, 3, 0)
    with pytest.raises(ValueError, match="idx must be between 0 and N - 1 = 3, got 4"):
        ops.gather(torch.empty(2, 4, 0), idx + 4)


def test_thousands_of_points_with_one_nearest_are_summed_to_the_last_digit(generator):
    # Their steps were summed in float32, one after the other: off by 3e-5 of the gradient.
    a = torch.randn(1, 5, 3, generator=generator)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        points = a.detach().to(dtype).requires_grad_()
        ops.chamfer_distance(points, torch.zeros(1, 5000, 3, dtype=dtype)).backward()
        gradients.append(points.grad.double())
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-6 * gradients[1].abs().max()
