"""The interface of a task: what a model is used for, from loading the data to presenting the answers."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Generator, Tensor, nn

from pointpeft.data import DataError, read_points
from pointpeft.data.on_demand import OnDemand
from pointpeft.drawing.card import Card
from pointpeft.model import PointModel
from pointpeft.tasks.adapted import Adapted
from pointpeft.tasks.inference import Voting


class Metrics(Protocol):
    """Quality of a model's predictions; each task has its own class."""

    @property
    def score(self) -> list[float]:
        """Numbers that the selection of an epoch maximises, in order of precedence."""
        ...

    def logged(self) -> dict[str, float]:
        """Numbers for the log of every epoch."""
        ...

    def summary(self) -> dict[str, float | int]:
        """The single numbers, rounded as results are printed."""
        ...

    def per_class(self, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """Numbers of each class by its name."""
        ...


class EpochBatches(Protocol):
    """One epoch of (points [B, N, 3], targets), this process's rows of each batch.

    Attributes:
        sizes: Clouds of each batch, of all processes together.
    """

    sizes: list[int]

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]: ...


class GatheredClouds(Protocol):
    """The clouds of a split, in memory or on disk; each task has a class of its own.

    Attributes:
        labels: By which validation clouds are drawn evenly. int64, [M]
        classes: Names by index.
        names: Of the clouds.
        up_axis: x, y or z.
        normalized: Whether they are centred and scaled to the unit sphere.
        notes: What a person should know of them.
        on_disk: Whether a cloud is read whenever a batch needs it.
    """

    labels: Tensor
    classes: tuple[str, ...]
    names: list[str]
    up_axis: str
    normalized: bool
    notes: tuple[str, ...]
    on_disk: bool

    def __len__(self) -> int: ...

    @property
    def sizes(self) -> list[int]:
        """Points of each cloud, as read."""
        ...

    def subset(self, indices: Sequence[int] | Tensor) -> "GatheredClouds":
        """The same clouds, fewer of them."""
        ...

    def batches(self, batch_size: int, generator: Generator, rank: int = 0, world: int = 1) -> EpochBatches:
        """One epoch: every cloud once in random order."""
        ...

    def fixed(self) -> "Tensor | OnDemand":
        """The clouds as they are evaluated, without randomness. [M, N, 3]"""
        ...

    def thinned(self, num_points: int, seed: int) -> "GatheredClouds":
        """The clouds seen by fewer points, drawn at random."""
        ...

    def content(self, index: int) -> list[Tensor]:
        """The tensors of a cloud, by which a change of the data is noticed."""
        ...

    def require_points(self, count: int, reason: str) -> None:
        """Refuses clouds too small for the model."""
        ...


Gathered = TypeVar("Gathered")
Measured = TypeVar("Measured", bound=Metrics)


class Observation(Protocol):
    """One pass of a model over one cloud, as `pointpeft.view.token_maps` records it."""

    output: Tensor
    layers: dict[str, Tensor]
    memory: list[tuple[int, float]]


Observe = Callable[..., Observation]
"""`observe(model, xyz, **inputs)` runs one cloud [N, 3] and records what the model does with its patches."""


