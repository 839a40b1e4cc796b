"""Adaptation to labelled clouds: one run from its configuration to an adapter and an honest result."""

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pointpeft.checkpoints import save_adapter
from pointpeft.data import split_validation
from pointpeft.data.transforms import named
from pointpeft.files import write_json
from pointpeft.methods import TrainingClouds, method_class
from pointpeft.runs.config import FinetuneConfig
from pointpeft.runs.plan import build, build_probe
from pointpeft.runs.probe import probe
from pointpeft.runs.resume import (
    FINETUNE_FREE,
    clouds_fingerprint,
    frozen_fingerprint,
    require_unchanged,
    resumed_config,
    tell_finished,
)
from pointpeft.tasks.base import AnyTask, create_task
from pointpeft.tasks.inference import Voting
from pointpeft.tasks.storage import should_read_lazily
from pointpeft.training.compiled_step import check_compiled, compiled_step
from pointpeft.training.determinism import determinism
from pointpeft.training.divergence import NotFiniteError, require_finite_weights
from pointpeft.training.loop import Recipe, make_accelerator, seed_everything, train
from pointpeft.training.memory import peak_memory
from pointpeft.training.out_of_memory import named_out_of_memory, named_single_cloud
from pointpeft.training.recompute import checkpoint_blocks
from pointpeft.training.run_folder import RunFolder
from pointpeft.training.seeds import derive_seed
from pointpeft.training.selection import MEANING, Selector
from pointpeft.training.sync_batch_norm import sync_batch_norm
from pointpeft.training.tracking import require_tracker
from pointpeft.training.versions import versions

ADAPTER = "adapter"
DATA_WAY_OUT = "Put the data back as it was, or begin a new run without --resume"
WEIGHTS_WAY_OUT = "Put the file of pre-trained weights back, or begin a new run without --resume"


@dataclass(frozen=True)
class FinetuneResult:
    """What an adaptation gave.

    Attributes:
        folder: The run folder.
        facts: What `result.json` holds.
    """

    folder: Path
    facts: dict[str, Any]


