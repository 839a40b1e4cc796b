"""`torch_scatter` against loops over its documented behaviour, and against the package where it is installed."""

from itertools import pairwise

import pytest
import torch

from pointpeft.compat import torch_scatter as ours

REDUCTIONS = {"sum": torch.sum, "add": torch.sum, "mul": torch.prod, "mean": torch.mean}
REDUCTIONS |= {"min": torch.amin, "max": torch.amax}
EMPTY = {"mul": 1}  # 0 otherwise
INDEX = torch.tensor([3, 0, 0, 3, 5, 0, 3])  # groups 1, 2 and 4 have no entry
INDPTR = torch.tensor([1, 1, 4, 6])  # the first segment is empty, places 0 and 6 are in none


def draw(*shape, generator, dtype=torch.float64):
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul(10).to(dtype)


def by_loop(src, index, dim, reduce, size):
    groups = []
    for group in range(size):
        rows = src.index_select(dim, (index == group).nonzero().flatten())
        if rows.shape[dim]:
            groups.append(REDUCTIONS[reduce](rows, dim))
        else:
            groups.append(torch.full_like(src.select(dim, 0), EMPTY.get(reduce, 0)))
    return torch.stack(groups, dim)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dim_size", [None, 9])
def test_scatter_is_a_loop_over_groups(reduce, dim, dim_size, generator):
    shape = [2, 4, 3]
    shape[dim] = len(INDEX)
    src = draw(*shape, generator=generator).requires_grad_()
    expected = by_loop(src, INDEX, dim % 3, reduce, dim_size or 6)
    actual = ours.scatter(src, INDEX, dim, dim_size=dim_size, reduce=reduce)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    a, e = (torch.autograd.grad(y, src, grad, retain_graph=True)[0] for y in (actual, expected))
    torch.testing.assert_close(a, e)


def test_an_index_in_the_shape_of_the_source(generator):
    src = draw(5, 4, generator=generator)
    index = torch.randint(3, (5, 4), generator=generator)
    expected = torch.stack([by_loop(row, i, 0, "sum", 3) for row, i in zip(src, index, strict=True)])
    torch.testing.assert_close(ours.scatter_sum(src, index, dim_size=3), expected)


def test_extremes_know_their_first_place():
    src = torch.tensor([2.0, 7.0, 7.0, torch.nan, 1.0, -torch.inf], requires_grad=True)
    values, places = ours.scatter_max(src, torch.tensor([0, 0, 0, 0, 2, 3]), dim_size=4)
    assert values.tolist() == [7.0, 0.0, 1.0, 0.0]  # NaN and -inf never win, a group without a winner has 0
    assert places.tolist() == [1, 6, 4, 6]
    values.sum().backward()
    assert src.grad.tolist() == [0, 1, 0, 0, 1, 0]
    values, places = ours.scatter_min(torch.tensor([3, 3, -2]), torch.tensor([1, 1, 1]))
    assert (values.tolist(), places.tolist()) == ([0, -2], [3, 2])


def test_out_is_written_in_place():
    src, index = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 0, 1])
    out = torch.tensor([10.0, 5.0])
    assert ours.scatter_sum(src, index, out=out) is out
    assert out.tolist() == [13.0, 11.0]
    out = torch.tensor([10.0, 5.0])
    values, places = ours.scatter_max(src, index, out=out)
    assert values is out
    assert (out.tolist(), places.tolist()) == ([10.0, 6.0], [3, 2])
    out = torch.tensor([2.0, 3.0])
    assert ours.scatter_mul(src, index, out=out) is out
    assert out.tolist() == [4.0, 18.0]


def test_means_of_integers_are_rounded_down():
    src, index = torch.tensor([1, 2, -1, -2]), torch.tensor([0, 0, 1, 1])
    assert ours.scatter_mean(src, index).tolist() == [1, -2]


