"""Pre-training without labels: masked autoencoding of a backbone, and the weight file with its card."""

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pointpeft.backbones import create_backbone
from pointpeft.backbones.masked_autoencoder import MaskedAutoencoder
from pointpeft.backbones.point_mae import PointMAE
from pointpeft.data import load_dataset
from pointpeft.data.transforms import named, turn_y_up
from pointpeft.escapes import markdown_text
from pointpeft.files import save_tensors, write_atomically
from pointpeft.runs.config import PretrainConfig
from pointpeft.runs.plan import PretrainPlan, plan_pretrain
from pointpeft.runs.result import WEIGHTS, PretrainResult, entries_of, write_result
from pointpeft.runs.resume import PRETRAIN_FREE, clouds_fingerprint, reopened, require_unchanged, tell_finished
from pointpeft.runs.versions import versions
from pointpeft.tasks.batches import Batches, Clouds
from pointpeft.tasks.classification.task import Classification
from pointpeft.tasks.storage import should_read_lazily
from pointpeft.training.determinism import determinism
from pointpeft.training.divergence import require_finite_weights
from pointpeft.training.loop import State, make_accelerator, seed_everything, train
from pointpeft.training.memory import peak_memory
from pointpeft.training.out_of_memory import explain_out_of_memory, explain_single_cloud
from pointpeft.training.run_folder import RunFolder, write_text
from pointpeft.training.seeds import derive_seed
from pointpeft.training.tracking import require_tracker

# Numbers that differ between runs of one seed: they stand beside the weights, whose file repeats to the byte.
MEASURED = ("training_minutes", "clouds_per_second", "peak_memory_mib")


def pretrain(config: PretrainConfig) -> PretrainResult:
    """Pre-trains a backbone by rebuilding masked patches, or continues a stopped pre-training.

    Raises:
        ValueError: A wrong option, data set or cloud.

    Source: Pang et al., "Masked autoencoders for point cloud self-supervised learning", ECCV 2022.
    """
    config, begun = reopened(config, "pretrain", PRETRAIN_FREE)
    plan = plan_pretrain(config)
    accelerator = make_accelerator(plan.execution.device, plan.execution.precision)
    main = accelerator.is_main_process
    if begun is not None:
        folder = RunFolder(begun, main).lock()
        tell_finished(folder)
    else:
        folder = RunFolder.shared(plan.output.folder, plan.output.stem, main)
    subject, remedies = f"pre-training {plan.backbone}", "--accumulate keeps the batch of a step"
    with (
        closing(folder),
        determinism(plan.execution.deterministic),
        explain_out_of_memory(subject, plan.batch_size, remedies),
        explain_single_cloud(plan.batch_size),
    ):
        return _pretrain(accelerator, plan, config, folder)


