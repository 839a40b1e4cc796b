from benchmarks.fused import BATCH, TOKENS, C, H, bench

SIZES = {"x": (BATCH, TOKENS, C), "w1": (H, C), "b1": (H,), "w2": (C, H), "b2": (C,)}
bench_frozen_mlp = bench("frozen_mlp", SIZES, ("x",))
