"""Puts faults into the CUDA kernels, one at a time, and tells whether the emulated cases notice each.

    python -m tests.csrc.faults                      # all of them; ends with 1 where one is missed
    python -m tests.csrc.faults --only chamfer       # those whose operation or text has this

A fault is a text of csrc that stands there once, wherever its file lies, and what is put in its place.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from tests.csrc.emulated import draw_case, run_case
from tests.csrc.emulation import translation
from tests.csrc.emulation.kernels import Kernels

MAX_CASES = 150
ARCHITECTURE = 90  # that the damaged kernels are compiled for


@dataclasses.dataclass(frozen=True)
class Fault:
    """A change of a text of csrc, in what the kernels of `operation` include."""

    operation: str
    name: str
    text: str
    replacement: str


SYNC = "__syncthreads();"
FPS = "furthest_point_sample"
FAULTS = (
    Fault("gather", "index off by one", "return i >= 0 && i < n ?", "return i >= 0 && i <= n ?"),
    Fault("gather", "atomic dropped", "atomicAdd(out + to, A(widen(grad[e])))", "out[to] += A(widen(grad[e]))"),
    Fault("gather", "alignment ignored", "(source.const_data_ptr()) % to == 0", "(source.const_data_ptr()) % 1 == 0"),
    Fault("gather", "one thread too many", "  if (e >= count) return;\n  const int64_t from", "  const int64_t from"),
    Fault(
        "gather",
        "no device guard",
        "torch::stable::accelerator::DeviceGuard guard(features.get_device_index());\n  const Tensor source",
        "const Tensor source",
    ),
    Fault("ball_query", "mask off by one", "__popc(mask & ((1u << lane) - 1))", "__popc(mask & ((2u << lane) - 1))"),
    Fault("ball_query", "bound of k dropped", "if (inside[u] && place < k)", "if (inside[u])"),
    Fault("ball_query", "bound of n off by one", "        if (j < n) {", "        if (j <= n) {"),
    Fault("ball_query", "wrong stride", "qx = A(q[0])", "qx = A(q[1])"),
    Fault("knn", "barrier before a tile", f"length - begin));\n        {SYNC}", "length - begin));"),
    Fault("knn", "barrier behind a tile", f"{SYNC}\n        if (!active) continue;", "if (!active) continue;"),
    Fault("knn", "slots not yet moved", "slots[lane] = rest;\n    __syncwarp();", "slots[lane] = rest;"),
    Fault("knn", "slots not yet filled", "waiting += __popc(votes);\n    __syncwarp();", "waiting += __popc(votes);"),
    Fault("knn", "mask off by one", "__popc(votes & ((1u << lane) - 1))", "__popc(votes & ((2u << lane) - 1))"),
    Fault("knn", "a pass repeats a key", "selection.limit.index() + 1", "selection.limit.index()"),
    Fault("knn", "lengths ignored", "given < 0 ? 0 : min(given, p.n)", "p.n"),
    Fault("knn", "products not yet loaded", f"{SYNC}\n    const int depth", "const int depth"),
    Fault("knn", "products past the queries", "row + i < p.chunk ?", "true ?"),
    Fault("knn", "tie to the higher index", "(uint64_t{high} << 32) | i", "(uint64_t{high} << 32) | ~i"),
    Fault(
        FPS,
        "barrier of a step",
        f"slots.warps[slot][threadIdx.x / 32] = mine;\n    {SYNC}",
        "slots.warps[slot][threadIdx.x / 32] = mine;",
    ),
    Fault(FPS, "slot reused", "static_cast<int>(m & 1)", "0"),
    Fault(FPS, "barrier of a cluster", "threadIdx.x) = mine;\n      cluster.sync();", f"threadIdx.x) = mine; {SYNC}"),
    Fault(FPS, "block that has not begun", "cooperative_groups::this_cluster().sync();  // no block", "; // no block"),
    Fault(FPS, "lanes disagree", "warp_min(mine.bits == most ? mine.index : static_cast<Index>(-1))", "mine.index"),
    Fault(FPS, "wrong stride", "data[i * stride_n + c * stride_c]", "data[i * stride_n + c]"),
    Fault(FPS, "tie to the last", "if (bits > most) {", "if (bits >= most) {"),
    Fault(FPS, "bucket of another lane", "if (team.lane() == owner) winner[k] = won;", "winner[k] = won;"),
    Fault(FPS, "output moved by one", "[b * task.num_samples + m] = pick", "[b * task.num_samples + m + 1] = pick"),
    Fault(FPS, "lengths not clamped", "length < 1 ? 1 : length > n ? n : length", "length"),
    Fault(FPS, "distance of another thread", "nearer(distances[i], cloud", "nearer(distances[i ^ 1], cloud"),
    Fault(FPS, "large clusters not allowed", "if (blocks > 8) cudaFunc", "if (blocks > 99) cudaFunc"),
    Fault(
        FPS,
        "too many threads",
        "memory_kernel<A, 1024, false>, batch, 1, plan.threads,",
        "memory_kernel<A, 1024, false>, batch, 1, plan.threads + 32,",
    ),
    Fault("aggregate_neighbors", "alignment ignored", "reinterpret_cast<uintptr_t>(address) % 16 == 0", "true"),
    Fault("aggregate_neighbors", "place off by one", "(winners.value[w]) == j)", "(winners.value[w]) == j + 1)"),
    Fault(
        "aggregate_neighbors",
        "a step of a sum left out",
        "offset > 0; offset /= 2) sum += __shfl_down",
        "offset > 1; offset /= 2) sum += __shfl_down",
    ),
    Fault(
        "chamfer_distance",
        "barrier behind a tile",
        f"{SYNC}\n    const int count = tile_length(sup",
        "const int count = tile_length(sup",
    ),
    Fault("chamfer_distance", "barrier before a tile", f"at = base + near;\n    {SYNC}", "at = base + near;"),
    Fault(
        "chamfer_distance",
        "backward without barrier",
        f"{SYNC}\n    const int count = tile_length(oth",
        "const int count = tile_length(oth",
    ),
    Fault("chamfer_distance", "tie to the last", "      if (d < best) {", "      if (d <= best) {"),
    Fault("chamfer_distance", "thread past the cloud", "me.number < support.length)", "me.number <= support.length)"),
    Fault("sample_and_group", "wrong stride", "e % 3 * stride_c]", "e % 3]"),
)


def damaged(fault: Fault) -> dict[str, str]:
    """The sources with a fault in them."""
    sources = translation.sources()
    device = {name: text for name, text in sources.items() if name.endswith((".cu", ".cuh"))}
    count = sum(text.count(fault.text) for text in device.values())
    if count != 1:
        raise ValueError(f"the text of the fault {fault.operation}: {fault.name} stands {count} times in csrc")
    return sources | {name: text.replace(fault.text, fault.replacement) for name, text in device.items()}


def compile_damaged(fault: Fault) -> Kernels:
    sources = damaged(fault)
    needed = ("knn", FPS, fault.operation) if fault.operation == "sample_and_group" else (fault.operation,)
    files = [name for name in sources if name.endswith(".cu") and Path(name).stem in needed]
    return Kernels(ARCHITECTURE, sources, files)


def notice(fault: Fault, max_cases: int = MAX_CASES) -> tuple[int, str] | None:
    """Which case notices a fault, and how; None where none does."""
    kernels = compile_damaged(fault)
    for number in range(max_cases):
        case = draw_case(fault.operation, 0, number)
        if case.device.architecture < ARCHITECTURE:
            continue
        if (wrong := run_case(case, number, kernels)) is not None:
            return number, wrong
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of an operation's or a fault's name")
    parser.add_argument("--cases", type=int, default=MAX_CASES, help="the most that a fault may take to be noticed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    missed = 0
    chosen = [fault for fault in FAULTS if options.only in f"{fault.operation}: {fault.name}"]
    for fault in chosen:
        noticed = notice(fault, options.cases)
        missed += noticed is None
        verdict = "MISSED" if noticed is None else f"case {noticed[0]}: {noticed[1]}"
        print(f"{fault.operation}, {fault.name}: {verdict}", flush=True)
    print(f"\n{len(chosen) - missed} of {len(chosen)} faults noticed")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
