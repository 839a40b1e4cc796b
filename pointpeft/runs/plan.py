"""Opens configurations: the one place that reads their fields. Every step of a run gets what it uses from here."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pointpeft.backbones import backbone_config
from pointpeft.create import create_model
from pointpeft.methods import method_class
from pointpeft.methods.base import Method
from pointpeft.methods.prompts.point_peft import PointPEFT
from pointpeft.methods.selective.linear import Linear
from pointpeft.model import PointModel
from pointpeft.runs.config import CloudsIn, EvaluateConfig, FinetuneConfig, MemoryBankConfig, PretrainConfig
from pointpeft.runs.options import parse_options
from pointpeft.tasks.base import AnyTask, create_task
from pointpeft.tasks.inference import Voting
from pointpeft.training.loop import Recipe
from pointpeft.training.run_folder import RunFolder
from pointpeft.weights.pretrained import pretrained_names

RANDOM_INIT = "none"
"""The value of `checkpoint` that asks for random weights."""


@dataclass(frozen=True)
class ModelPlan:
    """The model that a run adapts.

    Attributes:
        backbone: Its name.
        method: Its name.
        checkpoint: File or name of pre-trained weights; `RANDOM_INIT` for none, None for the shipped ones.
        options: NAME=VALUE each, of the method or the backbone.
    """

    backbone: str
    method: str
    checkpoint: str | None
    options: tuple[str, ...]

    @property
    def method_class(self) -> type[Method]:
        """The class of the method's options."""
        return method_class(self.method)

    def build(self, outputs: dict[str, Any]) -> PointModel:
        """Builds the model.

        Args:
            outputs: Arguments of `create_model` that follow from the labels: num_classes, and for a dense task its
                name and categories.

        Raises:
            ValueError: An unknown name or option, or a checkpoint that is not there.
        """
        options = parse_options(self.options, [type(backbone_config(self.backbone)), self.method_class])
        return create_model(self.backbone, self.method, checkpoint=self._weights(), **outputs, **options)

    def build_probe(self, outputs: dict[str, Any]) -> PointModel:
        """Builds the same backbone with the same weights, of which the head alone trains.

        Args:
            outputs: As in `build`.
        """
        backbone_type = type(backbone_config(self.backbone))
        known = {field.name for field in fields(backbone_type)}
        options = parse_options(self.options, [backbone_type, self.method_class])
        options = {name: value for name, value in options.items() if name in known}
        return create_model(self.backbone, Linear(tokens=False), checkpoint=self._weights(), **outputs, **options)

    def _weights(self) -> str | None:
        if self.checkpoint == RANDOM_INIT:
            return None
        if self.checkpoint is not None:
            return self.checkpoint
        shipped = pretrained_names()
        if self.backbone not in shipped:
            raise ValueError(
                f"no pre-training of {self.backbone} is shipped (shipped: {', '.join(shipped) or 'none'}); "
                f"give --checkpoint FILE, make one with `pointpeft pretrain`, "
                f"or start from random weights: --checkpoint {RANDOM_INIT}"
            )
        return self.backbone


@dataclass(frozen=True)
class DataPlan:
    """The clouds of a run.

    Attributes:
        source: As in `load_dataset`.
        up_axis: x, y or z; None for what the data set says.
        drop_non_finite: Whether points that are not finite are left out.
        clouds_in: Whether clouds are kept in memory or read from disk.
        workers: Processes that read clouds on disk ahead of their use.
    """

    source: str
    up_axis: str | None = None
    drop_non_finite: bool = False
    clouds_in: CloudsIn = "auto"
    workers: int = 0

    @property
    def stem(self) -> str:
        """The last component of the source, after which folders are named."""
        return Path(self.source.split(":")[-1]).name


@dataclass(frozen=True)
class SelectionPlan:
    """Which epoch is kept, and the share of the training clouds that are held out to choose it."""

    rule: str
    val_fraction: float


@dataclass(frozen=True)
class ExecutionPlan:
    """Where and how a step is computed."""

    device: str
    precision: str
    deterministic: bool
    checkpoint_blocks: bool = False
    compile: bool = False
    cuda_graph: bool = False
    sync_batchnorm: bool = False


@dataclass(frozen=True)
class OutputPlan:
    """Where a run writes.

    Attributes:
        folder: The run folder; None for the first free `runs/STEM[-N]`.
        stem: Of the name of that folder.
        track: The tracker that also gets the log.
        quiet: Whether there is no progress bar.
    """

    folder: Path | None
    stem: str
    track: str
    quiet: bool


