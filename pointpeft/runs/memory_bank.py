"""Point-PEFT's memory bank of a data set, as a file."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from pointpeft.data import load_dataset
from pointpeft.files import save_tensors, write_atomically
from pointpeft.methods.prompts.memory_bank import SHA256, TENSOR, build_memory_bank
from pointpeft.methods.prompts.point_peft import PointPEFT
from pointpeft.runs.config import FinetuneConfig, MemoryBankConfig
from pointpeft.runs.plan import build
from pointpeft.tasks.batches import Clouds
from pointpeft.training.loop import make_accelerator


def memory_bank(config: MemoryBankConfig) -> dict[str, Any]:
    """Writes the features of all training clouds.

    Returns:
        "clouds", "channels", "file" and the "method" that reads it; "note", what the user should know of the data set,
        where there is anything.

    Raises:
        ValueError: A wrong option, data set or checkpoint.
    """
    for name in ("num_points", "batch_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    device = make_accelerator(config.device).device
    wanted = FinetuneConfig(
        method=PointPEFT.name, backbone=config.backbone, checkpoint=config.checkpoint, set=config.set
    )
    dataset = load_dataset(config.data, "train", drop_non_finite=config.drop_non_finite)
    clouds = Clouds(dataset, config.num_points)
    model = build(wanted, {"num_classes": 1}).to(device)
    group_size = model.backbone.config.group_size
    clouds.require_points(group_size, f"group_size = {group_size} neighbours")

    def batches() -> Iterator[Tensor]:
        for chunk in clouds.fixed().split(config.batch_size):
            yield chunk.to(device)

    bank = build_memory_bank(model, batches()).cpu()
    facts = {"data": config.data, "backbone": config.backbone, "points": str(config.num_points)}
    if model.origin is not None:
        facts[SHA256] = model.origin.sha256
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(config.output, lambda path: save_tensors({TENSOR: bank}, path, facts))
    found: dict[str, Any] = {
        "clouds": bank.shape[1],
        "channels": bank.shape[0],
        "file": str(config.output),
        "method": PointPEFT.name,
    }
    return found | ({"note": "; ".join(clouds.notes)} if clouds.notes else {})