class Task(ABC, Generic[Gathered, Measured]):
    """What a model is used for: the labels it predicts, how clouds are batched, and the metrics.

    A task is registered by `register_task`: no other code names it.

    Attributes:
        name: As `create_model` and `--task` take it.
        columns: The two numbers of a result that stand in a table of methods, and their headings.
        numbers: Names of the numbers of a result: the one that is selected by, then others.
        class_number: Name of the number of each class.
        hub_tag: The kind of task as model cards name it.
        probed: Whether a linear probe on cached features stands beside a result.
        augment: The published recipe's augmentation.
        test_augment: The augmentation of a vote's passes beyond the first.
        page: The file of a run folder to open first.
        double_step: Whether the published training code steps twice per batch.
        can_read_lazily: Whether clouds need not be in memory.
        can_drop_non_finite: Whether a file may be classified without its points that are not finite: not where every
            point of a file gets a label. Data sets leave them out with their labels in any case.
        streams: Whether folders and shards of clouds are predicted one after another.
        served: Whether `pointpeft serve` answers for it.
        embedded: Whether one feature vector a cloud can be placed in a plane.
        from_corner: Whether clouds are read as they lie, moved to their corner, in metres.
        question: The heading of the page of `pointpeft serve`.
    """

    name: ClassVar[str]
    columns: ClassVar[dict[str, str]]
    numbers: ClassVar[tuple[str, ...]]
    class_number: ClassVar[str] = "miou"
    hub_tag: ClassVar[str] = "point-cloud-segmentation"
    probed: ClassVar[bool] = False
    augment: ClassVar[str] = "isotropic"
    test_augment: ClassVar[str] = "isotropic"
    page: ClassVar[str] = "report.html"
    double_step: ClassVar[bool] = False
    can_read_lazily: ClassVar[bool] = True
    can_drop_non_finite: ClassVar[bool] = False
    streams: ClassVar[bool] = False
    served: ClassVar[bool] = True
    embedded: ClassVar[bool] = False
    from_corner: ClassVar[bool] = False
    question: ClassVar[str] = "What is this?"

    # Data.

    @abstractmethod
    def load(self, source: str, split: str, up_axis: str | None, lazy: bool = False, **options: Any) -> Any:
        """One split of a data set; `lazy` leaves its clouds on disk where the task `can_read_lazily`."""

    @abstractmethod
    def gather(self, dataset: Any, num_points: int, on_disk: bool = False, workers: int = 0) -> Gathered:
        """The clouds of a data set, ready to be served in batches."""

    def can_read_source_lazily(self, source: str) -> bool:
        """Whether the form of a data set allows its clouds to be read one by one."""
        return self.can_read_lazily

    @abstractmethod
    def bytes_in_memory(self, dataset: Any, num_points: int) -> int:
        """How much the clouds of a data set take, gathered in memory."""

    @abstractmethod
    def outputs(self, clouds: Gathered) -> dict[str, Any]:
        """Arguments of `create_model` that follow from the labels."""

    def metadata(self, clouds: Gathered) -> dict[str, Any]:
        """Properties of the labels that evaluation and prediction need beside the classes."""
        return {}

    @abstractmethod
    def adopt(self, clouds: Gathered, metadata: dict[str, Any], data: str) -> None:
        """Renumbers the labels of other data as an adapter's classes are.

        Raises:
            ValueError: A class that the adapter does not know.
        """

    # Training and testing.

    @abstractmethod
    def classes_of(self, points: Tensor, targets: Any) -> Tensor:
        """The class of each cloud of a batch. int64 [B]"""

    @abstractmethod
    def losses(self, wrapped: nn.Module, model: PointModel, points: Tensor, targets: Any) -> dict[str, Tensor]:
        """The task's loss and the method's own."""

    @abstractmethod
    def test(
        self, model: PointModel, clouds: Gathered, batch_size: int, voting: Voting, title: str | None = None
    ) -> tuple[Measured, Any]:
        """Metrics, and the answers that `report` draws."""

    def judge(self, model: PointModel, clouds: Gathered, batch_size: int, voting: Voting) -> Measured:
        """Metrics for the selection of an epoch."""
        return self.test(model, clouds, batch_size, voting)[0]

    @abstractmethod
    def report(
        self,
        folder: Path,
        clouds: Gathered,
        answers: Any,
        metrics: Measured,
        history: Sequence[dict[str, float]] = (),
        selected: int | None = None,
        beside: Sequence[str] = (),
    ) -> None:
        """Writes plots and pages into a folder.

        Args:
            folder: Receives them.
            clouds: The test clouds.
            answers: As `test` gives them.
            metrics: Likewise.
            history: The log of a training, a row per epoch.
            selected: The epoch that was kept.
            beside: What the result stands beside, in sentences, for tasks that are `probed`.
        """

    # Answers for people.

    def label_names(self, adapted: Adapted) -> tuple[str, ...]:
        """Names of the labels of points, or of clouds."""
        return adapted.classes

    def categories(self, adapted: Adapted) -> tuple[str, ...]:
        """Categories among which the user must choose; none for most tasks."""
        return ()

    def category_index(self, adapted: Adapted, category: str | None) -> int:
        """The index of a category that was named, 0 for tasks without.

        Raises:
            ValueError: An unknown or missing category, or one where none is taken.
        """
        if category is not None:
            raise ValueError(f"category must not be given for {self.name}, got {category!r}")
        return 0

    def read(self, adapted: Adapted, path: Path, drop_non_finite: bool | dict[str, int] = False) -> Tensor:
        """The points of a file as the model takes them. [N, 3]

        Raises:
            DataError: The file cannot be read, or has fewer points than a patch.
        """
        # An error names the option for points that are not finite where the task has it.
        drop = None if drop_non_finite is False and not self.can_drop_non_finite else drop_non_finite
        points = read_points(
            path,
            normalized=adapted.normalized,
            from_corner=self.from_corner,
            near_origin=not adapted.normalized,
            drop_non_finite=drop,
        )
        fewest = adapted.fewest_points
        if len(points) < fewest:
            raise DataError(f"{path} has {len(points)} points, at least group_size = {fewest} are needed")
        return points

    def label_points(self, adapted: Adapted, points: Tensor, category: int = 0, seed: int = 0) -> Tensor:
        """The label of every point of a cloud. [N, 3] -> int64 [N]"""
        raise ValueError(f"{self.name} labels clouds, not points")

    @abstractmethod
    def card(self, adapted: Adapted, points: Tensor, name: str, observe: Observe, category: int = 0) -> Card:
        """A cloud of a file, as `read` gives it, with the model's prediction."""

    @abstractmethod
    def test_card(self, adapted: Adapted, clouds: Gathered, index: int, observe: Observe) -> Card:
        """One of the gathered test clouds, with its true label."""

    @abstractmethod
    def examples(self, clouds: Gathered, count: int) -> list[int]:
        """Indices of test clouds to show."""