@dataclass(frozen=True)
class FinetunePlan:
    """An adaptation.

    Attributes:
        recipe_name: The preset or file that filled in the options, for the result.
        batch_size: Largest batch, of all processes together.
        num_points: N, points per cloud.
        augment: Of training clouds, by name.
        voting: Of test clouds.
        probe: Whether a linear probe and baselines stand beside the result.
        min_steps: Fewest steps of training.
        kernel: Whether the classifier is a kernel head, which is solved.
        solved: Whether that is all: nothing is trained.
        seeds: Of the runs; the recipe and the voting have that of the first.
    """

    task: AnyTask
    model: ModelPlan
    data: DataPlan
    recipe: Recipe
    recipe_name: str | None
    batch_size: int
    num_points: int
    augment: str
    voting: Voting
    selection: SelectionPlan
    execution: ExecutionPlan
    output: OutputPlan
    probe: bool
    min_steps: int
    kernel: bool
    solved: bool
    seeds: tuple[int, ...]

    def of_seed(self, seed: int) -> "FinetunePlan":
        """The run of one of the seeds."""
        recipe, voting = replace(self.recipe, seed=seed), replace(self.voting, seed=seed)
        return replace(self, recipe=recipe, voting=voting, seeds=(seed,))

    def recipe_for(self, clouds: int) -> Recipe:
        """The recipe of training on so many clouds: with more epochs where its own are fewer than `min_steps`."""
        steps = math.ceil(math.ceil(clouds / self.batch_size) / self.recipe.accumulate)
        return replace(self.recipe, epochs=max(self.recipe.epochs, math.ceil(self.min_steps / steps)))


def plan_finetune(config: FinetuneConfig) -> FinetunePlan:
    """Opens the configuration of an adaptation.

    Raises:
        ValueError: An unknown task, an option out of bounds, or two that exclude each other.
    """
    task = create_task(config.task, columns_per_epoch=config.columns_per_epoch)
    _check_finetune(config, task)
    data = DataPlan(config.data, config.up_axis, config.drop_non_finite, config.clouds_in, config.workers)
    recipe = Recipe(
        epochs=config.epochs,
        lr=config.lr,
        weight_decay=config.weight_decay,
        clip=config.clip,
        warmup=min(0.5, config.warmup_epochs / config.epochs),
        accumulate=config.accumulate,
        seed=config.seed,
        double_step=config.double_step,
        ema=config.ema,
        patience=config.patience,
    )
    execution = ExecutionPlan(
        device=config.device,
        precision=config.precision,
        deterministic=config.deterministic,
        checkpoint_blocks=config.checkpoint_blocks,
        compile=config.compile or config.cuda_graph,
        cuda_graph=config.cuda_graph,
        sync_batchnorm=config.sync_batchnorm,
    )
    return FinetunePlan(
        task=task,
        model=ModelPlan(config.backbone, config.method, config.checkpoint, config.set),
        data=data,
        recipe=recipe,
        recipe_name=config.preset or (None if config.config is None else str(config.config)),
        batch_size=config.batch_size,
        num_points=config.num_points,
        augment=task.augment if config.augment == "auto" else config.augment,
        voting=Voting(config.votes, config.seed, task.test_augment),
        selection=SelectionPlan(config.select, config.val_fraction),
        execution=execution,
        output=OutputPlan(config.output, f"finetune-{data.stem}-{config.method}", config.track, config.quiet),
        probe=config.probe and task.probed and not method_class(config.method).is_probe,
        min_steps=config.min_steps,
        kernel=_is_kernel(config, task),
        solved=_is_kernel(config, task) and method_class(config.method).is_probe,
        seeds=tuple(range(config.seed, config.seed + config.repeats)),
    )


def _check_finetune(config: FinetuneConfig, task: AnyTask) -> None:
    _require_at_least(config, 1, "repeats", "votes", "batch_size", "num_points", "epochs")
    _require_at_least(config, 0, "warmup_epochs", "workers", "min_steps")
    if (config.preset or config.config) and not config.set:  # every recipe sets some options
        raise ValueError(
            f"preset and config only name a recipe, which is not filled in: got {config.preset or config.config}; "
            "give find_preset(NAME).config(...) or read_recipe(FILE).config(...)"
        )
    if config.checkpoint_blocks and method_class(config.method).reruns_blocks:
        raise ValueError(
            f"checkpoint_blocks must be off for {config.method}, whose loss runs the blocks again in another mode"
        )
    if config.checkpoint_blocks and (config.compile or config.cuda_graph):
        raise ValueError("checkpoint_blocks must be off with compile and cuda_graph, which choose what to recompute")
    if config.patience is not None and config.select in ("last", "cv"):
        raise ValueError(
            f"patience must be None for select {config.select}, under which no epoch is judged alone: "
            "--select val-best says which is better"
        )
    if config.select == "cv" and not task.probed:
        raise ValueError(f"select cv is for --task classification, got {config.task}; --select val-best")
    if not 0 < config.val_fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, got {config.val_fraction}")
    if config.double_step and not task.double_step:
        raise ValueError(f"double_step must be off for {task.name}, whose published training steps once per batch")


def _is_kernel(config: FinetuneConfig, task: AnyTask) -> bool:
    if config.classifier == "kernel" and not task.probed:
        raise ValueError(
            f"classifier kernel is solved on features of whole clouds: it needs --task classification, got {task.name}"
        )
    return config.classifier == "kernel" or (
        config.classifier == "auto" and task.probed and method_class(config.method).is_probe
    )


