from benchmarks.fused import BATCH, TOKENS, C, H, bench

SIZES = [(BATCH, TOKENS, C), (H, C), (H,), (H,), (H,), (C, H), (C,), (C,), (C,)]
bench_scale_shift_mlp = bench("scale_shift_mlp", SIZES, (0, 3, 4, 7, 8))
