import itertools

import pytest
import torch

from pointpeft.compat.emd import approximate_match, earth_mover_distance, emdModule


def least(a, b):
    """The least mean distance over all bijections, by trying them."""
    distance = torch.cdist(a.double(), b.double())
    rows = torch.arange(len(a))
    return min(float(distance[rows, list(order)].mean()) for order in itertools.permutations(range(len(a))))


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_the_auction_comes_within_eps_of_the_best_bijection(n, generator, device):
    a, b = torch.rand(2, 4, n, 3, generator=generator)
    dist, assignment = emdModule()(a.to(device), b.to(device), 0.002, 10000)
    assert dist.shape == assignment.shape == (4, n)
    assert assignment.dtype == torch.int32
    for cloud in range(4):
        assert sorted(assignment[cloud].tolist()) == list(range(n))
        found, best = float(dist[cloud].sqrt().mean()), least(a[cloud], b[cloud])
        assert best - 1e-6 <= found <= best + 0.002 + 1e-6


def test_a_shuffled_copy_is_matched_point_by_point(generator):
    a = torch.rand(2, 200, 3, generator=generator)
    order = torch.stack([torch.randperm(200, generator=generator) for _ in range(2)])
    b = torch.empty_like(a).scatter_(1, order[..., None].expand(-1, -1, 3), a)
    dist, assignment = emdModule()(a, b, 1e-4, 10000)
    assert torch.equal(assignment.long(), order)
    assert torch.equal(dist, torch.zeros_like(dist))


def test_in_the_last_round_every_bid_is_granted():
    a = torch.tensor([[[0.0, 0, 0], [0.1, 0, 0], [1, 1, 1]]])
    b = torch.tensor([[[0.0, 0, 0], [0.9, 1, 1], [1, 1, 1]]])
    _, assignment = emdModule()(a, b, 0.005, 1)
    assert assignment.tolist() == [[0, 0, 2]]  # nearest points, shared


def test_distances_are_squared_and_differentiable_in_the_first_cloud(generator):
    a, b = torch.rand(2, 3, 20, 3, generator=generator)
    a.requires_grad_()
    dist, assignment = emdModule()(a, b, 0.005, 50)
    offset = a - b.gather(1, assignment.long()[..., None].expand(-1, -1, 3))
    torch.testing.assert_close(dist, offset.square().sum(-1))
    dist.sum().backward()
    torch.testing.assert_close(a.grad, 2 * offset.detach())


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((1, 4, 3), (1, 5, 3)), (0.005, 50), r"one shape .* got \(1, 4, 3\) and \(1, 5, 3\)"),
        (((1, 4, 3), (1, 4, 3)), (0.0, 50), "eps must be greater than 0, got 0.0"),
        (((1, 4, 3), (1, 4, 3)), (0.005, 0), "iters must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        emdModule()(*(torch.zeros(shape) for shape in shapes), *options)


def test_no_cloud_gives_no_distance():
    dist, assignment = emdModule()(torch.zeros(0, 5, 3), torch.zeros(0, 5, 3), 0.005, 50)
    assert dist.shape == assignment.shape == (0, 5)


@pytest.mark.parametrize(("n", "m"), [(30, 30), (40, 20), (20, 40)])
def test_the_soft_match_sends_all_mass_once(n, m, generator):
    a, b = torch.rand(2, n, 3, generator=generator), torch.rand(2, m, 3, generator=generator)
    match = approximate_match(a, b)
    assert match.shape == (2, m, n)
    assert (match >= 0).all()
    sent, received = match.sum(1), match.sum(2)
    # At level 0 all that is left is spread evenly, so nothing stays behind but rounding.
    torch.testing.assert_close(sent, torch.full_like(sent, max(m // n, 1)), rtol=0, atol=2e-3)
    torch.testing.assert_close(received, torch.full_like(received, max(n // m, 1)), rtol=0, atol=2e-3)


def test_two_points_far_apart_cost_what_the_crossing_costs():
    # The example of the extension's own test: each point's partner is the other index.
    a = torch.tensor([[[1.7, -0.1, 0.1], [0.1, 1.2, 0.3]]], requires_grad=True)
    b = torch.tensor([[[0.3, 1.8, 0.2], [1.2, -0.2, 0.3]]], requires_grad=True)
    cost = earth_mover_distance()(a, b)
    expected = (a - b.flip(1)).square().sum(-1).mean()
    torch.testing.assert_close(cost, expected, rtol=1e-3, atol=0)
    for ours, theirs in zip(*(torch.autograd.grad(value, [a, b]) for value in (cost, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-3)
