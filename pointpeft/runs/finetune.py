"""Adaptation to labelled clouds: one run from its configuration to an adapter and an honest result."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pointpeft.checkpoints import save_adapter
from pointpeft.data import split_validation
from pointpeft.data.transforms import named
from pointpeft.methods import TrainingClouds
from pointpeft.model import PointModel
from pointpeft.runs.baselines import baselines_of, kernel_outputs, sentences, solve, solve_classifier, verdict
from pointpeft.runs.config import FinetuneConfig
from pointpeft.runs.cross_validation import CrossValidated, Look, cross_validate
from pointpeft.runs.plan import DataPlan, FinetunePlan, SelectionPlan, plan_finetune
from pointpeft.runs.probe import probe
from pointpeft.runs.result import FinetuneResult, SeedResult, Selected, Summary, write_result
from pointpeft.runs.resume import (
    FINETUNE_FREE,
    clouds_fingerprint,
    frozen_fingerprint,
    reopened,
    require_unchanged,
    tell_finished,
)
from pointpeft.runs.versions import versions
from pointpeft.tasks.base import AnyTask, GatheredClouds, Metrics
from pointpeft.tasks.batches import Clouds
from pointpeft.tasks.inference import Voting
from pointpeft.tasks.storage import should_read_lazily
from pointpeft.training.compiled_step import check_compiled, compiled_step
from pointpeft.training.determinism import determinism
from pointpeft.training.divergence import NotFiniteError, require_finite_weights
from pointpeft.training.loop import Recipe, State, make_accelerator, seed_everything, train
from pointpeft.training.memory import peak_memory
from pointpeft.training.out_of_memory import explain_out_of_memory, explain_single_cloud
from pointpeft.training.recompute import checkpoint_blocks
from pointpeft.training.run_folder import RunFolder
from pointpeft.training.seeds import derive_seed
from pointpeft.training.selection import Selector
from pointpeft.training.sync_batch_norm import sync_batch_norm
from pointpeft.training.tracking import require_tracker

ADAPTER = "adapter"
DATA_WAY_OUT = "Put the data back as it was, or begin a new run without --resume"
WEIGHTS_WAY_OUT = "Put the file of pre-trained weights back, or begin a new run without --resume"
Splits = dict[str, GatheredClouds]
"""Clouds by the name of their split: "train", "test" and, where the rule of selection needs it, "val"."""


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Adapts a pre-trained backbone, or continues a stopped run.

    Raises:
        ValueError: A wrong option, data set, cloud or checkpoint.
    """
    config, begun = reopened(config, "finetune", FINETUNE_FREE)
    plan = plan_finetune(config)
    accelerator = make_accelerator(plan.execution.device, plan.execution.precision)
    subject = f"method {plan.model.method} on {plan.model.backbone}"
    remedies = "--accumulate keeps the batch of a step, --checkpoint-blocks computes blocks again"
    with (
        determinism(plan.execution.deterministic),
        explain_out_of_memory(subject, plan.batch_size, remedies),
        explain_single_cloud(plan.batch_size),
        ExitStack() as opened,
    ):
        folder = None
        if begun is not None:
            folder = RunFolder(begun, accelerator.is_main_process).lock()
            opened.callback(folder.close)
            tell_finished(folder)
        return _finetune(accelerator, plan, config, folder, opened)


def _finetune(
    accelerator: Accelerator, plan: FinetunePlan, config: FinetuneConfig, folder: RunFolder | None, opened: ExitStack
) -> FinetuneResult:
    main = accelerator.is_main_process
    require_tracker(plan.output.track)
    training, test = _read_clouds(plan.data, plan.task, plan.num_points)
    splits_of = _split(plan.selection, plan.solved, training, test)
    if folder is None:
        folder = RunFolder.shared(plan.output.folder, plan.output.stem, main)
        opened.callback(folder.close)
        folder.write_config(config, "finetune")
    for name, clouds in (("training data", training), ("test data", test)):
        require_unchanged(folder, name, clouds_fingerprint(clouds, plan.data.source), DATA_WAY_OUT)
    if len(plan.seeds) == 1:
        return _run(accelerator, plan, folder, splits_of(plan.seeds[0]))
    runs = []
    for seed in plan.seeds:
        inner = RunFolder(folder.path / f"seed-{seed}", main).lock()
        opened.callback(inner.close)
        inner.write_config(replace(config, seed=seed, repeats=1), "finetune")
        runs.append(_run(accelerator, plan.of_seed(seed), inner, splits_of(seed)))
    result = summarise(runs, folder.path, plan.task.numbers)
    if main:
        write_result(result)
    return result


