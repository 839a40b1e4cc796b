from benchmarks.fused import BATCH, TOKENS, C, bench

HEADS = 6
SIZES = [(BATCH, TOKENS, C), (3 * C, C), (3 * C,), (3 * C,), (3 * C,)]
bench_frozen_attention = bench("frozen_attention", SIZES, (0, 3, 4), HEADS)
