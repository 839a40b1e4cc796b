"""Cases of furthest_point_sample: plans that a test makes, on small clouds, and the project's own, on its bounds."""

import torch

from pointpeft.ops import furthest_point_sample_reference
from tests.csrc.cases.draw import FLOATS, Case, Draw, references_take_any_value
from tests.csrc.emulation.kernels import Plan

HELD = [Plan("held", 128, 4, 1), Plan("held", 256, 4, 1), Plan("held", 256, 8, 1)]
HELD += [Plan("held", 512, 4, blocks) for blocks in (2, 4, 8, 16)]
HELD += [Plan("held", 512, points, blocks) for points in (8, 16, 24) for blocks in (1, 2, 4, 8, 16)]
BUCKETS = [Plan("buckets", 512, 0, blocks) for blocks in (1, 2, 4, 8, 16)]
MEMORY = [Plan("memory", 1024, 0, blocks) for blocks in (1, 2, 4, 8, 16)]


def arguments_of(draw: Draw, b: int, n: int, k: int, dtype: torch.dtype) -> tuple:
    x = draw.values(b, n, 3, dtype)
    lengths = draw.integers(k, n + 1, b) if draw.random() < 0.4 else None
    ends = [n] * b if lengths is None else lengths.tolist()
    firsts = [draw.randrange(end) for end in ends]
    if draw.random() < 0.25:  # a start that is not finite is no point that distances are taken to
        x = draw.not_finite(x, draw.choice((0.05, 0.5)))
        for cloud, first in zip(x, firsts, strict=True):
            cloud[first] = torch.tensor([0.0, -0.5, 1.0]).to(dtype)
    x = x if draw.random() < 0.5 else draw.strided(x.contiguous())
    if len({x[i].data_ptr() for i in range(b)}) < b:  # one cloud for all of the batch
        firsts, lengths = firsts[:1] * b, None if lengths is None else lengths[:1].repeat(b)
    starts = torch.tensor(firsts) if draw.random() < 0.5 or len(set(firsts)) > 1 else None
    return x, k, lengths, starts, 0 if starts is not None else firsts[0], draw.choice((0.0, 0.0, 1e-3, 1.0))


def expected_of(arguments: tuple):
    x, k, lengths, starts, start, min_sq_norm = arguments

    def expected():
        with references_take_any_value():
            first = start if starts is None else starts
            idx = furthest_point_sample_reference(x, k, lengths=lengths, start=first, min_sq_norm=min_sq_norm)
        return ((idx, None),)

    return expected


def chosen_plan(draw: Draw) -> Case:
    plan, dtype = draw.choice(draw.choice((HELD, BUCKETS, MEMORY))), draw.choice(FLOATS)
    if dtype == torch.float64 and plan.points > 8:
        dtype = torch.float32
    capacity = plan.threads * plan.points * plan.blocks if plan.way == "held" else 10**9
    n = min(capacity, draw.size(3000 if plan.blocks <= 2 else 6000))
    k = min(n, draw.choice((1, 2, 10, draw.size(60))) if plan.blocks <= 2 else draw.choice((1, 2, 5, 9)))
    arguments = arguments_of(draw, draw.randint(1, 2 if plan.blocks <= 4 else 1), n, k, dtype)
    device = draw.device(min_architecture=90 if plan.blocks > 1 else 0, min_cluster=plan.blocks)
    path = f"{plan.way}, " + (f"cluster of {plan.blocks}" if plan.blocks > 1 else "a block")
    return Case("furthest_point_sample", path, arguments, expected_of(arguments), device, {"plan": plan})


def own_plan(draw: Draw) -> Case:
    """The project's plan, at its bounds."""
    bounds = (512, 1024, 2048, 4096, 8192, 12288, 24576)
    n = draw.choice([bound + more for bound in bounds for more in (0, 1)])
    k = draw.choice((1, 2, 9)) if draw.random() < 0.7 else draw.choice((63, 64, 65))  # 64 are worth sorting
    arguments = arguments_of(draw, draw.randint(1, 2), n, min(n, k), draw.choice(FLOATS))
    return Case("furthest_point_sample", "the project's plan", arguments, expected_of(arguments), draw.device())


def wrong_lengths_and_starts(draw: Draw) -> Case:
    """Nobody looks at them on CUDA: every pick is a point of the tensor all the same, and nothing else is touched."""
    plan = draw.choice((HELD[0], BUCKETS[0], MEMORY[0]))
    n = min(draw.size(500), 512)
    x = draw.values(2, n, 3, torch.float32)
    lengths, starts = torch.tensor([-5, n + 9]), torch.tensor([-7, n + 3])
    clamped = (x, 1, torch.tensor([1, n]), torch.tensor([0, n - 1]), 0, 0.0)
    path = f"{plan.way}, wrong lengths"
    return Case(
        "furthest_point_sample",
        path,
        (x, 1, lengths, starts, 0, 0.0),
        expected_of(clamped),
        draw.device(),
        {"plan": plan},
    )


CASES = (chosen_plan, chosen_plan, chosen_plan, own_plan, wrong_lengths_and_starts)
