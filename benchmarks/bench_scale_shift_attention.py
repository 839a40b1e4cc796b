from benchmarks.fused import BATCH, TOKENS, C, bench

HEADS = 6
bench_scale_shift_attention = bench(
    "scale_shift_attention", [(BATCH, TOKENS, 3 * C), (3 * C,), (3 * C,)], (0, 1, 2), HEADS
)
