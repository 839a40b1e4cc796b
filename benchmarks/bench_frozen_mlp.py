from benchmarks.fused import BATCH, TOKENS, C, H, bench

bench_frozen_mlp = bench("frozen_mlp", [(BATCH, TOKENS, C), (H, C), (H,), (C, H), (C,)], (0,))
