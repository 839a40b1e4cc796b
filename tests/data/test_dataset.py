import pickle

import pytest
import torch

from pointpeft.data import DataError, PointCloudDataset


@pytest.fixture
def dataset(generator):
    clouds = [torch.randn(n, 3, generator=generator) for n in (5, 1, 7, 3)]
    return PointCloudDataset(clouds, [0, 2, 1, 2], ("a", "b", "c"), ["p", "q", "r", "s"], up_axis="y", notes=["n"])


def test_an_item_is_a_float32_cloud_of_its_own_size_and_an_int_label(dataset):
    assert len(dataset) == 4
    for i, size in enumerate((5, 1, 7, 3)):
        points, label = dataset[i]
        assert points.shape == (size, 3)
        assert points.dtype == torch.float32
        assert label == dataset.labels[i]
        assert type(label) is int
    assert torch.equal(dataset[-1][0], dataset[3][0])
    assert [label for _, label in dataset] == [0, 2, 1, 2]  # iteration ends


def test_a_tensor_of_any_float_dtype_serves_as_clouds():
    clouds = torch.arange(24.0).reshape(2, 4, 3).half()
    dataset = PointCloudDataset(clouds, torch.tensor([[1], [0]], dtype=torch.uint8), ("a", "b"))
    assert dataset[1][0].dtype == torch.float32
    assert torch.equal(dataset[1][0], clouds[1].float())
    assert dataset.labels.tolist() == [1, 0]
    assert dataset.names == ["cloud 0", "cloud 1"]


def test_a_subset_keeps_order_names_labels_classes_axis_and_notes(dataset):
    part = dataset.subset(torch.tensor([3, 0]))
    assert part.names == ["s", "p"]
    assert part.labels.tolist() == [2, 0]
    assert (part.classes, part.up_axis, part.notes) == (dataset.classes, "y", ("n",))
    assert torch.equal(part[0][0], dataset[3][0])
    assert torch.equal(part.subset([1])[0][0], dataset[0][0])
    assert len(dataset.subset([])) == 0


@pytest.mark.parametrize("index", [4, -5])
def test_an_index_out_of_bounds_is_refused(dataset, index):
    with pytest.raises(IndexError):
        dataset[index]
    with pytest.raises(IndexError):
        dataset.subset([index])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": [0]}, "labels must be as many as the clouds, 2, got 1"),
        ({"labels": [0, 2]}, "labels must be between 0 and 1"),
        ({"labels": [-1, 0]}, "got -1 to 0"),
        ({"names": ["one"]}, "names must be as many as the labels, 2, got 1"),
        ({"up_axis": "w"}, "up_axis must be"),
    ],
)
def test_what_does_not_agree_is_refused(changes, words):
    arguments = {"clouds": torch.zeros(2, 4, 3), "labels": [0, 1], "classes": ("a", "b")} | changes
    with pytest.raises(DataError, match=words):
        PointCloudDataset(**arguments)


def test_a_subset_serves_worker_processes(dataset):
    part = pickle.loads(pickle.dumps(dataset.subset([2, 1])))
    assert torch.equal(part[0][0], dataset[2][0])
