"""The kernels look at what they index by themselves: in direct calls, in compiled and in exported graphs."""

import re

import pytest
import torch

from pointpeft import ops

N = 64
OP = torch.ops.pointpeft
LENGTHS = [[N, 3300], [N, N + 1], [0, N], [-5, N], [N, 2**40], [-(2**62), N]]
STARTS = [[0, N], [-1, 0], [10**6, 0], [0, -(2**40)]]


def points(batch=2, n=N, channels=3, dtype=torch.float32):
    return torch.rand(batch, n, channels, generator=torch.Generator().manual_seed(0)).to(dtype)


def sample(x, lengths, start):
    return ops.furthest_point_sample(x, 8, lengths=lengths, start=start)


def group(x, lengths, start):
    return ops.sample_and_group(x, 8, 4, lengths=lengths, start=start).patches


def neighbours(x, lengths, start):
    return ops.knn(x[:, :5], x, 8, lengths=lengths)[1]


def features(x, lengths, start):
    return ops.knn(x[:, :5].repeat(1, 1, 6), x.repeat(1, 1, 6), 8, lengths=lengths)[1]


CALLS = [sample, group, neighbours, features]


class Module(torch.nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x, lengths, start):
        return self.call(x, lengths, start)


def graphs(call, n):
    """The call as it is, compiled and exported."""
    good = points(n=n), torch.tensor([n, n]), torch.tensor([0, 1])
    torch._dynamo.reset()
    exported = torch.export.export(Module(call), good).module()
    for run in (call, torch.compile(call, backend="aot_eager", fullgraph=True), exported):
        assert torch.equal(run(*good), call(*good))
        yield run


@pytest.mark.parametrize("n", [N, 5000])
@pytest.mark.parametrize("call", CALLS)
def test_lengths_out_of_range_are_refused_in_every_graph(call, n):
    x, start = points(n=n), torch.tensor([0, 1])
    for run in graphs(call, n):
        for lengths in LENGTHS:
            wrong = torch.tensor(lengths) + (n - N) * (torch.tensor(lengths) >= N)
            with pytest.raises(ValueError, match=r"lengths must be between .* and N = "):
                run(x, wrong, start)


