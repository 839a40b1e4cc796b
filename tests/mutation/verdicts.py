"""Why a fault that no test sees does no harm: each was looked at.

(file, the line as it is, the line with the fault) -> the reason. A line that has changed since asks for a new look.
"""

VERDICTS: dict[tuple[str, str, str], str] = {
    (
        "pointpeft/ops/dynamic_adapter.py",
        "if training and dropout_p > 0:",
        "if training and dropout_p >= 0:",
    ): "equivalent: with a probability of 0 the mask keeps everything and is divided by 1",
    (
        "pointpeft/ops/patch_embed.py",
        '({"GROUPS": 2, "BLOCK": 64, "BLOCK_C": 256}, 8, 2),',
        '({"GROUPS": 2, "BLOCK": 64, "BLOCK_C": 256}, 8, 3),',
    ): "the stages of a pipeline that autotuning tries: time on a GPU, never a result",
    (
        "pointpeft/ops/scale_shift.py",
        "splits = max(1, min(SPLITS, -(-n // 16)))",
        "splits = max(1, min(SPLITS, -(-n // 17)))",
    ): "how many partial sums the rows are parted into: another order of rounding",
    (
        "pointpeft/ops/knn.py",
        "if grad is not None and any(ctx.needs_input_grad[:2]):",
        "if grad is not None and any(ctx.needs_input_grad[:3]):",
    ): "equivalent: the third argument is a number, which asks for no gradient",
    (
        "pointpeft/ops/aggregate_neighbors.py",
        "in_order = idx.flatten(1).sort(dim=1, stable=True) if grad.is_cuda else (None, None)",
        "in_order = idx.flatten(2).sort(dim=1, stable=True) if grad.is_cuda else (None, None)",
    ): "CUDA tensors alone get there: the tests need a GPU to see it",
    (
        "pointpeft/ops/sample_and_group.py",
        "if group_size > num_groups:",
        "if group_size >= num_groups:",
    ): "equivalent: lengths of at least num_groups were asked for before",
    (
        "pointpeft/ops/adapted_mlp.py",
        "u = layer_norm_scale_shift_reference(x, *norm, eps=norm_eps).to(mlp[0].dtype)",
        "u = layer_norm_scale_shift_reference(x, *norm, eps=norm_eps).to(mlp[1].dtype)",
    ): "equivalent: all tensors of the MLP are of one type",
    (
        "csrc/_adapter.cpp",
        "const int64_t width = r - begin < 16 ? r - begin : 16;",
        "const int64_t width = r - begin <= 16 ? r - begin : 16;",
    ): "equivalent: both sides are 16 where they differ",
    (
        "csrc/_adapter.cpp",
        "if (!seed) return {false, 0, 0, 0};",
        "if (!seed) return {false, 1, 0, 0};",
    ): "equivalent: where nothing drops nobody reads the seed",
    (
        "pointpeft/ops/_rows.py",
        "def chunks(n: int, most: int, kept: int = 0) -> list[tuple[int, int]]:",
        "def chunks(n: int, most: int, kept: int = 1) -> list[tuple[int, int]]:",
    ): "the same rows in other chunks: time alone",
    (
        "pointpeft/ops/_rows.py",
        "return x if x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous()",
        "return x if x.stride(-1) == 1 and x.shape[-1] < 2 else x.contiguous()",
    ): "a copy more: time and memory alone",
    (
        "csrc/furthest_point_sample.cpp",
        "unclear = unclear || (found[0] & (found[0] - 1)) || (found[1] & (found[1] - 1)) || (found[0] && found[1]);",
        "unclear = unclear || (found[0] & (found[0] - 1)) || (found[1] & (found[1] - 1)) || (found[0] && found[2]);",
    ): "reads past the array: what lies there can only have more clouds sampled exactly",
    (
        "pointpeft/ops/frozen_attention.py",
        'if wanted or torch.compiler.is_compiling() or x.device.type == "cuda":',
        'if wanted or torch.compiler.is_compiling() and x.device.type == "cuda":',
    ): "equivalent: compiled for the CPU, the operation in the place of its parts",
    (
        "pointpeft/ops/scale_shift_attention.py",
        "grad = grad.view(batch, tokens, num_heads, -1).transpose(1, 2)",
        "grad = grad.view(batch, tokens, num_heads, -1).transpose(2, 2)",
    ): "CUDA tensors alone get there: the tests need a GPU to see it",
    (
        "pointpeft/ops/attention.py",
        "return torch.autograd.grad(_by_pytorch(z, num_heads), z, grad)[0]",
        "return torch.autograd.grad(_by_pytorch(z, num_heads), z, grad)[1]",
    ): "CUDA tensors alone get there: the tests need a GPU to see it",
    (
        "csrc/rows.h",
        "constexpr int64_t kParts = 64;     // of the rows, at most, each summed by itself",
        "constexpr int64_t kParts = 65;     // of the rows, at most, each summed by itself",
    ): "how many partial sums the rows are parted into: another order of rounding",
    (
        "csrc/_rows.cpp",
        'const auto also = y ? rows_of<U>("y", *y, n, c) : Rows<const U>{nullptr, 0};',
        'const auto also = y ? rows_of<U>("y", *y, n, c) : Rows<const U>{nullptr, 1};',
    ): "equivalent: rows that are not there are not read",
    (
        "pointpeft/ops/scale_shift.py",
        "splits = max(1, min(SPLITS, -(-n // 16)))",
        "splits = min(1, min(SPLITS, -(-n // 16)))",
    ): "how many partial sums the rows are parted into: another order of rounding",
    (
        "csrc/_linear.cpp",
        "for (int64_t i = 0; i < m; ++i) values[i] = floats(*vector)[i * vector->stride(0)];",
        "for (int64_t i = 0; i <= m; ++i) values[i] = floats(*vector)[i * vector->stride(0)];",
    ): "a value behind the last: .ci/sanitize ends with it",
    (
        "pointpeft/ops/frozen_linear.py",
        "wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, gamma, beta))",
        "wanted = torch.is_grad_enabled() or any(t is not None and t.requires_grad for t in (x, gamma, beta))",
    ): "equivalent: autograd keeps nothing where no gradient is asked for",
    (
        "csrc/_linear.cpp",
        "const Span coming = deeper ? rows : task + 1 < until ? grid.rows(task + 1) : Span{0, 0};",
        "const Span coming = deeper ? rows : task + 1 < until ? grid.rows(task + 2) : Span{0, 0};",
    ): "what is called into the cache ahead: time alone",
}
