"""Models for other runtimes: ONNX, and PyTorch's own program format."""

import json
import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pointpeft.files import write_atomically
from pointpeft.model import PointModel
from pointpeft.ops.core import library

FORMATS = ("onnx", "pt2")
OPSET = 18
REMEDY = "ONNX export needs packages that are not installed: pip install 'pointpeft[export]'"
TOLERANCE = 1e-4  # of the largest logit: what another order of float32 sums may do
CHECKED_BATCHES = (1, 3)
FACTS = "pointpeft.json"  # in a .pt2 archive


def export(
    model: PointModel, path: str | Path, num_points: int, *, fused: bool = False, facts: dict[str, Any] | None = None
) -> float:
    """Writes a model that takes `xyz` (B, num_points, 3) float32 to logits (B, classes), for any B.

    What can be folded is folded first, on a copy. The file's operations are PyTorch's, or ONNX's, own: farthest point
    sampling is a scan, and the neighbours are a sort. The written file is run and compared with the model.

    Args:
        model: In evaluation mode, on the CPU, without inputs beside the coordinates.
        path: Ends in .onnx or .pt2, which decides the format; replaced if it exists.
        num_points: N of the clouds that it will get.
        fused: For .pt2: keep the compiled operations: faster, but a program that loads it must import `pointpeft.ops`.
        facts: Ready for JSON; kept in the file.

    Returns:
        Largest difference of the logits from the model's, as a share of the largest logit.

    Raises:
        ValueError: An unknown ending, a model that is not as above, or a file that does not agree with the model.
        ImportError: onnx, onnxscript or onnxruntime is missing.
    """
    path = Path(path)
    suffix = path.suffix.removeprefix(".")
    if suffix not in FORMATS:
        raise ValueError(f"path must end in {' or '.join('.' + name for name in FORMATS)}, got {path}")
    if fused and suffix != "pt2":
        raise ValueError("fused is for .pt2: other runtimes do not know the compiled operations")
    if model.training:
        raise ValueError("model must be in evaluation mode; call eval()")
    if model.inputs:
        raise ValueError(f"a model with the inputs {', '.join(model.inputs)} beside xyz cannot be exported")
    if suffix == "onnx" and any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        raise ImportError(REMEDY)
    generator = torch.Generator().manual_seed(0)
    clouds = [torch.rand(batch, num_points, 3, generator=generator) * 2 - 1 for batch in CHECKED_BATCHES]
    with torch.no_grad():
        expected = [model(xyz) for xyz in clouds]
        program = _trace(folded(model), clouds[-1], fused)
    write = _write_onnx if suffix == "onnx" else _write_pt2
    worst = 0.0

    def write_and_check(temporary: Path) -> None:
        nonlocal worst
        run = write(program, clouds[-1], temporary, facts or {})
        worst = max(_share(run(xyz), logits) for xyz, logits in zip(clouds, expected, strict=True))
        if not worst <= TOLERANCE:
            raise ValueError(f"the exported logits differ by {worst:.1e} of the largest, more than {TOLERANCE:.0e}")

    write_atomically(path, write_and_check)
    return worst


def folded(model: PointModel) -> PointModel:
    """The model merged, in a copy; the model itself where it is merged already or its method has nothing to fold."""
    if model.merged or not model.method.mergeable:
        return model
    from pointpeft.create import create_from_config

    copy = create_from_config(model.config, device=next(model.parameters()).device)
    copy.load_state_dict(model.state_dict())
    for ours, theirs in zip(copy.modules(), model.modules(), strict=True):
        if hasattr(theirs, "published_order"):
            ours.published_order = theirs.published_order
    return copy.eval().merge()


def _trace(model: PointModel, xyz: Tensor, fused: bool) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    with library.force_backend("auto" if fused else "reference"):
        return torch.export.export(model.eval(), (xyz,), dynamic_shapes={"xyz": {0: batch}}, strict=False)


def _share(actual: Tensor, expected: Tensor) -> float:
    return float((actual.detach() - expected).abs().max() / expected.abs().max())


def _write_pt2(
    program: torch.export.ExportedProgram, xyz: Tensor, path: Path, facts: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files={FACTS: json.dumps(facts)})
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _write_onnx(
    program: torch.export.ExportedProgram, xyz: Tensor, path: Path, facts: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    import onnxruntime
    from onnxscript import opset18 as op

    def sort(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        # TopK of everything: ONNX puts equal values in the order of their indices, which the stable sort is there for.
        count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
        return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)

    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # it names every operation of torchvision that it will not need
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = torch.onnx.export(
                program,
                (xyz,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["xyz"],
                output_names=["logits"],
                custom_translation_table={torch.ops.aten.sort.stable: sort},
            )
    finally:
        exporter.setLevel(level)
    assert written is not None  # as it is with dynamo=True
    written.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
    written.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda points: torch.from_numpy(session.run(["logits"], {"xyz": points.numpy()})[0])
