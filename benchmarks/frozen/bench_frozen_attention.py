from benchmarks.fused import BATCH, TOKENS, C, bench

SIZES = {"x": (BATCH, TOKENS, C), "weight": (3 * C, C), "bias": (3 * C,), "scale": (3 * C,), "shift": (3 * C,)}
bench_frozen_attention = bench("frozen_attention", SIZES, ("x", "scale", "shift"), num_heads=6)
