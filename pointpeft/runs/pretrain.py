"""Pre-training without labels: masked autoencoding of a backbone, and the weight file with its card."""

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pointpeft.backbones import create_backbone
from pointpeft.backbones.masked_autoencoder import MaskedAutoencoder
from pointpeft.data import load_dataset
from pointpeft.data.transforms import named
from pointpeft.escapes import markdown_text
from pointpeft.files import save_tensors, write_atomically, write_json
from pointpeft.runs.config import PretrainConfig
from pointpeft.runs.plan import backbone_options
from pointpeft.runs.resume import PRETRAIN_FREE, clouds_fingerprint, require_unchanged, resumed_config, tell_finished
from pointpeft.tasks.batches import Clouds
from pointpeft.tasks.classification.task import Classification
from pointpeft.tasks.storage import should_read_lazily
from pointpeft.training.determinism import determinism
from pointpeft.training.divergence import require_finite_weights
from pointpeft.training.loop import Recipe, State, make_accelerator, seed_everything, train
from pointpeft.training.memory import peak_memory
from pointpeft.training.out_of_memory import named_out_of_memory, named_single_cloud
from pointpeft.training.run_folder import RunFolder, write_text
from pointpeft.training.seeds import derive_seed
from pointpeft.training.tracking import require_tracker
from pointpeft.training.versions import versions

WEIGHTS = "backbone.safetensors"
# Facts that differ between runs of one seed: they stand beside the weights, whose file repeats to the byte.
MEASURED = ("training minutes", "clouds per second", "peak memory MiB")


@dataclass(frozen=True)
class PretrainResult:
    """What a pre-training gave.

    Attributes:
        folder: The run folder.
        weights: The backbone's weights in it.
        facts: What `result.json` holds.
    """

    folder: Path
    weights: Path
    facts: dict[str, Any]


def pretrain(config: PretrainConfig) -> PretrainResult:
    """Pre-trains a backbone by rebuilding masked patches, or continues a stopped pre-training.

    Raises:
        ValueError: A wrong option, data set or cloud.

    Source: Pang et al., "Masked autoencoders for point cloud self-supervised learning", ECCV 2022.
    """
    accelerator = make_accelerator(config.device, config.precision)
    main = accelerator.is_main_process
    if config.resume is not None:
        folder = RunFolder(config.resume, main and Path(config.resume).is_dir())
        config = resumed_config(folder, config, "pretrain", PRETRAIN_FREE)
        folder.lock()
        tell_finished(folder)
    else:
        if config.data is None:
            raise ValueError("name the clouds to pre-train on: pointpeft pretrain DATA")
        folder = RunFolder.shared(config.output, f"pretrain-{config.backbone}", main)
    asked, remedies = f"pre-training {config.backbone}", "--accumulate keeps the batch of a step"
    with (
        closing(folder),
        determinism(config.deterministic),
        named_out_of_memory(asked, config.batch_size, remedies),
        named_single_cloud(config.batch_size),
    ):
        return _pretrain(accelerator, config, folder)


