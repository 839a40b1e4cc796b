import pytest
import torch

from pointpeft.tasks.parts.metrics import measure_parts, predicted_parts

PARTS_OF = ((0, 1), (2, 3, 4))


def test_iou_by_hand():
    true = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 3]])
    said = torch.tensor([[0, 1, 1, 1], [2, 2, 2, 2]])
    metrics = measure_parts(said, true, torch.tensor([4, 4]), torch.tensor([0, 1]), PARTS_OF, 0.5)
    first = (1 / 2 + 2 / 3) / 2
    second = (3 / 4 + 0 + 1) / 3  # part 4 is neither there nor predicted: 1 by convention
    assert metrics.cloud_iou.tolist() == pytest.approx([first, second])
    assert metrics.instance_miou == pytest.approx((first + second) / 2)
    assert metrics.accuracy == pytest.approx(6 / 8)
    assert metrics.per_class(("a", "b", "c"))["c"] == {"miou": None, "clouds": 0}


def test_categories_weigh_alike_in_the_class_mean():
    true = torch.zeros(4, 2, dtype=torch.int64)
    true[3] = 2
    said = true.clone()
    said[3] = 3
    metrics = measure_parts(said, true, torch.full((4,), 2), torch.tensor([0, 0, 0, 1]), PARTS_OF, 0.0)
    assert metrics.instance_miou == pytest.approx((3 + 1 / 3) / 4)
    assert metrics.class_miou == pytest.approx((1 + 1 / 3) / 2)


def test_repeated_points_count_once():
    true, said = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 0]])
    metrics = measure_parts(said, true, torch.tensor([2]), torch.tensor([0]), PARTS_OF, 0.0)
    assert (metrics.instance_miou, metrics.accuracy) == (1.0, 1.0)


def test_parts_of_other_categories_are_never_predicted():
    logits = torch.zeros(2, 1, 5)
    logits[..., 4] = 9.0
    logits[..., 1] = 1.0
    allowed = torch.tensor([[True, True, False, False, False], [False, False, True, True, True]])
    assert predicted_parts(logits, torch.tensor([0, 1]), allowed).tolist() == [[1], [4]]
