import pytest
import torch

from pointpeft.tasks.classification.metrics import measure


def test_metrics_of_a_case_counted_by_hand():
    labels = torch.tensor([0, 0, 0, 1, 1, 3])
    predicted = torch.tensor([0, 0, 1, 1, 0, 3])
    logits = torch.nn.functional.one_hot(predicted, 4).float()
    metrics = measure(logits, labels)
    assert metrics.overall_accuracy == pytest.approx(4 / 6)
    assert metrics.mean_class_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)  # class 2 has no cloud
    assert metrics.confusion.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    each = metrics.per_class(("a", "b", "c", "d"))
    assert each["a"] == {"accuracy": 0.6667, "clouds": 3}
    assert each["c"] == {"accuracy": None, "clouds": 0}


@pytest.mark.parametrize("classes", [2, 5])
def test_accuracy_and_confusion_agree_on_random_logits(classes, generator):
    logits = torch.randn(101, classes, generator=generator)
    labels = torch.randint(classes, (101,), generator=generator)
    metrics = measure(logits, labels)
    assert metrics.overall_accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics.confusion.sum() == 101
    rates = metrics.confusion.diagonal() / metrics.confusion.sum(1)
    assert metrics.mean_class_accuracy == pytest.approx(rates.mean().item())
