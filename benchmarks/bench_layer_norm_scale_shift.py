from benchmarks.fused import BATCH, TOKENS, C, bench

bench_layer_norm_scale_shift = bench(
    "layer_norm_scale_shift", [(BATCH, TOKENS, C), *[(C,)] * 4], (0, 3, 4), memory_bound=True
)
