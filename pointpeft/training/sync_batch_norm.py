"""BatchNorm over the batch of all processes, on any device: torch's own has no path for the CPU."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """The sum over the processes. Each sees the sum, so a process's value gets the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Such a sum again, so that it can be differentiated any number of times.
        return _Sum.apply(grads[0])


class SyncedBatchNorm1d(nn.BatchNorm1d):
    """As `nn.BatchNorm1d`; in training its mean and variance are those of all processes' rows together.

    Two messages forward and, where x needs a gradient, two backward. All processes must run it equally often.
    """

    takes_rows = True  # rows [B L, C] instead of [B, C, L] give it the same statistics

    def forward(self, x: Tensor) -> Tensor:  # pyrefly: ignore[bad-override-param-name]  # x, as everywhere
        """Normalises channels. [B, C] or [B, C, L]"""
        if not self.training or not (dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        self._check_input_dim(x)
        dims = (0,) if x.dim() == 2 else (0, 2)
        shape = (1, -1) if x.dim() == 2 else (1, -1, 1)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        rows = values.new_full((1,), x.numel() // x.shape[1])
        sums = _Sum.apply(torch.cat([values.sum(dims), rows]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = values - mean.view(shape)
        # The squares are those of differences: sums of x² would lose the variance of channels far from zero.
        var = _Sum.apply(centered.square().sum(dims)) / count
        self._track(mean.detach(), var.detach() * (count / (count - 1).clamp(min=1)))
        y = centered * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """Averages the running statistics of plain BatchNorms over all processes."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats:
            if isinstance(module, SyncedBatchNorm1d):
                continue
            for statistic in (module.running_mean, module.running_var):
                assert statistic is not None  # as track_running_stats says
                dist.all_reduce(statistic)
                statistic /= dist.get_world_size()


def sync_batch_norm(model: nn.Module) -> int:
    """Turns every `nn.BatchNorm1d` into a `SyncedBatchNorm1d`, in place: parameters and their names stay.

    Returns:
        How many there are.

    Raises:
        ValueError: A BatchNorm of another kind, which would stay as it is.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for module in layers:
        if type(module) not in (nn.BatchNorm1d, SyncedBatchNorm1d):
            raise ValueError(f"sync_batchnorm knows nn.BatchNorm1d alone, got a {type(module).__name__}")
        module.__class__ = SyncedBatchNorm1d
    return len(layers)
