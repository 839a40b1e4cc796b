import pytest
import torch

from benchmarks import classic, rivals
from benchmarks.conftest import DEVICES
from pointpeft.ops import knn, knn_reference

SHAPES = [(32, 64, 1024, 32), (32, 128, 2048, 32), (1, 10_000, 100_000, 16)]
CANDIDATES = {
    "pointpeft": knn,
    "reference": knn_reference,
    "matrix product + topk": rivals.torch_knn,
    "small_gicp": rivals.small_gicp_knn,
    "pykdtree": rivals.pykdtree_knn,
    "KNN_CUDA (restated)": classic.knn_cuda,
}
OF_FEATURES = {
    "pointpeft": knn,
    "reference": knn_reference,
    "matrix product + topk": rivals.torch_knn,
    "cdist + topk": rivals.torch_cdist_knn,
}


@pytest.mark.parametrize(("batch", "m", "n", "k"), SHAPES)
@pytest.mark.parametrize(("name", "device"), rivals.rows(CANDIDATES))
def bench_knn(compare, name, batch, m, n, k, device):
    if m * n > 1e8 and name in ("reference", "matrix product + topk"):
        pytest.skip(f"the {m} x {n} matrix takes seconds: left out here")
    support = torch.rand(batch, n, 3, generator=torch.Generator().manual_seed(0)).to(device)
    query = support[:, :m].contiguous()
    some = torch.arange(0, m, m // 16, device=device)
    expected = knn_reference(query[:, some], support, k)[0]
    squared = 2 if name == "KNN_CUDA (restated)" else 1  # it gives distances
    compare(
        f"knn {batch}x{m} of {n}, k={k}",
        lambda: CANDIDATES[name](query, support, k),
        lambda found: torch.allclose(found[0][:, some].float() ** squared, expected, rtol=1e-4, atol=1e-6),
        device,
        bytes=query.nbytes + support.nbytes + 12 * batch * m * k,
    )


@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [48, 384])
def bench_knn_of_features(compare, name, channels, device):
    tokens = torch.rand(32, 128, channels, generator=torch.Generator().manual_seed(0)).to(device)
    expected = knn_reference(tokens, tokens, 20)[0]
    compare(
        f"knn 32x128 of 128, C={channels}, k=20",
        lambda: OF_FEATURES[name](tokens, tokens, 20),
        lambda found: torch.allclose(found[0], expected, rtol=1e-4, atol=1e-3),
        device,
        bytes=2 * tokens.nbytes + expected.nbytes * 3,
        flops=2 * 32 * 128 * 128 * channels,
    )
