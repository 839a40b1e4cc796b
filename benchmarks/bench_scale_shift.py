from benchmarks.fused import BATCH, TOKENS, C, bench

bench_scale_shift = bench("scale_shift", [(BATCH, TOKENS, C), (C,), (C,)], (0, 1, 2), memory_bound=True)
