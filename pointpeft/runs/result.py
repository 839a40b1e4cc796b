"""Results of runs: `result.json` is written from these dataclasses and read back into them."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pointpeft.checkpoints.earlier_names import upgraded_result
from pointpeft.files import write_json
from pointpeft.training.run_folder import read_json
from pointpeft.training.selection import MEANING

RESULT = "result.json"
WEIGHTS = "backbone.safetensors"

Summary = dict[str, float | int]
"""The numbers of a task's metrics by their names, and how many "clouds" were measured."""


@dataclass(frozen=True)
class Selected:
    """The epoch that was kept.

    Attributes:
        rule: val-best, cv, last or test-best; leave-one-out for a classifier that is solved.
        meaning: The rule in words.
        epoch: Counted from 1; 0 without any.
        test_set_used: Whether the test clouds chose it.
    """

    rule: str
    meaning: str
    epoch: int
    test_set_used: bool

    @classmethod
    def by(cls, rule: str, epoch: int) -> "Selected":
        """The epoch that a rule chose."""
        return cls(rule, MEANING[rule], epoch, rule == "test-best")


@dataclass(frozen=True)
class SeedResult:
    """Result of one of several seeds."""

    seed: int
    test: Summary
    selection: Selected


@dataclass(frozen=True)
class FinetuneResult:
    """Result of an adaptation. With several seeds the summaries hold means, and NAME_std beside each.

    Attributes:
        folder: The run folder; not in the file.
        linear_probe: Of the test clouds, by a head on the features of the backbone as it was.
        leave_one_out: Of the training clouds, each by a solved classifier of all others.
        cross_validation: "accuracy" and "loss" of training clouds by epoch from 0, each by a model adapted to others.
        baselines: What takes seconds reaches on the test clouds, see `Baselines`.
        verdict: A sentence where the adapted model is below one of them.
        preset: The recipe's name, or the file of options.
        model: Its configuration.
        labels: What the task says of its labels beside the classes, such as the parts of each category.
        clouds: How many by split.
        clouds_in: memory or disk.
        points: Per cloud.
        peak_memory_of: What is counted: the whole process, or tensors on the GPU.
        per_class: Numbers of each class; None for several seeds.
        runs: Of several seeds.
    """

    folder: Path
    test: Summary
    validation: Summary | None
    linear_probe: Summary | None
    seeds: tuple[int, ...]
    selection: Selected
    task: str
    preset: str | None
    method: str
    backbone: str
    model: dict[str, Any]
    trainable_parameters: int
    trainable_parameters_without_head: int
    parameters: int
    data: str
    classes: tuple[str, ...]
    labels: dict[str, Any]
    up_axis: str
    clouds_normalized: bool
    notes: tuple[str, ...]
    clouds: dict[str, int]
    clouds_in: str
    points: int
    augmentation: str
    votes: int
    double_step: bool
    epochs: int
    epochs_trained: int
    batch_size: int
    training_seconds: float
    clouds_per_second: float
    peak_memory_mib: int
    peak_memory_of: str
    precision: str
    versions: dict[str, str]
    per_class: dict[str, dict[str, Any]] | None = None
    runs: tuple[SeedResult, ...] = ()
    leave_one_out: Summary | None = None
    cross_validation: dict[str, list[float]] | None = None
    baselines: dict[str, float] | None = None
    verdict: str | None = None

    def adapter_metadata(self) -> dict[str, Any]:
        """The facts that are saved with the adapter; the data appears by its name, without its folder."""
        return {
            "data": Path(self.data).name,
            "task": self.task,
            "classes": list(self.classes),
            **self.labels,
            "up_axis": self.up_axis,
            "clouds_normalized": self.clouds_normalized,
            "points": self.points,
            "test": self.test,
            "validation": self.validation,
            "linear_probe": self.linear_probe,
            "selection": asdict(self.selection),
            "augmentation": self.augmentation,
            "votes": self.votes,
            "seeds": list(self.seeds),
        }


@dataclass(frozen=True)
class EvaluateResult:
    """Result of testing an adapter.

    Attributes:
        folder: Of the report; not in the file.
        by_points_per_cloud: The same with fewer points, by their number.
        points: Per cloud, of `test`.
        test_augment: Of the passes beyond the first; "none" where there is one.
        selection: Of the epoch, as the adapter says.
    """

    folder: Path
    task: str
    test: Summary
    by_points_per_cloud: dict[str, Summary]
    data: str
    clouds_in: str
    points: int
    votes: int
    test_augment: str
    selection: dict[str, Any] | None
    clouds_per_second: float
    notes: tuple[str, ...]
    per_class: dict[str, dict[str, Any]]
    versions: dict[str, str]


@dataclass(frozen=True)
class PretrainResult:
    """Result of a pre-training.

    Attributes:
        folder: The run folder; not in the file.
        data: The name of the data, without its folder: the card travels.
        epochs: That were trained; `planned_epochs` is the length of the schedule.
        clouds_seen: By all steps together.
        first_loss: Mean loss of the first epoch; None without any.
        last_loss: Mean loss of the last epoch.
        last_learning_rate: At the end of the last epoch.
    """

    folder: Path
    backbone: str
    backbone_options: dict[str, Any]
    parameters: int
    data: str
    clouds: int
    clouds_in: str
    points: int
    augmentation: str
    mask_ratio: float
    epochs: int
    planned_epochs: int
    time_limit_minutes: float | None
    schedule: str
    clouds_seen: int
    training_minutes: float
    clouds_per_second: float
    peak_memory_mib: int
    first_loss: float | None
    last_loss: float | None
    last_learning_rate: float | None
    lr: float
    weight_decay: float
    batch_size: int
    seed: int
    versions: dict[str, str]

    @property
    def weights(self) -> Path:
        """The backbone's weights."""
        return self.folder / WEIGHTS


def entries_of(result: FinetuneResult | EvaluateResult | PretrainResult) -> dict[str, Any]:
    """The entries of `result.json`: all fields but the folder."""
    return {name: value for name, value in asdict(result).items() if name != "folder"}


def write_result(result: FinetuneResult | EvaluateResult | PretrainResult) -> None:
    """Writes `result.json` into the folder of the result."""
    write_json(result.folder / RESULT, entries_of(result))


def read_result(folder: Path) -> FinetuneResult:
    """The result of an adaptation; also one that an earlier version wrote.

    Raises:
        ValueError: There is none, or it lacks an entry.
    """
    entries = upgraded_result(read_json(folder / RESULT, "no result"))
    entries.setdefault("labels", {})  # earlier versions had its entries among the others
    known = {field.name for field in fields(FinetuneResult)}
    values = {name: value for name, value in entries.items() if name in known}
    for name in ("seeds", "classes", "notes"):
        values[name] = tuple(values.get(name, ()))
    values["selection"] = Selected(**values["selection"])
    values["runs"] = tuple(
        SeedResult(run["seed"], run["test"], Selected(**run["selection"])) for run in values.get("runs") or ()
    )
    try:
        return FinetuneResult(folder=folder, **values)
    except TypeError as error:
        raise ValueError(f"{folder / RESULT} is no result of an adaptation: {error}") from error
