import pytest
import torch

from pointpeft import create_model
from pointpeft.view.embedding import embed, features, write_embedding


def apart(generator):
    """Two groups far from each other in 8 dimensions."""
    rows = torch.randn(40, 8, generator=generator)
    rows[20:] += 30
    return rows


@pytest.mark.parametrize("kind", ["tsne", "umap", "pca"])
def test_what_is_apart_stays_apart(kind, generator):
    if kind != "pca":
        pytest.importorskip({"tsne": "sklearn", "umap": "umap"}[kind])
    places, title = embed(apart(generator), kind)
    assert places.shape == (40, 2)
    assert title.startswith({"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}[kind])
    first, second = places[:20], places[20:]
    radius = max(float((part - part.mean(0)).norm(dim=1).max()) for part in (first, second))
    assert (first.mean(0) - second.mean(0)).norm() > radius


def test_the_principal_plane_keeps_distances_in_a_plane(generator):
    flat = torch.randn(12, 2, generator=generator)
    turned = flat @ torch.linalg.qr(torch.randn(6, 2, generator=generator)).Q.T
    places, title = embed(turned, "pca")
    torch.testing.assert_close(torch.cdist(places, places), torch.cdist(flat, flat), rtol=1e-4, atol=1e-4)
    assert title == "PCA, 100% of the variance"


def test_the_features_are_what_the_head_reads(generator):
    model = create_model("point_mae_tiny", "linear", 3, depth=1, num_groups=16, group_size=8).eval()
    xyz = torch.randn(3, 64, 3, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(model.head(features(model, xyz, batch_size=2)), model(xyz))


def test_wrong_wishes_are_named(generator):
    with pytest.raises(ValueError, match="features must be one of"):
        embed(apart(generator), "lda")
    with pytest.raises(ValueError, match="at least 3 rows"):
        embed(torch.zeros(2, 4))


def test_the_picture_has_a_dot_per_cloud(tmp_path, generator):
    from matplotlib.image import imread

    places = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    write_embedding(tmp_path / "a.png", places, torch.tensor([0, 0, 1, 1]), ("a", "b"), "four")
    image = imread(tmp_path / "a.png")[..., :3]
    colours = {tuple(round(float(v), 2) for v in pixel) for pixel in image.reshape(-1, 3)}
    assert {(0.12, 0.47, 0.71), (0.68, 0.78, 0.91)} <= colours  # the first two of tab20
