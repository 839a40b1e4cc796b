"""Point-PEFT's memory bank of a data set, as a file."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from pointpeft.data import load_dataset
from pointpeft.files import save_tensors, write_atomically
from pointpeft.methods.prompts.memory_bank import SHA256, TENSOR, build_memory_bank
from pointpeft.runs.config import MemoryBankConfig
from pointpeft.runs.plan import plan_memory_bank
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
    plan = plan_memory_bank(config)
    device = make_accelerator(plan.device).device
    dataset = load_dataset(plan.data.source, "train", drop_non_finite=plan.data.drop_non_finite)
    clouds = Clouds(dataset, plan.num_points)
    model = plan.model.build({"num_classes": 1, "up_axis": clouds.up_axis}).to(device)
    group_size = model.backbone.config.group_size
    clouds.require_points(group_size, f"group_size = {group_size} neighbours")

    def batches() -> Iterator[Tensor]:
        for chunk in clouds.fixed().split(plan.batch_size):
            yield chunk.to(device)

    bank = build_memory_bank(model, batches()).cpu()
    header = {"data": plan.data.source, "backbone": plan.model.backbone, "points": str(plan.num_points)}
    if model.origin is not None:
        header[SHA256] = model.origin.sha256
    plan.file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(plan.file, lambda path: save_tensors({TENSOR: bank}, path, header))
    facts: dict[str, Any] = {
        "clouds": bank.shape[1],
        "channels": bank.shape[0],
        "file": str(plan.file),
        "method": plan.model.method,
    }
    return facts | ({"note": "; ".join(clouds.notes)} if clouds.notes else {})
