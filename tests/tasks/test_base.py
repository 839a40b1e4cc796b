import pytest

from pointpeft.model import TASKS
from pointpeft.tasks import base
from pointpeft.tasks.base import create_task, register_task, task_class
from pointpeft.tasks.classification.task import Classification


@pytest.mark.parametrize("name", TASKS)
def test_every_task_of_a_model_is_registered_and_whole(name):
    task = create_task(name)
    assert task.name == name
    assert len(task.columns) == 2
    assert set(task.columns) <= set(task.numbers)


def test_a_task_of_ones_own_is_found_by_its_name(monkeypatch):
    monkeypatch.setattr(base, "_TASKS", dict(base._TASKS))

    @register_task
    class Orientation(Classification):
        name = "orientation"
        hub_tag = "point-cloud-orientation"

        def __init__(self, bins: int = 8):
            self.bins = bins

    assert task_class("orientation") is Orientation
    assert create_task("orientation", bins=4).bins == 4
    with pytest.raises(ValueError, match="turns is no option of orientation"):
        create_task("orientation", turns=2)


def test_a_name_is_given_once_and_an_unknown_one_lists_the_known():
    with pytest.raises(ValueError, match="a task 'classification' is registered already"):

        @register_task
        class Other(Classification):
            pass

    with pytest.raises(ValueError, match="must be one of classification, part_segmentation, semantic_segmentation"):
        task_class("detection")
