from benchmarks.fused import BATCH, TOKENS, C, bench

Z, TERMS = {"z": (BATCH, TOKENS, 3 * C)}, {"scale": (3 * C,), "shift": (3 * C,)}
bench_attention = bench("attention", Z, ("z",), num_heads=6)
bench_scaled_attention = bench(
    "attention", Z | TERMS, ("z", "scale", "shift"), label="attention with scale and shift", num_heads=6
)