@pytest.mark.parametrize("n", [N, 5000])
@pytest.mark.parametrize("call", [sample, group])
def test_starts_out_of_range_are_refused_in_every_graph(call, n):
    x, lengths = points(n=n), torch.tensor([n, n])
    for run in graphs(call, n):
        for start in [*STARTS, [n, 0]]:
            with pytest.raises(ValueError, match="start must be between 0 and each cloud's length - 1"):
                run(x, lengths, torch.tensor(start) * (1 if start[1] != N else n // N + 1))
        with pytest.raises(ValueError, match="start must be between 0 and each cloud's length - 1"):
            run(x, torch.tensor([n, 10]), torch.tensor([0, 10]))


def test_indices_out_of_range_are_refused_in_every_graph():
    x = points()

    def gather(idx):
        return ops.gather(x, idx)

    def pool(idx):
        return ops.aggregate_neighbors(x, idx)

    for call in (gather, pool):
        torch._dynamo.reset()
        for run in (call, torch.compile(call, backend="aot_eager", fullgraph=True)):
            assert torch.equal(
                run(torch.zeros(2, 3, 4, dtype=torch.int64)), call(torch.zeros(2, 3, 4, dtype=torch.int64))
            )
            for wrong in (-1, N, 2**40, -(2**62)):
                with pytest.raises(ValueError, match="idx must be between 0 and N - 1 = 63"):
                    run(torch.full((2, 3, 4), wrong))


X, F, IDX = points(), points(channels=7), torch.zeros(2, 5, 3, dtype=torch.int64)
LONG, SHORT = torch.tensor([N, N]), torch.tensor([N])
GRAD, PLACES = torch.rand(2, 5, 7), torch.zeros(2, 5, 7, dtype=torch.uint8)
SIDE, NEAR = torch.rand(2, N), torch.zeros(2, N, dtype=torch.int64)
M, V = torch.rand(6, 4), torch.rand(4)
QKV, MIXED = torch.rand(2, 5, 12), torch.rand(2, 5, 4)
LSE = torch.rand(2, 2, 5)
POOLED = "aggregate_neighbors_backward"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("furthest_point_sample", (X[0], 8, None, None, 0, 0.0), "xyz must have 3 dimensions, got shape (64, 3)"),
        ("furthest_point_sample", (X[..., :2], 8, None, None, 0, 0.0), "xyz must have 3 entries in its last dimension"),
        ("furthest_point_sample", (X.long(), 8, None, None, 0, 0.0), "xyz must be float32, float64, float16"),
        ("furthest_point_sample", (X, 65, None, None, 0, 0.0), "num_samples must be between 1 and N = 64, got 65"),
        ("furthest_point_sample", (X, 0, None, None, 0, 0.0), "num_samples must be between 1 and N = 64, got 0"),
        ("furthest_point_sample", (X, 8, SHORT, None, 0, 0.0), "lengths must have shape (2), got (1)"),
        ("furthest_point_sample", (X, 8, LONG.int(), None, 0, 0.0), "lengths must be int64, got int32"),
        ("furthest_point_sample", (X, 8, None, SHORT, 0, 0.0), "start must have shape (2), got (1)"),
        ("furthest_point_sample", (X, 8, None, None, 64, 0.0), "start must be between 0 and N - 1 = 63, got 64"),
        ("furthest_point_sample", (X, 8, None, None, -1, 0.0), "start must be between 0 and N - 1 = 63, got -1"),
        ("furthest_point_sample", (X, 8, None, None, 0, float("nan")), "min_sq_norm must be at least 0"),
        ("furthest_point_sample", (X[:, :0], 1, None, None, 0, 0.0), "num_samples must be between 1 and N = 0"),
        ("sample_and_group", (X, 8, 65, None, None, 0, 0.0), "group_size must be between 1 and N = 64, got 65"),
        ("sample_and_group", (X, 65, 8, None, None, 0, 0.0), "num_groups must be between 1 and N = 64, got 65"),
        ("sample_and_group", (X, 2, 8, torch.tensor([4, 9]), None, 0, 0.0), "lengths must be between group_size = 8"),
        ("sample_and_group", (X.int(), 2, 8, None, None, 0, 0.0), "xyz must be float32"),
        ("knn", (X, X, 65, None), "k must be between 1 and N = 64, got 65"),
        ("knn", (X, X, 0, None), "k must be between 1 and N = 64, got 0"),
        ("knn", (X, X[:1], 3, None), "query and support must agree in B and C"),
        ("knn", (X, X[..., :2], 3, None), "query and support must agree in B and C"),
        ("knn", (X, X.double(), 3, None), "support is float64, but query is float32"),
        ("knn", (X[..., :0], X[..., :0], 3, None), "query must have at least 1 channel"),
        ("knn", (X, X, 3, SHORT), "lengths must have shape (2), got (1)"),
        ("knn", (X[:, :0], X, 3, LONG + 1), "lengths must be between k = 3 and N = 64, got 65"),
        ("ball_query", (X, X[:, :0], 0.1, 3), "k must be between 1 and N = 0"),
        ("ball_query", (X, X, float("nan"), 3), "radius must be a number above 0"),
        ("ball_query", (X, X[:1], 0.1, 3), "query and support must agree in B and C"),
        ("gather", (X[0], IDX), "features must have 3 dimensions"),
        ("gather", (X, IDX[:1]), "idx must have shape (2, ...), got (1, 5, 3)"),
        ("gather", (X, IDX.int()), "idx must be int64, got int32"),
        ("gather_backward", (GRAD, IDX, N), "grad must have the shape of idx"),
        ("gather_backward", (torch.rand(2, 5, 3, 7), IDX, -1), "n must be at least 0, got -1"),
        ("gather_backward", (torch.rand(2, 5, 3, 7), IDX + 9, 9), "idx must be between 0 and N - 1 = 8, got 9"),
        ("aggregate_neighbors", (F, IDX, None, 3, False), "weights must be given for mode 3"),
        ("aggregate_neighbors", (F, IDX, None, 4, False), "mode must be 0 to 3, got 4"),
        ("aggregate_neighbors", (F, IDX[:1], None, 0, False), "idx must have shape (2, ...)"),
        ("aggregate_neighbors", (F, IDX[..., :0], None, 0, False), "idx must have shape (B, G, S) with S >= 1"),
        ("aggregate_neighbors", (F, IDX, torch.rand(2, 5, 2), 3, False), "weights must have shape (2, 5, 3)"),
        ("aggregate_neighbors", (F, IDX, torch.rand(2, 5, 3).double(), 3, False), "weights must be float32"),
        (POOLED, (GRAD, IDX, None, None, None, None, N, 0), "argmax must be given"),
        (POOLED, (GRAD, IDX, None, PLACES + 3, None, None, N, 0), "argmax must be between 0 and S - 1"),
        (POOLED, (GRAD, IDX, None, PLACES.int() - 1, None, None, N, 0), "argmax must be between 0"),
        (POOLED, (GRAD, IDX, None, PLACES[:1], None, None, N, 0), "argmax must have shape (2, 5, 7)"),
        (POOLED, (GRAD, IDX[:, :2], None, PLACES, None, None, N, 2), "grad must have shape (2, 2, *)"),
        (POOLED, (GRAD, IDX, None, PLACES.long(), None, None, N, 0), "argmax must be uint8 or int32"),
        ("aggregate_neighbors_backward_weights", (GRAD, F[..., :3], IDX), "grad must have shape (2, 5, 3)"),
        ("aggregate_neighbors_backward_weights", (GRAD.double(), F, IDX), "features is float32, but grad is float64"),
        ("chamfer_distance", (X, X[:1]), "b must have as many clouds as a"),
        ("chamfer_distance", (X, X[:, :0]), "a and b must have at least one point"),
        ("chamfer_distance", (X, X.half()), "b is float16, but a is float32"),
        ("chamfer_distance_backward", (SIDE[:1], SIDE, X, X, NEAR, NEAR), "grad_a must have shape (2, 64)"),
        ("chamfer_distance_backward", (SIDE, SIDE.double(), X, X, NEAR, NEAR), "grad_b must be float32, got float64"),
        ("chamfer_distance_backward", (SIDE, SIDE, X, X, NEAR[:, :3], NEAR), "idx_a must have shape (2, 64)"),
        ("chamfer_distance_backward", (SIDE, SIDE, X, X, NEAR, NEAR + N), "idx_a and idx_b must be between 0"),
        ("_scale_shift_rows", (M, V, V, False, M.half()), "out must be float32, got float16"),
        ("_scale_shift_rows", (M, V.half(), V, False, M.clone()), "gamma must be float32, got float16"),
        ("_scale_shift_rows", (M, V[:3], V, False, M.clone()), "gamma must hold 4 values, got shape (3)"),
        ("_scale_shift_rows", (V, V, V, False, M.clone()), "x must have 2 dimensions"),
        ("_scale_shift_rows_backward", (M.half(), M, V, None, M.clone()), "grad must be float32, got float16"),
        ("_norm_rows_backward", (M, M, torch.rand(12).double(), V, None, None), "stats must be float32, got float64"),
        ("_add_norm_rows", (M, None, V.half(), V, 1e-5, None, M.clone()), "weight must be float32, got float16"),
        ("_adapter_hidden", (M, torch.rand(6).half(), None, 0.0), "s must be float32, got float16"),
        ("_adapter_output", (M.clone(), V, torch.rand(6), -2), "clouds must divide N = 6, got -2"),
        ("_attention", (QKV, None, None, 2, MIXED.double()), "out must be contiguous, of the type of qkv"),
        ("_attention", (QKV.long(), None, None, 2, MIXED.clone()), "qkv must be float32"),
        ("_attention_backward", (MIXED, QKV, None, None, MIXED, LSE.double(), 2, QKV.clone()), "lse must be float32"),
        ("_attention_backward", (MIXED, QKV, None, None, MIXED, LSE, 2, QKV[:1]), "dz must have shape (2, 5, 12)"),
        ("_is_cast", (M, M), "cast must be bfloat16"),
        ("_patch_max", (V, 2, M.clone()), "x must have 2 dimensions"),
        ("_patch_max", (M, 4, M.clone()), "size must divide the rows of x"),
        ("_patch_clamp", (M.clone(), 2, M[:3].half()), "shift must be float32, got float16"),
        ("_patch_first_layer", (M[:, :3], torch.rand(4, 3), V, M.half()), "out must be float32, got float16"),
    ],
)  # fmt: skip
def test_a_direct_call_names_the_argument_that_does_not_fit(name, arguments, message):
    with pytest.raises(ValueError, match=re.escape(f"pointpeft: {message}")):
        getattr(OP, name)(*arguments)


def test_lengths_and_starts_may_have_any_stride():
    lengths, starts = torch.tensor([20, 7, 30, 7])[::2], torch.tensor([3, 99, 29, 99])[::2]
    strided = OP.furthest_point_sample(X, 8, lengths, starts, 0, 0.0)
    assert torch.equal(strided, OP.furthest_point_sample(X, 8, lengths.contiguous(), starts.contiguous(), 0, 0.0))
    assert strided[:, 0].tolist() == [3, 29]


def test_a_refusal_reaches_the_caller_of_a_public_function_without_its_prefix():
    with pytest.raises(ValueError, match=r"^idx must be between 0 and N - 1 = 63, got 64$"):
        ops.gather(X, torch.full((2, 1), N))
