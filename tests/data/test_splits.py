import pytest
import torch

from pointpeft.data.splits import split_validation


@pytest.mark.parametrize("fraction", [0.01, 0.15, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("sizes", [[40, 40], [3] * 10, [1, 1, 1], [100, 1, 7, 2], [5]])
def test_held_out_and_kept_are_a_partition_and_every_class_keeps_one(sizes, fraction):
    labels = torch.cat([torch.full((n,), 3 * i) for i, n in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    train, val = split_validation(labels, fraction, seed=0)
    assert train.dtype == val.dtype == torch.int64
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(len(labels)))
    assert torch.equal(train, train.sort().values)
    assert set(labels[train].tolist()) == set(labels.tolist())
    assert len(val) <= round(fraction * len(labels))
    if all(n * (1 - fraction) >= 1 for n in sizes):
        assert len(val) == round(fraction * len(labels))
    for i, n in enumerate(sizes):
        share = (labels[val] == 3 * i).sum()
        assert abs(share - min(fraction * n, n - 1)) <= 1


def test_small_classes_together_give_their_share():
    labels = torch.arange(10).repeat(3)
    _, val = split_validation(labels, 0.15, seed=0)
    assert len(val) == 4  # 0.45 of a cloud per class: rounding class by class would hold out none


def test_the_seed_decides():
    labels = torch.arange(4).repeat_interleave(25)
    parts = [split_validation(labels, 0.2, seed)[1] for seed in (0, 0, 1)]
    assert torch.equal(parts[0], parts[1])
    assert not torch.equal(parts[0], parts[2])


def test_no_class_is_favoured_by_its_number():
    labels = torch.arange(5).repeat(3)  # 15 clouds, 2 held out
    held = torch.cat([labels[split_validation(labels, 0.15, seed)[1]] for seed in range(200)])
    assert held.bincount(minlength=5).min() > 45  # 80 expected, standard deviation 7


def test_no_clouds_give_no_parts():
    train, val = split_validation(torch.empty(0, dtype=torch.int64), 0.2, 0)
    assert len(train) == len(val) == 0


@pytest.mark.parametrize(
    ("labels", "fraction", "words"), [([0], 0.0, "fraction"), ([0], 1, "fraction"), ([[0]], 0.2, "labels")]
)
def test_bad_arguments_are_refused(labels, fraction, words):
    with pytest.raises(ValueError, match=words):
        split_validation(torch.tensor(labels), fraction, 0)
