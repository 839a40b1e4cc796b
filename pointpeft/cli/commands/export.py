"""`pointpeft export`: the adapted model of a run for other runtimes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Export:
    """Write the adapted model of a run as one file for ONNX Runtime or PyTorch, folded and checked.

    The file takes `xyz`, clouds of as many points as in training, float32 (B, N, 3) for any B, and gives logits.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """Run folder of `pointpeft finetune`, or its `adapter` folder alone."""
    format: Literal["onnx", "pt2"] = "onnx"
    """`onnx` for ONNX Runtime and others, `pt2` for torch.export.load."""
    output: Path | None = None
    """File to write; RUN/model.onnx or RUN/model.pt2 if not given."""
    fused: bool = False
    """For pt2: keep the compiled operations, for programs that import pointpeft.ops."""


def run(command: Export) -> int:
    """Exports, and prints the file and its difference from the model."""
    import torch

    from pointpeft.checkpoints.export import export
    from pointpeft.runs.evaluate import load_run

    adapted = load_run(command.run, torch.device("cpu"))
    output = command.output or command.run / f"model.{command.format}"
    if output.suffix != f".{command.format}":
        raise ValueError(f"output must end in .{command.format}, got {output}")
    facts = {
        "classes": list(adapted.classes),
        "points": adapted.num_points,
        "clouds_normalized": adapted.normalized,
        "method": adapted.model.method.name,
        "backbone": adapted.model.backbone_name,
    }
    share = export(adapted.model, output, adapted.num_points, fused=command.fused, facts=facts)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, logits within {share:.1e} of the model's")
    return 0