def _read_clouds(data: DataPlan, task: AnyTask, num_points: int) -> tuple[GatheredClouds, GatheredClouds]:
    """The training and the test clouds."""
    on_disk = should_read_lazily(data.source, data.clouds_in, num_points, ("train", "test"), task)
    options = {"lazy": True} if on_disk else {}
    if data.drop_non_finite:
        options["drop_non_finite"] = True
    train_set, test_set = (task.load(data.source, split, data.up_axis, **options) for split in ("train", "test"))
    if tuple(train_set.classes) != tuple(test_set.classes):
        raise ValueError(f"train and test of {data.source} name different classes")
    noun, names = ("part", train_set.parts) if hasattr(train_set, "parts") else ("class", train_set.classes)
    if len(names) < 2:
        raise ValueError(
            f"{data.source} has only one {noun}, {', '.join(names)}: a model needs at least two to "
            "tell apart. Of a folder each sub-folder is a class"
        )
    workers = data.workers if on_disk else 0
    training, test = (task.gather(dataset, num_points, on_disk, workers) for dataset in (train_set, test_set))
    return training, test


def _split(
    selection: SelectionPlan, solved: bool, training: GatheredClouds, test: GatheredClouds
) -> Callable[[int], Splits]:
    """A function that gives the splits of a seed; clouds in memory are read once for all seeds."""

    def splits_of(seed: int) -> Splits:
        if selection.rule != "val-best" or solved:
            return {"train": training, "test": test}
        train_indices, val_indices = split_validation(training.labels, selection.val_fraction, seed)
        if not len(val_indices):
            raise ValueError(
                f"val_fraction = {selection.val_fraction} holds out none of {len(training)} training clouds; "
                "give more, or --select last"
            )
        return {"train": training.subset(train_indices), "val": training.subset(val_indices), "test": test}

    return splits_of


def _run(accelerator: Accelerator, plan: FinetunePlan, folder: RunFolder, splits: Splits) -> FinetuneResult:
    """One seed: train, select, test, probe, write."""
    task, test = plan.task, splits["test"]
    check_compiled(plan.execution.cuda_graph, accelerator.device)
    model = _build(accelerator, plan, splits["train"])
    require_unchanged(folder, "frozen weights", frozen_fingerprint(model), WEIGHTS_WAY_OUT)
    group_size = model.backbone.config.group_size
    for clouds in splits.values():
        clouds.require_points(group_size, f"group_size = {group_size} neighbours")
    validated = None
    if plan.selection.rule == "cv" and not plan.solved:
        validated = _cross_validate(accelerator, plan, folder, splits["train"])
        model = _build(accelerator, plan, splits["train"])  # as if nothing had been drawn since, whether read or run
    _prepare(accelerator, plan, model, splits["train"])

    def measure(name: str) -> Metrics:
        return task.judge(model, splits[name], plan.batch_size, plan.voting if name == "test" else Voting())

    folder.track(plan.output.track)
    leave_one_out = None
    if plan.solved:
        state, epoch, leave_one_out = solve(accelerator, plan, model, _clouds(splits["train"]))
    else:
        _start(accelerator, plan, model, splits["train"])
        recipe = plan.recipe_for(len(splits["train"]))
        recipe = recipe if validated is None else replace(recipe, stop=validated.epoch)
        selector = Selector(plan.selection.rule, measure)
        state = _train(accelerator, plan, model, folder, splits["train"], recipe, selector.after_epoch)
        epoch = selector.restore(model, state)
        require_finite_weights(model.state_dict(), "the trained model")
    metrics, answers = task.test(model, test, plan.batch_size, plan.voting)
    result = FinetuneResult(
        folder=folder.path,
        test=metrics.summary(),
        validation=measure("val").summary() if "val" in splits else None,
        linear_probe=None,
        leave_one_out=leave_one_out,
        cross_validation=None if validated is None else {"accuracy": validated.accuracy, "loss": validated.loss},
        selection=Selected.by("leave-one-out" if plan.solved else plan.selection.rule, epoch),
        per_class=metrics.per_class(test.classes),
        **_facts(plan, model, splits, state, accelerator.device),
    )
    if validated is not None:
        result = replace(result, training_seconds=round(state.elapsed + validated.seconds, 1))
    if plan.probe:
        probed = _probe(accelerator, plan, folder, splits).summary()
        whole = {name: _clouds(split) for name, split in splits.items()}
        result = replace(result, linear_probe=probed, baselines=baselines_of(accelerator, plan, whole).summary())
        result = _judged(result, task.numbers)
    if accelerator.is_main_process:
        save_adapter(model, folder.path / ADAPTER, result.adapter_metadata())
        beside = [] if result.baselines is None else ["Takes seconds: " + "; ".join(sentences(result.baselines))]
        beside += [] if result.verdict is None else [result.verdict]
        task.report(folder.path, test, answers, metrics, state.history, epoch, beside)
        write_result(result)  # the last file: where it is, the run is complete
        folder.close()
    return result


