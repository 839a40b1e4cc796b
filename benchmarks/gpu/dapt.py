"""DAPT at the published size: a training step and inference as calls, for what times and profiles them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu import absent

STAND_INS = absent.stand_in()

from pointpeft import create_model  # noqa: E402  (after the stand-ins)

POINTS, CLASSES = 2048, 15
TINY = {"width": 32, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 8, "rank": 4}
PRECISIONS = ("bf16", "fp32", "tf32")


class Dapt:
    """A model, its optimizer, and batches of random clouds."""

    def __init__(self, device: str, precision: str, tiny: bool):
        self.device = device
        self.precision = precision
        self.points = 64 if tiny else POINTS
        torch.manual_seed(0)
        self.model = create_model("point_mae", "dapt", CLASSES, device=device, **(TINY if tiny else {}))
        with torch.no_grad():  # an adapter that starts as zero would hide what is wrong behind it
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.01)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, 1e-6, fused=True, capturable=device == "cuda")

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Clouds and labels, the same ones for the same size."""
        generator = torch.Generator().manual_seed(0)
        xyz = torch.randn(size, self.points, 3, generator=generator)
        return xyz.to(self.device), torch.randint(CLASSES, (size,), generator=generator).to(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 where that is the precision."""
        return torch.autocast(self.device, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def loss(self, forward: Callable[..., Tensor], xyz: Tensor, labels: Tensor) -> Tensor:
        """What training minimises."""
        with self.autocast():
            logits = forward(xyz)
            others = self.model.method.losses(self.model, xyz, labels, logits).values()
            return F.cross_entropy(logits, labels) + sum(others)

    def training_step(self, size: int, forward: Callable[..., Tensor] | None = None) -> Callable[[], Tensor]:
        """A step: forward, backward, optimizer."""
        xyz, labels = self.batch(size)
        self.model.train()
        forward = self.model if forward is None else forward

        def step() -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()  # of graphs that torch.compile records; for others nothing
            self.optimizer.zero_grad(set_to_none=True)
            value = self.loss(forward, xyz, labels)
            value.backward()
            self.optimizer.step()
            return value.detach()

        return step

    def inference(self, size: int, forward: Callable[..., Tensor] | None = None) -> Callable[[], Tensor]:
        """Logits of a batch."""
        xyz, _ = self.batch(size)
        self.model.eval()
        forward = self.model if forward is None else forward

        def run() -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            with self.autocast(), torch.inference_mode():
                return forward(xyz)

        return run

    def call(self, work: str, size: int, forward: Callable[..., Tensor] | None = None) -> Callable[[], Tensor]:
        """Training or inference, by name."""
        return self.training_step(size, forward) if work == "training" else self.inference(size, forward)

    def answers(self, size: int = 2) -> list[Tensor]:
        """Logits and gradients without dropout, on the CPU, to be held against those of another device."""
        xyz, labels = self.batch(size)
        self.model.eval()
        self.model.zero_grad()
        self.loss(self.model, xyz, labels).backward()
        gradients = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        self.model.zero_grad()
        with torch.no_grad(), self.autocast():
            return [self.model(xyz).float().cpu(), torch.cat(gradients).float().cpu()]


def distance(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Relative distances of logits and of gradients."""
    return [float((f - e).norm() / e.norm()) for f, e in zip(found, expected, strict=True)]


def set_precision(precision: str) -> None:
    """Lets float32 products run in TF32, or not."""
    wish = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = wish


def compiled(model: nn.Module, graphs: bool, tiny: bool) -> Callable[..., Tensor]:
    """The model through torch.compile, with its CUDA graphs or without."""
    torch.compiler.reset()
    if tiny:
        return torch.compile(model, backend="eager", dynamic=False)
    return torch.compile(model, mode="reduce-overhead" if graphs else None, dynamic=False)