def _pretrain(
    accelerator: Accelerator, plan: PretrainPlan, config: PretrainConfig, folder: RunFolder
) -> PretrainResult:
    require_tracker(plan.output.track)
    clouds = _read_clouds(plan)
    seed_everything(accelerator.device, plan.recipe.seed, "initial weights")
    backbone = create_backbone(plan.backbone, **plan.backbone_options)
    model = MaskedAutoencoder(backbone, mask_ratio=plan.mask_ratio)
    clouds.require_points(backbone.config.group_size, f"group_size = {backbone.config.group_size} neighbours")
    augment = named(plan.augment, clouds.up_axis)
    folder.write_config(config, "pretrain")
    way_out = "Put the data back as it was, or begin a new run without --resume"
    require_unchanged(folder, "training data", clouds_fingerprint(clouds, plan.data.source), way_out)

    def batches(epoch: int) -> Batches:
        generator = torch.Generator().manual_seed(derive_seed(plan.recipe.seed, epoch, "batches"))
        return clouds.batches(plan.batch_size, generator, accelerator.process_index, accelerator.num_processes)

    def loss_of(model: nn.Module, points: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": model(turn_y_up(points, clouds.up_axis))}

    folder.track(plan.output.track)
    title = None if plan.output.quiet else f"pretrain {plan.backbone}"
    state = train(accelerator, model, plan.recipe, batches, loss_of, folder, progress_bar=title, augment=augment)
    result = _result(plan, folder.path, state, clouds, backbone, peak_memory(accelerator.device))
    if accelerator.is_main_process:
        _write(result, model)
        folder.close()
    return result


def _read_clouds(plan: PretrainPlan) -> Clouds:
    data = plan.data
    on_disk = should_read_lazily(data.source, data.clouds_in, plan.num_points, ("train",), Classification())
    dataset = load_dataset(data.source, "train", lazy=on_disk, drop_non_finite=data.drop_non_finite)
    indices = None
    if plan.max_clouds is not None and plan.max_clouds < len(dataset):
        order = torch.Generator().manual_seed(derive_seed(plan.recipe.seed, "clouds"))
        indices = torch.randperm(len(dataset), generator=order)[: plan.max_clouds]
    return Clouds(dataset, plan.num_points, indices, on_disk=on_disk, workers=data.workers)


def _write(result: PretrainResult, model: MaskedAutoencoder) -> None:
    """Writes the weights with their card, and the result."""
    state = model.backbone_state_dict()
    require_finite_weights(state, "the trained backbone")
    tensors = {name: tensor.contiguous().cpu() for name, tensor in state.items()}
    header = {"format": "pt", "backbone": result.backbone, "fields": json.dumps(result.backbone_options)}
    entries = entries_of(result)
    header["metadata"] = json.dumps({name: value for name, value in entries.items() if name not in MEASURED})
    write_atomically(result.weights, lambda path: save_tensors(tensors, path, header))
    write_result(result)
    write_text(result.folder / "README.md", _card(result))


def _result(
    plan: PretrainPlan, folder: Path, state: State, clouds: Clouds, backbone: PointMAE, peak: int
) -> PretrainResult:
    recipe, history = plan.recipe, state.history
    return PretrainResult(
        folder=folder,
        backbone=plan.backbone,
        backbone_options=asdict(backbone.config),
        parameters=sum(p.numel() for p in backbone.parameters()),
        data=Path(plan.data.source).name,
        clouds=len(clouds),
        clouds_in="disk" if clouds.on_disk else "memory",
        points=plan.num_points,
        augmentation=plan.augment,
        mask_ratio=plan.mask_ratio,
        epochs=state.epoch,
        planned_epochs=recipe.epochs,
        time_limit_minutes=None if recipe.time_limit is None else round(recipe.time_limit / 60, 6),
        schedule="cosine over the planned epochs"
        if recipe.time_limit is None
        else "cosine over the larger of: share of the planned epochs, share of the time limit",
        clouds_seen=state.samples,
        training_minutes=round(state.elapsed / 60, 2),
        clouds_per_second=round(state.samples / max(1e-9, state.busy), 1),
        peak_memory_mib=round(max(state.peak_memory, peak) / 2**20),
        first_loss=history[0]["loss"] if history else None,
        last_loss=history[-1]["loss"] if history else None,
        last_learning_rate=history[-1]["lr"] if history else None,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        batch_size=plan.batch_size,
        seed=recipe.seed,
        versions=versions(),
    )


def _card(result: PretrainResult) -> str:
    """The model card: what the weights are, from the result alone."""
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {markdown_text(value)} |"
        for name, value in entries_of(result).items()
        if not isinstance(value, dict)
    )
    packages = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return (
        f"# {result.backbone}, pre-trained\n\n"
        f"A point-cloud transformer pre-trained without labels: {result.mask_ratio:.0%} of the patches of a "
        f"cloud are hidden and rebuilt (Point-MAE, ECCV 2022).\n\n"
        f"Use: `pointpeft finetune DATA --backbone {result.backbone} --checkpoint {WEIGHTS}`\n\n"
        f"| | |\n|---|---|\n{rows}\n\nVersions: {packages}\n"
    )
