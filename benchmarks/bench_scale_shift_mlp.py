from benchmarks.fused import BATCH, TOKENS, C, H, bench

SIZES = {"x": (BATCH, TOKENS, C), "w1": (H, C), "b1": (H,), "gamma1": (H,), "beta1": (H,)}
SIZES |= {"w2": (C, H), "b2": (C,), "gamma2": (C,), "beta2": (C,)}
bench_scale_shift_mlp = bench("scale_shift_mlp", SIZES, ("x", "gamma1", "beta1", "gamma2", "beta2"))
