"""Every path of every kernel once, on tensors as small as the path allows: what compute-sanitizer looks at.

python -m benchmarks.gpu.paths --device cuda --output paths.json --seconds 40

A path is named here with what makes the operation take it; its result is checked by shape and finiteness alone, since
the tests hold the values.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import files
from pointpeft import ops

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HELD = 196_608  # points that the largest cluster holds in float32, as furthest_point_plan.h says
NamedCall = tuple[str, Callable[[], Any]]


class Inputs:
    """Random tensors on a device; `small` takes a hundredth of the sizes that only large clouds need."""

    def __init__(self, device: str, small: bool):
        self.device = device
        self.small = small
        self.generator = torch.Generator().manual_seed(0)

    def rand(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.device, dtype)

    def weights(self, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [(self.rand(*s) - 0.5).to(dtype) / s[-1] ** 0.5 for s in shapes]

    def index(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator).to(self.device)

    def lengths(self, *values: int) -> Tensor:
        return torch.tensor(values, device=self.device)

    def large(self, n: int) -> int:
        return n // 100 if self.small else n


def sampling(make: Inputs) -> Iterator[NamedCall]:
    """The single blocks that hold a cloud."""
    fps = ops.furthest_point_sample
    for dtype in FLOATS:
        name = str(dtype).removeprefix("torch.")
        for n in (400, 1000, 2000, 4000):  # 128 x 4, 256 x 4, 256 x 8, 512 threads
            lengths = make.lengths(n, 9)
            yield f"fps held {n} {name}", partial(fps, make.rand(2, n, 3, dtype=dtype), 9, lengths=lengths)


def sampling_of_large_clouds(make: Inputs) -> Iterator[NamedCall]:
    """The clusters that hold a cloud, the buckets, and the distances in memory."""
    fps = ops.furthest_point_sample
    for n in (8000, 12_000, 30_000, 60_000, 100_000):  # 16 and 24 points a thread, clusters of 2 to 16
        yield f"fps cluster {n}", partial(fps, make.rand(1, make.large(n), 3), 8)
    yield "fps cluster 30000 float64", lambda: fps(make.rand(1, make.large(30_000), 3, dtype=torch.float64), 8)
    beyond = make.large(HELD + 1000)
    yield "fps buckets", lambda: fps(make.rand(1, beyond, 3), 64, min_sq_norm=1e-3)
    yield "fps buckets, two clouds", lambda: fps(make.rand(2, beyond, 3), 64, lengths=make.lengths(beyond, beyond // 2))
    yield "fps memory", lambda: fps(make.rand(1, beyond, 3), 8, start=3)
    yield "fps buckets float64", lambda: fps(make.rand(1, make.large(70_000), 3, dtype=torch.float64), 64)
    yield "fps memory float64", lambda: fps(make.rand(1, make.large(70_000), 3, dtype=torch.float64), 8)


def searching(make: Inputs) -> Iterator[NamedCall]:
    """Coordinates, up to 16 channels and products; one row of 32 neighbours, two, four, and passes; patches."""
    for channels, kind in ((3, "coordinates"), (7, "few channels"), (40, "products")):
        for k in (5, 40, 100, 200):
            for dtype in FLOATS if k == 5 else (torch.float32,):
                q, s = make.rand(2, 20, channels, dtype=dtype), make.rand(2, 1300, channels, dtype=dtype)
                name = str(dtype).removeprefix("torch.")
                lengths = make.lengths(1300, k)
                yield f"knn {kind} k={k} {name}", lambda q=q, s=s, k=k, n=lengths: ops.knn(q, s, k, lengths=n)
    for dtype in FLOATS:
        x, name = make.rand(2, 600, 3, dtype=dtype), str(dtype).removeprefix("torch.")
        yield f"sample_and_group {name}", lambda x=x: ops.sample_and_group(x, 12, 8)
        yield f"ball_query {name}", lambda x=x: ops.ball_query(x[:, :30], x, 0.2, 16)
        yield f"chamfer_distance {name}", lambda x=x: backward(ops.chamfer_distance, x[:, :90], x[:, 100:].clone())
    small = make.rand(40, 32, 3)
    yield "chamfer_distance of patches", lambda: backward(ops.chamfer_distance, small, small.flip(1))
    x, f = make.rand(2, 70, 3), make.rand(2, 70, 24)
    for k in (3, "all"):
        yield f"interpolate k={k}", lambda k=k: ops.interpolate(make.rand(2, 90, 3), x, f, k)


def gathering(make: Inputs) -> Iterator[NamedCall]:
    """Rows of whole 16-byte packs and others; every mode, dtype and the backward of each."""
    for dtype in FLOATS:
        name = str(dtype).removeprefix("torch.")
        for channels in (3, 64):
            f, idx = make.rand(2, 50, channels, dtype=dtype), make.index(50, 2, 9, 16)
            yield f"gather {channels} {name}", lambda f=f, i=idx: backward(lambda g: ops.gather(g, i), f)
            for mode in ("max", "mean", "sum", "weighted"):
                w = make.rand(2, 9, 16, dtype=dtype) if mode == "weighted" else None
                call = lambda g, i=idx, m=mode, w=w: ops.aggregate_neighbors(g, i, m, w)  # noqa: E731
                yield f"aggregate {mode} {channels} {name}", lambda f=f, call=call: backward(call, f)


def fused(make: Inputs) -> Iterator[NamedCall]:
    """The kernels of Triton, forward and backward, and what stands around them."""
    c, h, r = 48, 96, 8
    for dtype in FLOATS[:1] + FLOATS[2:]:
        name = str(dtype).removeprefix("torch.")
        x = make.rand(2, 33, c, dtype=dtype)
        vectors = make.weights(*[(c,)] * 4, dtype=dtype)
        yield f"scale_shift {name}", lambda x=x, v=vectors: backward(ops.scale_shift, x, *v[:2])
        yield f"layer_norm {name}", lambda x=x, v=vectors: backward(ops.layer_norm, x, *v)
        adapter = [*vectors[:2], *make.weights((1, c), (1,), (r, c), (r,), (c, r), (c,), dtype=dtype)]
        for prompt in (False, True):
            call = lambda x, *w, p=prompt: ops.adapter(x, ops.AdapterWeights(*w), with_prompt=p)  # noqa: E731
            what = f"adapter {'with prompt ' * prompt}{name}"
            yield what, lambda x=x, a=adapter, call=call: backward(call, x, *a)
        mlp = make.weights((h, c), (h,), (c, h), (c,), (h,), (h,), (c,), (c,), dtype=dtype)
        for count, what in ((4, ""), (8, "with scale and shift ")):
            call = lambda x=x, w=mlp[:count]: ops.frozen_mlp(x, ops.MlpWeights(*w))  # noqa: E731
            yield f"frozen_mlp {what}{name}", call
        qkv = make.weights((3 * c, c), (3 * c,), dtype=dtype)
        yield f"frozen_attention {name}", lambda x=x, w=qkv: ops.frozen_attention(x, *w, 2)
        shapes = [(16, 3), (16,), (32, 16), (32,), (32, 64), (32,), (c, 32), (c,)]
        patches = make.rand(2, 5, 32, 3, dtype=dtype)
        tokens = ops.PatchEmbedWeights(*make.weights(*shapes, dtype=dtype))
        yield f"patch_embed {name}", lambda p=patches, w=tokens: ops.patch_embed(p, w)


def backward(call: Callable[..., Any], *inputs: Tensor) -> Any:
    """A call and the gradients of its inputs."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    result = call(*leaves)
    results = [result] if isinstance(result, Tensor) else [r for r in result if r.requires_grad]
    return results, torch.autograd.grad([r.float().sum() for r in results], leaves, allow_unused=True)


def flat(result: Any) -> Iterator[Tensor]:
    """All tensors of a result."""
    if isinstance(result, Tensor):
        yield result
    elif result is not None:
        for each in result:
            yield from flat(each)


# Those of large clouds last: under the sanitizer they take longest.
FAMILIES = (sampling, searching, gathering, fused, sampling_of_large_clouds)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no path after so long")
    parser.add_argument("--small", action="store_true", help="large clouds at a hundredth of their size")
    given = parser.parse_args()
    make, until = Inputs(given.device, given.small), time.monotonic() + given.seconds
    done, left_out = [], []
    for family in FAMILIES:
        for name, call in family(make):
            if time.monotonic() > until:
                left_out.append(name)
                continue
            print(name, flush=True)  # the path that a report of the sanitizer belongs to
            results = list(flat(call()))
            if given.device == "cuda":
                torch.cuda.synchronize()
            if not results or any(r.is_floating_point() and not bool(r.isfinite().all()) for r in results):
                raise SystemExit(f"{name} gives values that are not finite")
            done.append(name)
            files.write(given.output, {"paths": done, "left_out": left_out})
    files.write(given.output, {"paths": done, "left_out": left_out})


if __name__ == "__main__":
    main()
