from benchmarks.fused import BATCH, TOKENS, C, bench

bench_layer_norm = bench("layer_norm", [(BATCH, TOKENS, C), *[(C,)] * 4], (0, 3, 4), memory_bound=True)
