import pytest
import torch

from pointpeft.heads.shape_descriptors import NUM_DESCRIPTORS, _eigenvalues, shape_descriptors


def clouds(count=3, points=200, seed=0):
    return torch.randn(count, points, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor([1.0, 2.0, 0.3])


@pytest.mark.parametrize("points", [1, 31, 200, 5000])
def test_any_number_of_points(points):
    described = shape_descriptors(clouds(points=points))
    assert described.shape == (3, NUM_DESCRIPTORS)
    assert described.isfinite().all()


def test_points_in_one_place_are_described():
    assert shape_descriptors(torch.zeros(2, 40, 3)).isfinite().all()


def test_size_place_and_the_names_of_the_horizontal_axes_do_not_count():
    xyz = clouds()
    moved = 3 * xyz[..., [2, 1, 0]] + 5
    torch.testing.assert_close(shape_descriptors(moved), shape_descriptors(xyz), atol=1e-5, rtol=0)


def test_what_is_up_counts():
    xyz = clouds()
    assert (shape_descriptors(xyz[..., [1, 0, 2]]) - shape_descriptors(xyz)).abs().max() > 0.1


def test_a_cloud_depends_on_no_other():
    xyz = clouds()
    torch.testing.assert_close(shape_descriptors(xyz)[1:2], shape_descriptors(xyz[1:2]), atol=1e-6, rtol=0)


def test_eigenvalues_in_closed_form():
    x = clouds(50, 20)
    matrix = x.transpose(1, 2) @ x / 20
    torch.testing.assert_close(_eigenvalues(matrix), torch.linalg.eigvalsh(matrix).flip(-1), atol=1e-4, rtol=1e-4)
    flat = torch.diag_embed(torch.tensor([[2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]]))
    expected = torch.tensor([[2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [3.0, 1.0, 0.0]])
    torch.testing.assert_close(_eigenvalues(flat), expected, atol=1e-5, rtol=0)