def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Adapts a pre-trained backbone, or continues a stopped run.

    Raises:
        ValueError: A wrong option, data set, cloud or checkpoint.
    """
    accelerator = make_accelerator(config.device, config.precision)
    main = accelerator.is_main_process
    folder = None
    if config.resume is not None:
        folder = RunFolder(config.resume, main and Path(config.resume).is_dir())
        config = resumed_config(folder, config, "finetune", FINETUNE_FREE)
        folder.lock()
        tell_finished(folder)
    asked = f"method {config.method} on {config.backbone}"
    remedies = "--accumulate keeps the batch of a step, --checkpoint-blocks computes blocks again"
    with (
        determinism(config.deterministic),
        named_out_of_memory(asked, config.batch_size, remedies),
        named_single_cloud(config.batch_size),
        ExitStack() as opened,
    ):
        if folder is not None:
            opened.callback(folder.close)
        return _finetune(accelerator, config, folder, opened)


def _finetune(
    accelerator: Accelerator, config: FinetuneConfig, folder: RunFolder | None, opened: ExitStack
) -> FinetuneResult:
    main = accelerator.is_main_process
    task = create_task(config.task, blocks=config.blocks)
    _check(config, task)
    require_tracker(config.track)
    on_disk = should_read_lazily(config.data, config.clouds_in, config.num_points, ("train", "test"), task)
    more = {"lazy": True} if on_disk else {}
    if config.drop_non_finite:
        if not task.can_drop_non_finite:
            raise ValueError(f"drop_non_finite must be left out for {task.name}, which labels every point")
        more["drop_non_finite"] = True
    train_set, test_set = (task.load(config.data, split, config.up_axis, **more) for split in ("train", "test"))
    if tuple(train_set.classes) != tuple(test_set.classes):
        raise ValueError(f"train and test of {config.data} name different classes")
    _require_choice(config, train_set)
    workers = config.workers if on_disk else 0
    training, test = (task.gather(part, config.num_points, on_disk, workers) for part in (train_set, test_set))
    parts = _parts(config, training, test)
    if folder is None:
        stem = f"finetune-{Path(config.data.split(':')[-1]).name}-{config.method}"
        folder = RunFolder.shared(config.output, stem, main)
        opened.callback(folder.close)
        folder.write_config(config, "finetune")
    for name, clouds in (("training data", training), ("test data", test)):
        require_unchanged(folder, name, clouds_fingerprint(clouds, config.data), DATA_WAY_OUT)
    if config.repeats == 1:
        facts = _run(accelerator, config, task, folder, parts(config.seed))
    else:
        runs = []
        for seed in range(config.seed, config.seed + config.repeats):
            inner = RunFolder(folder.path / f"seed-{seed}", main).lock()
            opened.callback(inner.close)
            single = replace(config, seed=seed, repeats=1)
            inner.write_config(single, "finetune")
            runs.append(_run(accelerator, single, task, inner, parts(seed)))
        facts = summarise(runs, task.numbers)
        if main:
            write_json(folder.path / "result.json", facts)
    return FinetuneResult(folder.path, facts)


def _check(config: FinetuneConfig, task: AnyTask) -> None:
    for name in ("repeats", "vote", "batch_size", "num_points", "epochs"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if (config.preset or config.config) and not config.set:  # every recipe sets some options
        raise ValueError(
            f"preset and config only name a recipe, which is not filled in: got {config.preset or config.config}; "
            "give find_preset(NAME).config(...) or read_recipe(FILE).config(...)"
        )
    for name in ("warmup_epochs", "workers"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must be at least 0, got {getattr(config, name)}")
    if config.checkpoint_blocks and method_class(config.method).reruns_blocks:
        raise ValueError(
            f"checkpoint_blocks must be off for {config.method}, whose loss runs the blocks again in another mode"
        )
    if config.checkpoint_blocks and (config.compile or config.cuda_graph):
        raise ValueError("checkpoint_blocks must be off with compile and cuda_graph, which choose what to recompute")
    if config.patience is not None and config.select == "last":
        raise ValueError("patience must be None where the last epoch is kept: --select val-best says which is better")
    if not 0 < config.val_fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, got {config.val_fraction}")
    if config.double_step and not task.double_step:
        raise ValueError(f"double_step must be off for {task.name}, whose published training steps once per batch")


def _require_choice(config: FinetuneConfig, train_set: Any) -> None:
    """Refuses data with nothing to tell apart."""
    what, names = ("part", train_set.parts) if hasattr(train_set, "parts") else ("class", train_set.classes)
    if len(names) < 2:
        raise ValueError(
            f"{config.data} has only one {what}, {', '.join(names)}: a model needs at least two to "
            "tell apart. Of a folder each sub-folder is a class"
        )


def _parts(config: FinetuneConfig, training: Any, test: Any) -> Any:
    """Gives the parts of the data for a seed; clouds in memory are read once for all seeds."""

    def parts(seed: int) -> dict[str, Any]:
        if config.select != "val-best":
            return {"train": training, "test": test}
        kept, held = split_validation(training.labels, config.val_fraction, seed)
        if not len(held):
            raise ValueError(
                f"val_fraction = {config.val_fraction} holds out none of {len(training)} training clouds; "
                "give more, or --select last"
            )
        return {"train": training.subset(kept), "val": training.subset(held), "test": test}

    return parts


def _run(
    accelerator: Accelerator, config: FinetuneConfig, task: AnyTask, folder: RunFolder, parts: dict[str, Any]
) -> dict[str, Any]:
    """One seed: train, select, test, probe, write."""
    training, test = parts["train"], parts["test"]
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
    check_compiled(config.cuda_graph, accelerator.device)
    seed_everything(accelerator.device, config.seed, "initial weights")
    outputs = task.outputs(training)
    model = build(config, outputs)
    require_unchanged(folder, "frozen weights", frozen_fingerprint(model), WEIGHTS_WAY_OUT)
    group_size = model.backbone.config.group_size
    for part in parts.values():
        part.require_points(group_size, f"group_size = {group_size} neighbours")
    augment_name = task.augment if config.augment == "auto" else config.augment
    augment = named(augment_name, training.up_axis)
    voting = Voting(config.vote, config.seed, task.test_augment)
    title = None if config.quiet or not accelerator.is_main_process else config.method

    def batches(epoch: int) -> Any:
        generator = torch.Generator().manual_seed(derive_seed(config.seed, epoch, "batches"))
        return training.batches(config.batch_size, generator, accelerator.process_index, accelerator.num_processes)

    def loss_of(wrapped: nn.Module, points: Tensor, targets: Any) -> dict[str, Tensor]:
        return task.losses(wrapped, model, points, targets)

    def test_on(name: str) -> Any:
        return task.judge(model, parts[name], config.batch_size, voting if name == "test" else Voting())

    def training_clouds() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "prepare"))
        for points, targets in training.batches(config.batch_size, generator):
            yield points.to(accelerator.device), task.classes_of(points, targets)

    synced = config.sync_batchnorm and accelerator.num_processes > 1
    if config.checkpoint_blocks:
        checkpoint_blocks(model.backbone.blocks)
    if synced:
        sync_batch_norm(model)
    model.method.prepare(model.to(accelerator.device), TrainingClouds(training_clouds))
    selector = Selector(config.select, test_on)

    def after_step() -> None:
        model.method.after_step(model)

    compiled = partial(compiled_step, cuda_graph=config.cuda_graph) if config.compile or config.cuda_graph else None
    folder.track(config.track, config)
    state = train(
        accelerator, model, recipe, batches, loss_of, folder, selector.after_epoch, title, after_step, augment, compiled
    )
    epoch = selector.restore(model, state)
    require_finite_weights(model.state_dict(), "the trained model")
    metrics, answers = task.test(model, test, config.batch_size, voting)
    facts: dict[str, Any] = {
        "test": metrics.summary(),
        "validation": test_on("val").summary() if "val" in parts else None,
        "linear probe": None,
        "seeds": [config.seed],
        "selection": {
            "rule": config.select,
            "meaning": MEANING[config.select],
            "epoch": epoch,
            "test set used to select": config.select == "test-best",
        },
        "task": config.task,
        "preset": config.preset or (config.config and str(config.config)),
        "method": config.method,
        "backbone": config.backbone,
        "model": model.config,
        "trainable parameters": model.trainable_parameters(),
        "trainable parameters without head": model.trainable_parameters(head=False),
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": config.data,
        "classes": list(training.classes),
        **task.metadata(training),
        "up axis": training.up_axis,
        "clouds normalized": training.normalized,
        "notes": list(training.notes),
        "clouds": {name: len(part) for name, part in parts.items()},
        "clouds in": "disk" if training.on_disk else "memory",
        "points": config.num_points,
        "augmentation": augment_name,
        "vote": config.vote,
        "double step": config.double_step,
        "epochs": config.epochs,
        "epochs trained": state.epoch,
        "batch size": config.batch_size,
        "training seconds": round(state.elapsed, 1),
        "clouds per second": round(state.samples / max(1e-9, state.busy), 1),
        "peak memory MiB": round(max(state.peak_memory, peak_memory(accelerator.device)) / 2**20),
        "peak memory of": "tensors on the GPU" if accelerator.device.type == "cuda" else "the whole process",
        "precision": config.precision,
        "versions": versions(),
    }
    if config.probe and task.probed and not method_class(config.method).is_probe:
        seed_everything(accelerator.device, config.seed, "initial weights")
        head = build_probe(config, outputs["num_classes"])
        if synced:
            sync_batch_norm(head)
        try:
            probed = probe(
                accelerator, head, recipe, config.batch_size, parts, config.select, augment, voting, folder,
                None if title is None else "linear probe",
            )  # fmt: skip
        except NotFiniteError as error:
            raise NotFiniteError(f"of the linear probe, which --no-probe leaves out: {error}") from error
        facts["linear probe"] = probed.summary()
    facts["per class"] = metrics.per_class(training.classes)
    if accelerator.is_main_process:
        known = (
            "task",
            "classes",
            *task.metadata(training),
            "up axis",
            "clouds normalized",
            "points",
            "test",
            "validation",
            "linear probe",
            "selection",
            "augmentation",
            "vote",
            "seeds",
        )
        # The last part of the data's name: adapters travel, and need not tell where their clouds lay.
        told = {"data": Path(facts["data"]).name} | {name: facts[name] for name in known}
        save_adapter(model, folder.path / ADAPTER, told)
        task.report(folder.path, test, answers, metrics, state.history, epoch)
        write_json(folder.path / "result.json", facts)  # the last file: where it is, the run is complete
        folder.close()
    return facts


def summarise(runs: list[dict[str, Any]], numbers: Sequence[str]) -> dict[str, Any]:
    """One result of several seeds: mean and standard deviation (of a sample), and the runs themselves."""
    facts = dict(runs[0])
    facts["seeds"] = [run["seeds"][0] for run in runs]
    for part in ("test", "validation", "linear probe"):
        if runs[0][part] is None:
            continue
        facts[part] = {"clouds": runs[0][part]["clouds"]}
        for name in numbers:
            values = [run[part][name] for run in runs]
            facts[part][name] = round(statistics.fmean(values), 4)
            facts[part][f"{name} std"] = round(statistics.stdev(values), 4) if len(values) > 1 else math.nan
    facts["runs"] = [{"seed": run["seeds"][0], "test": run["test"], "selection": run["selection"]} for run in runs]
    del facts["per class"]
    return facts