def _build(accelerator: Accelerator, plan: FinetunePlan, training: GatheredClouds) -> PointModel:
    """A fresh model for these clouds, with the weights of the seed."""
    seed_everything(accelerator.device, plan.recipe.seed, "initial weights")
    outputs = plan.task.outputs(training)
    return plan.model.build(outputs | kernel_outputs([_clouds(training)]) if plan.kernel else outputs)


def _start(accelerator: Accelerator, plan: FinetunePlan, model: PointModel, training: GatheredClouds) -> None:
    """Solves a kernel head on the features before any step: the model is its own probe, from which it is adapted."""
    if plan.kernel:
        solve_classifier(model, _clouds(training), plan.batch_size, accelerator.device)


def _cross_validate(
    accelerator: Accelerator, plan: FinetunePlan, folder: RunFolder, training: GatheredClouds
) -> CrossValidated:
    """Chooses the number of epochs on training clouds alone."""
    clouds = _clouds(training)
    recipe = plan.recipe_for(len(clouds))  # for the folds, which are smaller, too: an epoch is the same place in both

    def adapt(rest: Clouds, unsaved: RunFolder, look: Look) -> None:
        model = _build(accelerator, plan, rest)
        _prepare(accelerator, plan, model, rest)
        _start(accelerator, plan, model, rest)
        look(model, State())
        _train(accelerator, plan, model, unsaved, rest, recipe, look)

    return cross_validate(clouds, adapt, folder, plan.batch_size, plan.recipe.seed)


def _prepare(accelerator: Accelerator, plan: FinetunePlan, model: PointModel, training: GatheredClouds) -> None:
    """Moves the model to the device, and lets its method look at the training clouds."""

    def clouds() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(derive_seed(plan.recipe.seed, "prepare"))
        for points, targets in training.batches(plan.batch_size, generator):
            yield points.to(accelerator.device), plan.task.classes_of(points, targets)

    if plan.execution.checkpoint_blocks:
        checkpoint_blocks(model.backbone.blocks)
    if _is_synced(accelerator, plan):
        sync_batch_norm(model)
    model.method.prepare(model.to(accelerator.device), TrainingClouds(clouds))


def _is_synced(accelerator: Accelerator, plan: FinetunePlan) -> bool:
    return plan.execution.sync_batchnorm and accelerator.num_processes > 1


def _train(
    accelerator: Accelerator,
    plan: FinetunePlan,
    model: PointModel,
    folder: RunFolder,
    training: GatheredClouds,
    recipe: Recipe,
    after_epoch: Callable[[Any, State], dict[str, float]],
) -> State:
    """Trains by the run's options, for as long as the recipe says."""
    augment = named(plan.augment, training.up_axis)
    title = None if plan.output.quiet or not accelerator.is_main_process else plan.model.method

    def batches(epoch: int) -> Any:
        generator = torch.Generator().manual_seed(derive_seed(plan.recipe.seed, epoch, "batches"))
        return training.batches(plan.batch_size, generator, accelerator.process_index, accelerator.num_processes)

    def loss_of(wrapped: nn.Module, points: Tensor, targets: Any) -> dict[str, Tensor]:
        return plan.task.losses(wrapped, model, points, targets)

    def after_step() -> None:
        model.method.after_step(model)

    compiled = partial(compiled_step, cuda_graph=plan.execution.cuda_graph) if plan.execution.compile else None
    return train(
        accelerator, model, recipe, batches, loss_of, folder, after_epoch, title, after_step, augment, compiled
    )