def test_softmax_and_its_logarithm_over_groups(generator):
    src = draw(3, 7, generator=generator)
    soft, log = ours.scatter_softmax(src, INDEX), ours.scatter_log_softmax(src, INDEX)
    lse, std = ours.scatter_logsumexp(src, INDEX), ours.scatter_std(src, INDEX)
    for group in INDEX.unique():
        own = group == INDEX
        torch.testing.assert_close(soft[:, own], src[:, own].softmax(1))
        torch.testing.assert_close(log[:, own], src[:, own].log_softmax(1))
        torch.testing.assert_close(lse[:, group], src[:, own].logsumexp(1))
        if own.sum() > 1:
            torch.testing.assert_close(std[:, group], src[:, own].std(1), rtol=1e-5, atol=0)
    assert (lse[:, [1, 2, 4]] == -torch.inf).all()
    with pytest.raises(ValueError, match=r"src must be floating point, got torch\.int64"):
        ours.scatter_softmax(INDEX, INDEX)


@pytest.mark.parametrize("reduce", ["sum", "add", "mean", "min", "max"])
def test_segments_by_their_bounds(reduce, generator):
    src = draw(2, 7, 3, generator=generator).requires_grad_()
    bounds = torch.stack([INDPTR, torch.tensor([0, 3, 3, 7])])
    expected = []
    for row, ends in zip(src, bounds, strict=True):
        index = torch.full((7,), -1)
        for segment, (first, end) in enumerate(pairwise(ends)):
            index[first:end] = segment
        expected.append(by_loop(row, index, 0, reduce, 3))
    expected = torch.stack(expected)
    actual = ours.segment_csr(src, bounds, reduce=reduce)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    a, e = (torch.autograd.grad(y, src, grad)[0] for y in (actual, expected))
    torch.testing.assert_close(a, e)


def test_segments_are_gathered_back(generator):
    src = draw(3, 2, generator=generator).requires_grad_()
    actual = ours.gather_csr(src, torch.tensor([0, 2, 2, 5]))
    assert torch.equal(actual, src[[0, 0, 2, 2, 2]])
    assert torch.autograd.gradcheck(lambda x: ours.gather_csr(x, torch.tensor([0, 2, 2, 5])), src)
    index = torch.tensor([0, 0, 2])
    assert torch.equal(ours.gather_coo(src, index), src[index])
    assert torch.equal(ours.segment_coo(src, index, reduce="sum"), torch.stack([src[0] + src[1], 0 * src[0], src[2]]))
    values, places = ours.segment_max_coo(src, index)
    assert torch.equal(values[0], torch.maximum(src[0], src[1]))
    assert places.shape == values.shape


def test_nothing_is_reduced_to_nothing():
    nothing = torch.zeros(0, 3)
    assert ours.scatter_sum(nothing, torch.zeros(0, dtype=torch.int64), 0).shape == (0, 3)
    values, places = ours.scatter_max(nothing, torch.zeros(0, dtype=torch.int64), 0, dim_size=2)
    assert (values.tolist(), places.tolist()) == ([[0.0] * 3] * 2, [[0] * 3] * 2)


def test_an_unknown_reduction_is_named():
    with pytest.raises(ValueError, match="reduce must be one of sum, add, mean, min, max, got 'mul'"):
        ours.segment_csr(torch.ones(3), torch.tensor([0, 3]), reduce="mul")


@pytest.mark.parametrize("name", ours.__all__)
def test_equals_the_package(name, generator):
    theirs = pytest.importorskip("torch_scatter")
    index, indptr = INDEX.sort().values, torch.tensor([0, 0, 3, 7])
    second = indptr if name.endswith("csr") else index
    rows = 3 if name == "gather_csr" else 7
    src = draw(rows, 4, generator=generator, dtype=torch.float32).requires_grad_()
    if name.startswith("scatter"):
        src = src.detach().T.contiguous().requires_grad_()
    expected, actual = (getattr(module, name)(src, second) for module in (theirs, ours))
    torch.testing.assert_close(actual, expected)
    a, e = (y[0] if isinstance(y, tuple) else y for y in (actual, expected))
    a, e = (torch.autograd.grad(y.nan_to_num(neginf=0).sum(), src)[0] for y in (a, e))
    torch.testing.assert_close(a, e)
