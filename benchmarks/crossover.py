"""Where one way of an operation overtakes another on the CPU: the sizes behind the constants of its choice.

python -m benchmarks.crossover --threads 1

Times every way on sizes on both sides of the constants, one after another in each round, and the operation, which picks
one of them: a good constant is one where it loses nothing against the fastest. Milliseconds, minimum of all rounds.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pointpeft.ops import furthest_point_sample, knn

Ways = dict[str, Callable[[], Any]]


def interleaved(runs: Ways, seconds: float) -> dict[str, float]:
    """Shortest time of each run in milliseconds, from rounds of all that last `seconds` together, three at least."""
    shortest = dict.fromkeys(runs, math.inf)
    for run in runs.values():
        run()
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < 3 or time.perf_counter() < end:
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            shortest[name] = min(shortest[name], 1e3 * (time.perf_counter() - begin))
        rounds += 1
    return shortest


def uniform(*size: int) -> Tensor:
    """The same uniform values on every call. [*size]"""
    return torch.rand(*size, generator=torch.Generator().manual_seed(0))


def sampling(sizes: list[tuple[int, int, int]], ways: tuple[str, ...]) -> Iterator[tuple[str, Ways]]:
    """`furthest_point_sample` of (batch, n, k), by `ways` and as it chooses."""
    way = torch.ops.pointpeft._furthest_point_sample_one_way
    for batch, n, k in sizes:
        xyz = uniform(batch, n, 3)
        runs: Ways = {name: lambda xyz=xyz, k=k, name=name: way(xyz, k, name) for name in ways}
        runs["operation"] = lambda xyz=xyz, k=k: furthest_point_sample(xyz, k)
        yield f"{batch} x {k} of {n}", runs


def neighbours(sizes: list[tuple[int, int, int, int, int]], ways: tuple[str, ...]) -> Iterator[tuple[str, Ways]]:
    """`knn` of (batch, m, n, channels, k), by `ways` and as it chooses."""
    way = torch.ops.pointpeft._knn_one_way
    for batch, m, n, channels, k in sizes:
        query, support = uniform(batch, m, channels), uniform(batch, n, channels)
        arguments = (query, support, k)
        runs: Ways = {name: lambda arguments=arguments, name=name: way(*arguments, name) for name in ways}
        runs["operation"] = lambda arguments=arguments: knn(*arguments)
        yield f"{batch} x {k} nearest of {n} to {m}, C = {channels}", runs


TABLES = {
    "furthest_point_sample, rows or tree: tree_pays": lambda: sampling(
        [
            (1, n, k)
            for n in (2000, 4000, 8000, 16_000, 64_000)
            for k in sorted({160, 320, 640, 2**20 // n, 2**21 // n, 2**22 // n})
            if 100 <= k <= n
        ],
        ("alone", "tree"),
    ),
    "furthest_point_sample, one or two clouds at a time: kTogetherBytes": lambda: sampling(
        [(8, n, 64) for n in (128, 256, 512, 1024, 1536, 2048)], ("alone", "together")
    ),
    "knn, rows or tree: kLeastTreePoints, kLeastTreeQueries": lambda: neighbours(
        [(1, m, n, 3, 16) for m in (128, 256, 1024) for n in (1024, 2048, 4096, 16_384, 65_536)], ("rows", "tree")
    ),
    "knn, rows or product: kMostExactChannels": lambda: neighbours(
        [(batch, m, n, c, 20) for batch, m, n in ((32, 128, 128), (4, 512, 1024)) for c in (3, 8, 16)],
        ("rows", "product"),
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of each operation")
    parser.add_argument("--seconds", type=float, default=0.3, help="for the rounds of one line")
    parser.add_argument("--only", default="", help="tables whose title holds this text")
    chosen = parser.parse_args(arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(chosen.threads)
    for title, lines in TABLES.items():
        if chosen.only not in title:
            continue
        print(f"\n## {title}\n")
        heads: list[str] = []
        for size, runs in lines():
            if not heads:
                heads = list(runs)
                print(f"| size | {' | '.join(heads)} | fastest |\n|---|{'---:|' * len(heads)}---|")
            took = interleaved(runs, chosen.seconds)
            fastest = min((name for name in heads if name != "operation"), key=took.__getitem__)
            print(f"| {size} | {' | '.join(f'{took[name]:.3f}' for name in heads)} | {fastest} |", flush=True)
    torch.set_num_threads(before)


if __name__ == "__main__":
    main()
