import pytest
import torch

from pointpeft.tasks.batches import Clouds, draw, fit, spread
from tests.clouds import FakeDataset


def rows(points):
    return {tuple(p) for p in points.tolist()}


@pytest.mark.parametrize("sizes", [[10] * 7, [10, 25, 10, 13, 40, 11, 10], [3, 10, 40]])
def test_an_epoch_deals_every_cloud_once_with_its_own_points(sizes):
    clouds = Clouds(FakeDataset(sizes), num_points=10)
    batches = clouds.batches(3, torch.Generator().manual_seed(0))
    seen = []
    for points, labels in batches:
        assert points.shape == (len(labels), 10, 3)
        for cloud, label in zip(points, labels, strict=True):
            owner = next(i for i, kept in enumerate(clouds.points) if rows(cloud) <= rows(kept))
            assert clouds.labels[owner] == label
            assert len(rows(cloud)) == min(10, sizes[owner])  # no point twice while there are enough
            seen.append(owner)
    assert sorted(seen) == list(range(len(sizes)))
    sizes_of_batches = [len(labels) for _, labels in batches]
    assert max(sizes_of_batches) - min(sizes_of_batches) <= 1
    assert max(sizes_of_batches) <= 3


def test_batches_depend_on_the_generator_alone():
    clouds = Clouds(FakeDataset([30] * 9), num_points=10)

    def epoch(seed):
        return torch.cat([points for points, _ in clouds.batches(4, torch.Generator().manual_seed(seed))])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))


@pytest.mark.parametrize("sizes", [[12] * 11, [5, 12, 30] * 4])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_of_one(sizes, world):
    clouds = Clouds(FakeDataset(sizes), num_points=10)
    whole = list(clouds.batches(4, torch.Generator().manual_seed(5)))
    parts = [list(clouds.batches(4, torch.Generator().manual_seed(5), rank, world)) for rank in range(world)]
    for (points, labels), *shares in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([part for part, _ in shares]), points)
        assert torch.equal(torch.cat([part for _, part in shares]), labels)
        counts = [len(part) for _, part in shares]
        assert max(counts) - min(counts) <= 1


def test_a_batch_smaller_than_the_processes_is_refused():
    clouds = Clouds(FakeDataset([12] * 7), num_points=10)
    with pytest.raises(ValueError, match=r"batch_size must give each of 4 processes a cloud.* got a batch of 3"):
        clouds.batches(4, torch.Generator(), 0, 4)


def test_fixed_clouds_depend_on_no_other_cloud():
    sizes = [40, 5, 10, 13]
    together = Clouds(FakeDataset(sizes), num_points=10).fixed()
    for i in range(len(sizes)):
        assert torch.equal(Clouds(FakeDataset(sizes), 10, [i]).fixed()[0], together[i])


def test_fit_spread_and_draw():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(50, 3, generator=generator)
    assert spread(points, 50) is points
    assert rows(spread(points, 7)) <= rows(points)
    assert len(rows(fit(points, 7))) == 7
    assert rows(fit(points[:4], 9)) == rows(points[:4])
    assert torch.equal(fit(points[:4], 9), fit(points[:4], 9))
    assert len(rows(draw(points, 20, generator))) == 20


def test_subset_keeps_names_labels_and_points_together():
    clouds = Clouds(FakeDataset([10] * 6), num_points=10)
    part = clouds.subset([4, 1])
    assert part.names == ["cloud 4", "cloud 1"]
    assert part.labels.tolist() == [0, 1]
    assert part.points[0] is clouds.points[4]


def test_too_small_a_cloud_is_named():
    clouds = Clouds(FakeDataset([40, 3, 40]), num_points=32)
    with pytest.raises(ValueError, match=r"cloud 1 has 3 points, at least 32 are needed"):
        clouds.require_points(32, "group_size = 32 neighbours")


def test_no_clouds_is_an_error():
    with pytest.raises(ValueError, match="no clouds"):
        Clouds(FakeDataset([]), num_points=8)


def test_thinned_clouds_are_a_part_of_what_is_evaluated():
    clouds = Clouds(FakeDataset([40, 60, 5]), num_points=20)
    assert torch.equal(clouds.thinned(20, seed=0).fixed(), clouds.fixed())
    thin = clouds.thinned(7, seed=0)
    assert thin.fixed().shape == (3, 7, 3)
    for few, many in zip(thin.fixed(), clouds.fixed(), strict=True):
        assert all((many == point).all(1).any() for point in few)
    assert not torch.equal(clouds.thinned(7, seed=1).fixed(), thin.fixed())
    assert torch.equal(thin.labels, clouds.labels)