def _probe(accelerator: Accelerator, plan: FinetunePlan, folder: RunFolder, splits: Splits) -> Metrics:
    training = splits["train"]
    seed_everything(accelerator.device, plan.recipe.seed, "initial weights")
    model = plan.model.build_probe(plan.task.outputs(training))
    if _is_synced(accelerator, plan):
        sync_batch_norm(model)
    augment = named(plan.augment, training.up_axis)
    clouds = {name: _clouds(split) for name, split in splits.items()}
    title = None if plan.output.quiet or not accelerator.is_main_process else "linear probe"
    try:
        return probe(
            accelerator, model, plan.recipe, plan.batch_size, clouds, plan.selection.rule, augment, plan.voting,
            folder, title,
        )  # fmt: skip
    except NotFiniteError as error:
        raise NotFiniteError(f"of the linear probe, which --no-probe leaves out: {error}") from error


def _judged(result: FinetuneResult, numbers: Sequence[str]) -> FinetuneResult:
    """The result with a sentence on the baselines that it does not reach."""
    if result.baselines is None:
        return result
    return replace(result, verdict=verdict(result.test[numbers[0]], result.baselines))


def _clouds(split: GatheredClouds) -> Clouds:
    """Those of a task that is probed, which has whole clouds."""
    assert isinstance(split, Clouds)
    return split


def _facts(plan: FinetunePlan, model: PointModel, splits: Splits, state: State, device: torch.device) -> dict[str, Any]:
    """Fields of a result beside what was measured on the clouds: what was trained, on what, how, and at what cost."""
    training = splits["train"]
    return {
        "seeds": plan.seeds,
        "task": plan.task.name,
        "preset": plan.recipe_name,
        "method": plan.model.method,
        "backbone": plan.model.backbone,
        "model": model.config,
        "trainable_parameters": model.trainable_parameters(),
        "trainable_parameters_without_head": model.trainable_parameters(head=False),
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": plan.data.source,
        "classes": tuple(training.classes),
        "labels": plan.task.metadata(training),
        "up_axis": training.up_axis,
        "clouds_normalized": training.normalized,
        "notes": tuple(training.notes),
        "clouds": {name: len(clouds) for name, clouds in splits.items()},
        "clouds_in": "disk" if training.on_disk else "memory",
        "points": plan.num_points,
        "augmentation": "none" if plan.solved else plan.augment,
        "votes": plan.voting.votes,
        "double_step": plan.recipe.double_step,
        "epochs": 0 if plan.solved else plan.recipe_for(len(training)).epochs,
        "epochs_trained": state.epoch,
        "batch_size": plan.batch_size,
        "training_seconds": round(state.elapsed, 1),
        "clouds_per_second": round(state.samples / max(1e-9, state.busy), 1),
        "peak_memory_mib": round(max(state.peak_memory, peak_memory(device)) / 2**20),
        "peak_memory_of": "tensors on the GPU" if device.type == "cuda" else "the whole process",
        "precision": plan.execution.precision,
        "versions": versions(),
    }


def summarise(results: list[FinetuneResult], folder: Path, numbers: Sequence[str]) -> FinetuneResult:
    """One result of several seeds: mean and standard deviation (of a sample), and what each gave."""
    result = replace(
        results[0],
        folder=folder,
        seeds=tuple(result.seeds[0] for result in results),
        test=_summary([result.test for result in results], numbers),
        validation=_summary([result.validation for result in results], numbers),
        linear_probe=_summary([result.linear_probe for result in results], numbers),
        per_class=None,
        cross_validation=None,
        runs=tuple(SeedResult(result.seeds[0], result.test, result.selection) for result in results),
    )
    return _judged(result, numbers)  # the baselines are of the same clouds for every seed


@overload
def _summary(summaries: list[Summary], numbers: Sequence[str]) -> Summary: ...
@overload
def _summary(summaries: list[Summary | None], numbers: Sequence[str]) -> Summary | None: ...
def _summary(summaries: Any, numbers: Sequence[str]) -> Summary | None:
    if summaries[0] is None:
        return None
    facts: Summary = {"clouds": summaries[0]["clouds"]}
    for name in numbers:
        values = [summary[name] for summary in summaries]
        facts[name] = round(statistics.fmean(values), 4)
        facts[f"{name}_std"] = round(statistics.stdev(values), 4) if len(values) > 1 else math.nan
    return facts
