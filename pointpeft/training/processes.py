"""Distributed steps: the rows of a batch for each process, sums of gradients, and gathered answers."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from torch import Tensor, nn

from pointpeft.progress import make_bar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def rank_and_world() -> tuple[int, int]:
    """The rank of this process and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share(total: int, rank: int, world: int) -> slice:
    """The rows of a batch that one process computes: consecutive, and as many as others' up to one.

    Args:
        total: Clouds in the batch of all processes.
        rank: The process.
        world: How many there are.
    """
    return slice(total * rank // world, total * (rank + 1) // world)


def require_clouds(smallest: int, world: int) -> None:
    """Refuses batches that leave a process without a cloud.

    Raises:
        ValueError: The smallest batch has fewer clouds than there are processes.
    """
    if smallest < world:
        raise ValueError(
            f"batch_size must give each of {world} processes a cloud in every step, got a batch of {smallest}: "
            "it counts the clouds of all processes"
        )


def augment_share(
    augment: Callable[[Tensor, torch.Generator], Tensor], points: Tensor, total: int, generator: torch.Generator
) -> Tensor:
    """Augments one process's rows of a batch exactly as if the whole batch were augmented here.

    Args:
        augment: Draws numbers by the shape of its argument; a cloud depends on no other.
        points: This process's rows, see `share`. [B', N, 3]
        total: B, clouds in the batch of all processes.
        generator: In the same state on all processes.

    Returns:
        [B', N, 3]
    """
    rank, world = rank_and_world()
    if world == 1:
        return augment(points, generator)
    mine = share(total, rank, world)
    whole = points.new_zeros((total, *points.shape[1:]))
    whole[mine] = points
    return augment(whole, generator)[mine]


def broadcast_trained(model: nn.Module) -> None:
    """Gives all processes the trainable parameters and the buffers of the first."""
    for tensor in [*(p.data for p in model.parameters() if p.requires_grad), *model.buffers()]:
        dist.broadcast(tensor, 0)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Adds up the gradients of all processes in one message per dtype.

    What is trained is small (a few MB but for `full`), so one message after the last backward of a step replaces
    DistributedDataParallel: no parameter must be used in every step, and the model stays the bare one. A parameter
    that no process used keeps no gradient.
    """
    for dtype in sorted({p.dtype for p in parameters}, key=str):
        chosen = [p for p in parameters if p.dtype == dtype]
        used = torch.tensor([p.grad is not None for p in chosen], dtype=dtype, device=chosen[0].device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in chosen]
        flat = torch.cat([used, *(grad.flatten() for grad in grads)])
        dist.all_reduce(flat)
        used, *sums = flat.split([len(chosen), *(p.numel() for p in chosen)])
        for parameter, count, total in zip(chosen, used.tolist(), sums, strict=True):
            parameter.grad = total.view_as(parameter).clone() if count else None


def largest(value: float, device: torch.device) -> float:
    """The largest of all processes' values: clocks differ, and all must act on one."""
    if rank_and_world()[1] == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)


def total_of(value: Tensor) -> Tensor:
    """The sum of all processes' values."""
    if rank_and_world()[1] > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def deal(
    items: Sequence[Item] | Iterator[Item], answer: Callable[[Item], Answer], title: str | None = None, unit: str = "it"
) -> list[Answer]:
    """Computes an answer for every item on one of the processes; all processes get all answers, in order.

    Args:
        items: The same on all processes, which must all call this. Of a sequence a process asks for its own alone; an
            iterator, which may draw numbers on its way, is gone through by all.
        answer: What to compute; its tensors are on the CPU.
        title: Of a progress bar, or None for none.
        unit: Of the bar.
    """
    rank, world = rank_and_world()
    mine: Iterable[tuple[int, Item]]
    if isinstance(items, Sequence):
        numbers = range(rank, len(items), world)
        mine, total = ((number, items[number]) for number in numbers), len(numbers)
    else:
        mine, total = ((number, item) for number, item in enumerate(items) if number % world == rank), None
    bar = make_bar(mine, title if rank == 0 else None, total=total, unit=unit, leave=False)
    answers_here: list[tuple[int, Any]] = [(number, answer(item)) for number, item in bar]
    every = answers_here if world == 1 else sorted(gather_object(answers_here), key=lambda pair: pair[0])
    return [value for _, value in every]
