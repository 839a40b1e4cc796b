from benchmarks.fused import BATCH, TOKENS, C, bench

SIZES = {"x": (BATCH, TOKENS, C), "weight": (C,), "bias": (C,), "scale": (C,), "shift": (C,)}
bench_layer_norm = bench("layer_norm", SIZES, ("x", "scale", "shift"), memory_bound=True)
