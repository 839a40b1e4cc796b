"""Opens the configurations of comparisons and of few-shot folds: the runs that a table needs."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from pointpeft.data.sets.few_shot import source_of
from pointpeft.runs.config import Classifier, CompareConfig, FewShotConfig, FinetuneConfig
from pointpeft.runs.options import parse_value


@dataclass(frozen=True)
class PlannedRun:
    """One run of a table.

    Attributes:
        name: Under which a failure is reported.
        seed: Of the run.
        config: Of the run.
        folder: Of the run; `config.output` is the same.
        checkpoint: File or name of its pre-trained weights.
        device: Where it computes.
    """

    name: str
    seed: int
    config: FinetuneConfig
    folder: Path
    checkpoint: str | None
    device: str

    @property
    def result(self) -> Path:
        """The file that the finished run leaves."""
        return self.folder / "result.json"

    def resumable(self) -> FinetuneConfig:
        """The configuration that starts the run, or continues it where it was started before."""
        if (self.folder / "config.json").exists():
            return replace(self.config, resume=self.folder, output=None)
        return self.config


Runs = dict[str, list[PlannedRun]]
"""The runs of each entry (METHOD or METHOD:NAME=VALUE,NAME=VALUE), by seed or by fold."""


@dataclass(frozen=True)
class ComparePlan:
    """A comparison of methods.

    Attributes:
        rule: By which an epoch is kept.
        ray: Address of a Ray cluster; None for this machine without Ray.
        ray_cpus: Cores of each run there.
    """

    folder: Path
    data: str
    task: str
    rule: str
    epochs: int
    runs: Runs
    ray: str | None
    ray_cpus: int


def plan_compare(config: CompareConfig) -> ComparePlan:
    """Opens the configuration of a comparison.

    Raises:
        ValueError: No seed, no method, a method twice, or one that is not METHOD:NAME=VALUE,NAME=VALUE.
    """
    if config.seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {config.seeds}")
    _require_distinct(config.methods)
    folder = config.output or Path("runs") / f"compare-{Path(config.data.split(':')[-1]).name}"
    seeds = range(config.seed, config.seed + config.seeds)
    runs = {
        entry: [_planned(f"{entry} seed {seed}", config, entry, seed, folder / f"seed-{seed}") for seed in seeds]
        for entry, folder in ((entry, folder / folder_name(entry)) for entry in config.methods)
    }
    return ComparePlan(
        folder, config.data, config.task, config.select, config.epochs, runs, config.ray, config.ray_cpus
    )


@dataclass(frozen=True)
class FewShotPlan:
    """A comparison of methods over folds.

    Attributes:
        ways: Classes of a fold.
        shots: Training clouds of each class.
        folds: How many.
        rule: By which an epoch is kept.
    """

    folder: Path
    data: str
    ways: int
    shots: int
    folds: int
    rule: str
    epochs: int
    runs: Runs


def plan_few_shot(config: FewShotConfig) -> FewShotPlan:
    """Opens the configuration of few-shot folds.

    Raises:
        ValueError: No fold, no method, a method twice, or one that is not METHOD:NAME=VALUE,NAME=VALUE.
    """
    if config.folds < 1:
        raise ValueError(f"folds must be at least 1, got {config.folds}")
    _require_distinct(config.methods)
    setting = f"{config.ways}way{config.shots}shot"
    folder = config.output or Path("runs") / f"few-shot-{Path(config.data.split(':')[-1]).name}-{setting}"
    runs: Runs = {entry: [] for entry in config.methods}
    for entry, planned in runs.items():
        for fold in range(config.folds):
            output = folder / folder_name(entry) / f"fold-{fold}"
            run = _planned(f"{entry} fold {fold}", config, entry, config.seed, output)
            data = source_of(config.data, config.ways, config.shots, fold, config.seed)
            planned.append(replace(run, config=replace(run.config, data=data)))
    return FewShotPlan(folder, config.data, config.ways, config.shots, config.folds, config.select, config.epochs, runs)


def folder_name(entry: str) -> str:
    """An entry as the name of a folder."""
    return re.sub(r"[^\w.=,-]+", "_", entry)


def _require_distinct(methods: tuple[str, ...]) -> None:
    if not methods or len(set(methods)) < len(methods):
        raise ValueError(f"name each method once, got {list(methods)}")


def _planned(name: str, config: CompareConfig | FewShotConfig, entry: str, seed: int, folder: Path) -> PlannedRun:
    run = run_config(config, entry, seed, folder)
    return PlannedRun(name, seed, run, folder, run.checkpoint, run.device)


def run_config(config: CompareConfig | FewShotConfig, entry: str, seed: int, output: Path) -> FinetuneConfig:
    """The run of one entry, METHOD or METHOD:NAME=VALUE,NAME=VALUE, under the recipe that all share.

    Raises:
        ValueError: The entry is not of that form.
    """
    method, _, pairs = entry.partition(":")
    checkpoint, lr, options = config.checkpoint, config.lr, []
    classifier: Classifier = "auto"
    for pair in filter(None, pairs.split(",")):
        name, equals, value = pair.partition("=")
        if name == "checkpoint":
            checkpoint = value
        elif name == "classifier":
            classifier = parse_value(name, value, Classifier)
        elif name == "lr":
            try:
                lr = float(value)
            except ValueError:
                raise ValueError(f"lr in {entry!r} must be a number, got {value!r}") from None
        elif equals:
            options.append(pair)
        else:
            raise ValueError(f"a method is METHOD or METHOD:NAME=VALUE,NAME=VALUE, got {entry!r}")
    return FinetuneConfig(
        data=config.data,
        task=config.task if isinstance(config, CompareConfig) else "classification",  # few-shot folds are of clouds
        backbone=config.backbone,
        checkpoint=checkpoint,
        method=method,
        classifier=classifier,
        set=(*config.set, *options),
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=lr,
        warmup_epochs=min(5, config.epochs // 4),
        num_points=config.num_points,
        augment=config.augment,
        drop_non_finite=config.drop_non_finite,
        select=config.select,
        seed=seed,
        device=config.device,
        precision=config.precision,
        probe=False,
        quiet=config.quiet,
        output=output,
    )