def _pretrain(accelerator: Accelerator, config: PretrainConfig, folder: RunFolder) -> PretrainResult:
    main = accelerator.is_main_process
    if config.max_clouds is not None and config.max_clouds < 1:
        raise ValueError(f"max_clouds must be at least 1, got {config.max_clouds}")
    require_tracker(config.track)
    if config.workers < 0:
        raise ValueError(f"workers must be at least 0, got {config.workers}")
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
    on_disk = should_read_lazily(str(config.data), config.clouds_in, config.num_points, ("train",), Classification())
    dataset = load_dataset(config.data, "train", lazy=on_disk, drop_non_finite=config.drop_non_finite)
    indices = None
    if config.max_clouds is not None and config.max_clouds < len(dataset):
        order = torch.Generator().manual_seed(derive_seed(config.seed, "clouds"))
        indices = torch.randperm(len(dataset), generator=order)[: config.max_clouds]
    clouds = Clouds(dataset, config.num_points, indices, on_disk=on_disk, workers=config.workers)
    seed_everything(accelerator.device, config.seed, "initial weights")
    backbone = create_backbone(config.backbone, **backbone_options(config))
    model = MaskedAutoencoder(backbone, mask_ratio=config.mask_ratio)
    clouds.require_points(backbone.config.group_size, f"group_size = {backbone.config.group_size} neighbours")
    augment = named(config.augment, dataset.up_axis)
    folder.write_config(config, "pretrain")
    way_out = "Put the data back as it was, or begin a new run without --resume"
    require_unchanged(folder, "training data", clouds_fingerprint(clouds, str(config.data)), way_out)

    def batches(epoch: int) -> Any:
        generator = torch.Generator().manual_seed(derive_seed(config.seed, epoch, "batches"))
        return clouds.batches(config.batch_size, generator, accelerator.process_index, accelerator.num_processes)

    def loss_of(model: Any, points: torch.Tensor, labels: torch.Tensor) -> Any:
        return {"loss": model(points)}

    folder.track(config.track, config)
    title = None if config.quiet else f"pretrain {config.backbone}"
    state = train(accelerator, model, recipe, batches, loss_of, folder, progress_bar=title, augment=augment)
    facts = _facts(config, state, clouds, backbone, peak_memory(accelerator.device))
    weights = folder.path / WEIGHTS
    if main:
        require_finite_weights(model.backbone_state_dict(), "the trained backbone")
        tensors = {name: tensor.contiguous().cpu() for name, tensor in model.backbone_state_dict().items()}
        header = {"format": "pt", "backbone": config.backbone, "fields": json.dumps(asdict(backbone.config))}
        header["metadata"] = json.dumps({name: value for name, value in facts.items() if name not in MEASURED})
        write_atomically(weights, lambda path: save_tensors(tensors, path, header))
        write_json(folder.path / "result.json", facts)
        write_text(folder.path / "README.md", _card(facts))
        folder.close()
    return PretrainResult(folder.path, weights, facts)


def _facts(config: PretrainConfig, state: State, clouds: Clouds, backbone: Any, peak: int) -> Any:
    return {
        "backbone": config.backbone,
        "backbone options": asdict(backbone.config),
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "data": Path(config.data or "").name,  # the card travels; where the data lay does not
        "clouds": len(clouds),
        "clouds in": "disk" if clouds.on_disk else "memory",
        "points": config.num_points,
        "augmentation": config.augment,
        "mask ratio": config.mask_ratio,
        "epochs": state.epoch,
        "planned epochs": config.epochs,
        "time limit minutes": config.time_limit_minutes,
        "schedule": "cosine over the planned epochs"
        if config.time_limit_minutes is None
        else "cosine over the larger of: part of the planned epochs, part of the time limit",
        "clouds seen": state.samples,
        "training minutes": round(state.elapsed / 60, 2),
        "clouds per second": round(state.samples / max(1e-9, state.busy), 1),
        "peak memory MiB": round(max(state.peak_memory, peak) / 2**20),
        "first loss": state.history[0]["loss"] if state.history else None,
        "last loss": state.history[-1]["loss"] if state.history else None,
        "last learning rate": state.history[-1]["lr"] if state.history else None,
        "lr": config.lr,
        "weight decay": config.weight_decay,
        "batch size": config.batch_size,
        "seed": config.seed,
        "versions": versions(),
    }


def _card(facts: dict[str, Any]) -> str:
    """The model card: what the weights are, from the facts alone."""
    rows = "\n".join(
        f"| {name} | {markdown_text(value)} |" for name, value in facts.items() if not isinstance(value, dict)
    )
    inner = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
    return (
        f"# {facts['backbone']}, pre-trained\n\n"
        f"A point-cloud transformer pre-trained without labels: {facts['mask ratio']:.0%} of the patches of a "
        f"cloud are hidden and rebuilt (Point-MAE, ECCV 2022).\n\n"
        f"Use: `pointpeft finetune DATA --backbone {facts['backbone']} --checkpoint {WEIGHTS}`\n\n"
        f"| | |\n|---|---|\n{rows}\n\nVersions: {inner}\n"
    )
