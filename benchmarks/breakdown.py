"""Writes a stacked plot of where the milliseconds and the megabytes of a training step go, and the same as a table.

python -m benchmarks.breakdown --methods dapt full --batch 16
"""

import argparse
import os
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models.bench_training import CLASSES, _batch, backend
from pointpeft import PointModel, create_model

FOLDER = Path(__file__).resolve().parent
PARTS = ("grouping", "tokenizer", "positions", "blocks", "pooling and head", "backward", "optimizer")


class Spans:
    """Time and saved bytes of each part of a step: a part lasts from its mark to the next."""

    def __init__(self, model: PointModel, device: str):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.saved: dict[str, int] = defaultdict(int)
        self.part, self.began, self.seen = "", 0.0, {}
        weights = (*model.parameters(), *model.buffers())
        self.weights = {t.untyped_storage().data_ptr() for t in weights}
        backbone = model.backbone
        self.handles = [
            backbone.patch_embed.register_forward_pre_hook(lambda *_: self.mark("tokenizer")),
            backbone.patch_embed.register_forward_hook(lambda *_: self.mark("positions")),
            backbone.blocks[0].register_forward_pre_hook(lambda *_: self.mark("blocks")),
            backbone.blocks[-1].register_forward_hook(lambda *_: self.mark("pooling and head")),
        ]

    def mark(self, part: str) -> None:
        """Ends the part that runs, begins the next; "" ends the step."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.part:
            self.seconds[self.part] += now - self.began
        self.part, self.began = part, now
        if not part:
            self.seen = {}

    def keep(self, tensor: Tensor) -> Tensor:
        """Counts what autograd keeps, each storage once a step, without the weights."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights and storage.data_ptr() not in self.seen:
            self.seen[storage.data_ptr()] = tensor
            self.saved[self.part] += storage.nbytes()
        return tensor


def measure(method: str, name: str, batch: int, device: str, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds and saved megabytes of each part: those of the fastest of `repeats` steps."""
    torch.manual_seed(0)
    model = create_model("point_mae", method, CLASSES, device=device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-6, fused=True)
    xyz, labels = _batch(batch, device)
    best: Spans | None = None
    for step in range(repeats + 1):  # the first one warms up
        spans = Spans(model, device)
        with backend(name):
            optimizer.zero_grad()
            spans.mark("grouping")
            with torch.autograd.graph.saved_tensors_hooks(spans.keep, lambda tensor: tensor):
                logits = model(xyz)
                loss = F.cross_entropy(logits, labels) + sum(model.method.losses(model, xyz, labels, logits).values())
            spans.mark("backward")
            loss.backward()
            spans.mark("optimizer")
            optimizer.step()
            spans.mark("")
        for handle in spans.handles:
            handle.remove()
        if step and (best is None or sum(spans.seconds.values()) < sum(best.seconds.values())):
            best = spans
    assert best is not None
    return {p: 1e3 * best.seconds[p] for p in PARTS}, {p: best.saved[p] / 2**20 for p in PARTS}


def _table(results: dict[str, dict[str, float]], unit: str) -> list[str]:
    lines = [f"| {unit} | " + " | ".join(PARTS) + " | sum |", "|---|" + "---:|" * (len(PARTS) + 1)]
    for label, values in results.items():
        lines.append(
            f"| {label} | " + " | ".join(f"{values[p]:.0f}" for p in PARTS) + f" | {sum(values.values()):.0f} |"
        )
    return lines


def _plot(times: dict[str, dict[str, float]], memory: dict[str, dict[str, float]], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 1.6 + 0.45 * len(times)), sharey=True, layout="constrained")
    colors = dict(zip(PARTS, plt.get_cmap("tab10").colors, strict=False))
    for axis, results, unit in ((axes[0], times, "ms a step"), (axes[1], memory, "MiB kept for the backward")):
        left = [0.0] * len(results)
        for part in PARTS:
            values = [result[part] for result in results.values()]
            axis.barh(
                list(results), values, left=left, label=part, color=colors[part], edgecolor="white", linewidth=0.5
            )
            left = [a + b for a, b in zip(left, values, strict=True)]
        for row, total in enumerate(left):
            axis.text(total, row, f" {total:.0f}", va="center", fontsize=8)
        axis.set_xlim(0, 1.12 * max(left))
        axis.set_xlabel(unit)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()  # shared: the first row stands on top
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(PARTS), fontsize=8, frameon=False)
    temporary = target.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=100, metadata={"Software": None})
    os.replace(temporary, target)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["dapt", "full"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=FOLDER / "results" / "breakdown.png")
    arguments = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    times, memory = {}, {}
    for method in arguments.methods:
        for name in ("pointpeft", "reference"):
            label = f"{method}, {name}"
            times[label], memory[label] = measure(method, name, arguments.batch, arguments.device, arguments.repeats)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    _plot(times, memory, arguments.output)
    print("\n".join([*_table(times, "ms"), "", *_table(memory, "MiB"), "", str(arguments.output)]))


if __name__ == "__main__":
    main()