def heading(name: str) -> str:
    """The name of a number, such as instance_miou, in words: "instance mIoU"."""
    return name.replace("_", " ").replace("miou", "mIoU")


def one_of_each(labels: Tensor, count: int) -> list[int]:
    """Indices of labels, one of each class before a second of any."""
    turn = [int((labels[:i] == label).sum()) for i, label in enumerate(labels)]
    return sorted(range(len(turn)), key=turn.__getitem__)[:count]


AnyTask = Task[Any, Any]
_TASKS: dict[str, type[AnyTask]] = {}
Registered = TypeVar("Registered", bound=AnyTask)


def register_task(task: type[Registered]) -> type[Registered]:
    """Makes a task known by its name.

    Raises:
        ValueError: The name is taken.
    """
    if task.name in _TASKS and _TASKS[task.name].__qualname__ != task.__qualname__:
        raise ValueError(f"a task {task.name!r} is registered already")
    _TASKS[task.name] = task
    return task


def task_class(name: str) -> type[AnyTask]:
    """A registered task; every sub-package of `pointpeft.tasks` that has a module `task` is imported.

    Raises:
        ValueError: An unknown name.
    """
    package = importlib.import_module("pointpeft.tasks")
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            importlib.import_module(f"pointpeft.tasks.{module.name}.task")
    if name not in _TASKS:
        raise ValueError(f"task must be one of {', '.join(sorted(_TASKS))}, got {name!r}")
    return _TASKS[name]


def create_task(name: str, **options: Any) -> AnyTask:
    """A task by its name.

    Args:
        name: One of `pointpeft.model.TASKS`, or one that was registered.
        options: Of the task's constructor; None where not given.

    Raises:
        ValueError: An unknown name, or an option that the task does not have.
    """
    options = {key: value for key, value in options.items() if value is not None}
    task = task_class(name)
    known = task.__init__.__code__.co_varnames if "__init__" in vars(task) else ()
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is no option of {name}")
    return task(**options)
