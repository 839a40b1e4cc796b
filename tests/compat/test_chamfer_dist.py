import pytest
import torch

from pointpeft.compat.chamfer_dist import (
    ChamferDistanceL1,
    ChamferDistanceL2,
    ChamferDistanceL2_split,
    ChamferFunction,
)


@pytest.fixture
def pair(generator):
    return torch.randn(3, 20, 3, generator=generator), torch.randn(3, 30, 3, generator=generator) + 0.1


def nearest(a, b):
    squared = (a[:, :, None] - b[:, None]).square().sum(-1)
    return squared.amin(2), squared.amin(1)


DEFINITIONS = [
    (ChamferDistanceL1, lambda one, two: (one.sqrt().mean() + two.sqrt().mean()) / 2),
    (ChamferDistanceL2, lambda one, two: one.mean() + two.mean()),
    (ChamferDistanceL2_split, lambda one, two: torch.stack([one.mean(), two.mean()])),
]


@pytest.mark.parametrize(("loss", "definition"), DEFINITIONS)
def test_losses_and_gradients_are_those_of_the_definition(loss, definition, pair, device):
    a, b = (points.to(device).requires_grad_() for points in pair)
    expected, found = definition(*nearest(a, b)), loss()(a, b)
    if isinstance(found, tuple):
        found = torch.stack(found)
    torch.testing.assert_close(found, expected)
    weight = torch.arange(1.0, 1 + found.numel(), device=device).view_as(found)
    gradients = [torch.autograd.grad((value * weight).sum(), [a, b]) for value in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_function_gives_both_distances_per_point(pair):
    one, two = ChamferFunction.apply(*pair)
    expected = nearest(*pair)
    torch.testing.assert_close(one, expected[0])
    torch.testing.assert_close(two, expected[1])


@pytest.mark.parametrize("loss", [ChamferDistanceL1, ChamferDistanceL2])
def test_padding_at_the_origin_is_left_out_of_single_clouds_with_ignore_zeros(loss, pair):
    a, b = (points[:1] for points in pair)
    padded = torch.cat([a, torch.zeros(1, 5, 3)], 1)
    torch.testing.assert_close(loss(ignore_zeros=True)(padded, b), loss()(a, b))
    assert loss()(padded, b) != loss()(a, b)
    a, b = pair
    padded = torch.cat([a, torch.zeros(3, 5, 3)], 1)  # of a batch, as published, it is not
    assert torch.equal(loss(ignore_zeros=True)(padded, b), loss()(padded, b))


def test_coincident_points_give_no_nan(pair):
    a = pair[0].clone().requires_grad_()
    ChamferDistanceL1()(a, pair[0]).backward()
    assert torch.equal(a.grad, torch.zeros_like(a))
