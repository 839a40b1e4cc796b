from benchmarks.fused import BATCH, TOKENS, C, bench

HEADS = 6
bench_attention = bench("attention", [(BATCH, TOKENS, 3 * C)], (0,), HEADS)
