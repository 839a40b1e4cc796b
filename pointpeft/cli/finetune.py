"""`pointpeft finetune`: from labelled clouds to an adapter and its accuracy."""

from typing import Any

from pointpeft.cli.table import print_rows
from pointpeft.training.config import FinetuneConfig

__all__ = ["FinetuneConfig", "run"]


def run(command: FinetuneConfig) -> int:
    """Adapts and prints the result."""
    from pointpeft.training.finetuning import finetune
    from pointpeft.training.tasks import create_task

    result = finetune(command)
    facts, folder = result.facts, result.folder
    task = create_task(facts["task"])
    numbers, probed = task.numbers, task.probed
    selection = facts["selection"]
    clouds = ", ".join(f"{count} {name}" for name, count in facts["clouds"].items())
    rows = {
        **{f"test {name}": accuracy(facts["test"], name) for name in numbers if name != "loss"},
        **({"same backbone, head only": accuracy(facts["linear probe"], numbers[0])} if probed else {}),
        f"validation {numbers[0].removeprefix('overall ')}": accuracy(facts["validation"], numbers[0]),
        "epoch selected": f"{selection['epoch'] + 1} of {facts['epochs']}: {selection['meaning']}",
        "seeds": ", ".join(map(str, facts["seeds"])),
        "trained parameters": f"{facts['trainable parameters']:,} of {facts['parameters']:,} "
        f"({facts['trainable parameters without head']:,} without the head)",
        "clouds": clouds,
        **({"note": "; ".join(facts["notes"])} if facts["notes"] else {}),
        "augmentation, vote": f"{facts['augmentation']}, {facts['vote']}",
        **({"quirks": facts["quirks"]} if facts["quirks"] != "none" else {}),
        "speed, memory": f"{facts['clouds per second']} clouds/s in training, "
        f"{facts['peak memory MiB']} MiB ({facts['peak memory of']})",
        "run folder": folder,
    }
    if len(facts["seeds"]) > 1:
        rows["epoch selected"] = f"by seed: {', '.join(str(r['selection']['epoch'] + 1) for r in facts['runs'])}"
    print_rows(rows)
    if len(facts["seeds"]) == 1:
        print(f"\nNext: pointpeft predict {folder} FILE...   or open {folder / task.page}")
    return 0


def accuracy(part: dict[str, Any] | None, name: str) -> str:
    """An accuracy in percent, with its standard deviation where there are several seeds."""
    if part is None:
        return "-"
    text = f"{part[name]:.2%}"
    return f"{text} ± {part[f'{name} std']:.2%}" if f"{name} std" in part else text
