from benchmarks.fused import BATCH, TOKENS, C, bench

SIZES = {"x": (BATCH, TOKENS, C), "scale": (C,), "shift": (C,)}
bench_scale_shift = bench("scale_shift", SIZES, ("x", "scale", "shift"), memory_bound=True)