def _require_at_least(config: object, bound: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value < bound:
            raise ValueError(f"{name} must be at least {bound}, got {value}")


@dataclass(frozen=True)
class PretrainPlan:
    """A pre-training.

    Attributes:
        backbone: Its name.
        backbone_options: Typed options of it.
        batch_size: Largest batch, of all processes together.
        num_points: N, points per cloud.
        mask_ratio: Share of the patches that are hidden and rebuilt.
        max_clouds: How many clouds are used; None for all.
        augment: By name.
    """

    backbone: str
    backbone_options: dict[str, Any]
    data: DataPlan
    recipe: Recipe
    batch_size: int
    num_points: int
    mask_ratio: float
    max_clouds: int | None
    augment: str
    execution: ExecutionPlan
    output: OutputPlan


def plan_pretrain(config: PretrainConfig) -> PretrainPlan:
    """Opens the configuration of a pre-training.

    Raises:
        ValueError: No data, or an option that is unknown or out of bounds.
    """
    if config.data is None:
        raise ValueError("name the clouds to pre-train on: pointpeft pretrain DATA")
    if config.max_clouds is not None:
        _require_at_least(config, 1, "max_clouds")
    _require_at_least(config, 0, "workers")
    recipe = Recipe(
        epochs=config.epochs,
        lr=config.lr,
        weight_decay=config.weight_decay,
        clip=config.clip,
        warmup=config.warmup,
        accumulate=config.accumulate,
        per_epoch=False,
        time_limit=None if config.time_limit_minutes is None else 60.0 * config.time_limit_minutes,
        seed=config.seed,
    )
    return PretrainPlan(
        backbone=config.backbone,
        backbone_options=parse_options(config.set, [type(backbone_config(config.backbone))]),
        data=DataPlan(config.data, None, config.drop_non_finite, config.clouds_in, config.workers),
        recipe=recipe,
        batch_size=config.batch_size,
        num_points=config.num_points,
        mask_ratio=config.mask_ratio,
        max_clouds=config.max_clouds,
        augment=config.augment,
        execution=ExecutionPlan(config.device, config.precision, config.deterministic),
        output=OutputPlan(config.output, f"pretrain-{config.backbone}", config.track, config.quiet),
    )


@dataclass(frozen=True)
class EvaluatePlan:
    """A test of an adapter.

    Attributes:
        run: The run or adapter folder.
        data: None for the run's own.
        drop_non_finite: Also of the run's own data.
        votes: Passes over a test cloud.
        seed: Of the passes beyond the first.
        test_augment: Of the passes beyond the first; None for the task's.
        densities: Points per cloud of further tests.
        folder: Receives the report.
    """

    run: Path
    data: DataPlan | None
    drop_non_finite: bool
    clouds_in: CloudsIn
    votes: int
    seed: int
    test_augment: str | None
    densities: tuple[int, ...]
    batch_size: int
    device: str
    folder: Path
    quiet: bool

    def voting(self, task: AnyTask) -> Voting:
        """The passes over a test cloud."""
        return Voting(self.votes, self.seed, task.test_augment if self.test_augment is None else self.test_augment)


def plan_evaluate(config: EvaluateConfig) -> EvaluatePlan:
    """Opens the configuration of a test."""
    data = None
    if config.data is not None:
        data = DataPlan(config.data, None, config.drop_non_finite, config.clouds_in)
    return EvaluatePlan(
        run=config.run,
        data=data,
        drop_non_finite=config.drop_non_finite,
        clouds_in=config.clouds_in,
        votes=config.votes,
        seed=config.seed,
        test_augment=None if config.test_augment == "auto" else config.test_augment,
        densities=config.densities,
        batch_size=config.batch_size,
        device=config.device,
        folder=config.output or Path(config.run) / "evaluation",
        quiet=config.quiet,
    )


def data_of_run(folder: Path) -> DataPlan:
    """The clouds that a finished run was trained on.

    Raises:
        ValueError: The folder holds no run of `pointpeft finetune`, such as an adapter alone.
    """
    config = RunFolder(folder, main=False).read_config(FinetuneConfig, "finetune")
    return DataPlan(config.data, config.up_axis, config.drop_non_finite)


@dataclass(frozen=True)
class MemoryBankPlan:
    """The making of a memory bank, by the pre-trained backbone of `model`."""

    model: ModelPlan
    data: DataPlan
    num_points: int
    batch_size: int
    device: str
    file: Path


def plan_memory_bank(config: MemoryBankConfig) -> MemoryBankPlan:
    """Opens the configuration of a memory bank.

    Raises:
        ValueError: An option out of bounds.
    """
    _require_at_least(config, 1, "num_points", "batch_size")
    return MemoryBankPlan(
        model=ModelPlan(config.backbone, PointPEFT.name, config.checkpoint, config.set),
        data=DataPlan(config.data, None, config.drop_non_finite),
        num_points=config.num_points,
        batch_size=config.batch_size,
        device=config.device,
        file=config.output,
    )
