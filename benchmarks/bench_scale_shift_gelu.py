from benchmarks.fused import BATCH, TOKENS, H, bench

bench_scale_shift_gelu = bench("scale_shift_gelu", [(BATCH, TOKENS, H), (H,), (H,)], (0, 1, 2), memory_bound=True)
