"""`pointpeft convert`: published files to adapters and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Convert:
    """Convert a published .pth file into an adapter folder, or an adapter folder into a .pth file, bit for bit."""

    source: Annotated[Path, Positional, arg(metavar="SOURCE")]
    """A published file, a run folder of `pointpeft finetune` or its `adapter` folder alone."""
    output: Annotated[Path, Positional, arg(metavar="OUTPUT")]
    """A new folder for the adapter, or a new .pth file."""
    config: Path | None = None
    """YAML file whose `model:` section the published file was trained with."""
    family: str | None = None
    """Backbone, method or backbone+method of the published file; by default inferred from its names."""
    beside: Path | None = None
    """File with tensors that published files of the method lack, such as Point-PEFT's memory bank."""


def run(command: Convert) -> int:
    """Converts, and prints the backbone and method."""
    from pointpeft.checkpoints.convert import convert
    from pointpeft.runs.evaluate import adapter_folder

    source = adapter_folder(command.source) if command.source.is_dir() else command.source
    model = convert(source, command.output, command.config, command.family, command.beside)
    print(f"{model.method.name} on {model.backbone_name}, {model.num_classes} classes: written to {command.output}")
    if model.load_report is not None and model.load_report.missing:
        print(
            f"the file lacked {len(model.load_report.missing)} tensors, which are fresh: a pre-training, not a result"
        )
    return 0
