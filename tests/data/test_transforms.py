import math

import pytest
import torch

from pointpeft.data.transforms import Compose, Jitter, PointDropout, RotateUp, ScaleTranslate, named, normalize
from tests.conftest import cut

ALL = [ScaleTranslate(), RotateUp("x"), RotateUp("y"), RotateUp("z"), Jitter(), PointDropout(), Compose()]
ALL.append(Compose(RotateUp("y"), ScaleTranslate(), Jitter()))
pytestmark = pytest.mark.filterwarnings("error")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("transform", ALL, ids=repr)
class TestEveryTransform:
    @pytest.mark.parametrize("shape", [(1, 1, 3), (3, 17, 3), (0, 5, 3)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_shape_dtype_and_device_stay(self, transform, shape, dtype, device):
        points = torch.randn(shape, generator=seeded()).to(device, dtype)
        before = points.clone()
        result = transform(points, seeded(1))  # a CPU generator serves every device
        assert (result.shape, result.dtype, result.device) == (points.shape, dtype, points.device)
        assert result.isfinite().all()
        assert torch.equal(points, before)  # the argument is left alone
        assert transform(points, torch.Generator(device).manual_seed(1)).device == points.device

    def test_the_generator_alone_decides(self, transform):
        points = torch.randn(4, 20, 3, generator=seeded())
        assert torch.equal(transform(points, seeded(5)), transform(points, seeded(5)))
        assert torch.equal(transform(cut(points), seeded(5)), transform(points, seeded(5)))
        torch.manual_seed(1)
        first = transform(points, seeded(5))
        torch.manual_seed(2)
        assert torch.equal(transform(points, seeded(5)), first)
        if repr(transform) != "Compose()":
            assert not torch.equal(transform(points, seeded(6)), first)

    def test_a_cloud_does_not_depend_on_the_content_of_the_others(self, transform):
        points = torch.randn(4, 20, 3, generator=seeded())
        other = torch.randn(4, 20, 3, generator=seeded(9)) * 100
        other[2] = points[2]
        assert torch.equal(transform(other, seeded(5))[2], transform(points, seeded(5))[2])


def test_scale_translate_draws_factors_and_shifts_within_the_published_bounds_per_axis_and_cloud():
    points = torch.zeros(5000, 2, 3)
    points[:, 1] = 1
    result = ScaleTranslate()(points, seeded())
    shift, scale = result[:, 0], result[:, 1] - result[:, 0]
    assert -0.2 <= shift.min() < -0.199
    assert 0.199 < shift.max() <= 0.2
    assert 2 / 3 - 1e-5 <= scale.min() < 0.668
    assert 1.498 < scale.max() <= 1.5 + 1e-5
    values = torch.cat([shift, scale], 1)
    correlation = torch.corrcoef(values.T) - torch.eye(6)
    assert correlation.abs().max() < 0.06  # 4 standard deviations of 5000 draws: all six numbers are independent


@pytest.mark.parametrize(("axis", "up"), [("x", 0), ("y", 1), ("z", 2)])
def test_rotate_keeps_the_axis_and_distances_and_handedness(axis, up):
    points = torch.randn(50, 8, 3, generator=seeded(), dtype=torch.float64)
    result = RotateUp(axis)(points, seeded(3))
    assert torch.equal(result[..., up], points[..., up])
    torch.testing.assert_close(torch.cdist(result, result), torch.cdist(points, points), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(result[:, :3]), torch.linalg.det(points[:, :3]))


def test_rotate_is_the_published_matrix_about_y():
    angle = 2 * math.pi * torch.rand(1, 1, generator=seeded(3)).item()
    c, s = math.cos(angle), math.sin(angle)
    points = torch.randn(1, 8, 3, generator=seeded())
    turned = RotateUp("y")(points, seeded(3))
    published = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    # The angle is uniform over the circle, so its sign is free: our turn is the published one or its inverse.
    errors = [(turned - points @ matrix).abs().max() for matrix in (published, published.T)]
    assert min(errors) < 1e-6


def test_rotate_covers_the_circle():
    result = RotateUp("z")(torch.tensor([[[1.0, 0, 0]]]).repeat(4000, 1, 1), seeded())[:, 0]
    quadrant = (result[:, 0] > 0).long() * 2 + (result[:, 1] > 0).long()
    assert quadrant.bincount(minlength=4).min() > 850  # 1000 expected, standard deviation 27


def test_jitter_is_clipped_noise():
    noise = Jitter(sigma=0.01, clip=0.02)(torch.zeros(10, 1000, 3), seeded())
    assert noise.abs().max() == pytest.approx(0.02)
    assert noise.std() == pytest.approx(0.0096, rel=0.05)


def test_dropout_moves_a_part_of_the_points_onto_the_first():
    points = torch.randn(400, 200, 3, generator=seeded())
    result = PointDropout()(points, seeded(1))
    moved = (result != points).any(-1)
    assert torch.equal(result[moved], points[:, :1].expand(-1, 200, -1)[moved])
    part = moved.float().mean(1)
    assert part.max() < 0.62
    assert part.mean() == pytest.approx(0.25, abs=0.03)
    assert part.min() < 0.03


@pytest.mark.parametrize("shape", [(7, 3), (1, 3), (2, 5, 3), (2, 3, 6, 3)])
def test_normalize_centres_and_fills_the_unit_sphere(shape):
    points = 50 + 20 * torch.randn(shape, generator=seeded(), dtype=torch.float64)
    result = normalize(points)
    torch.testing.assert_close(result.mean(-2), torch.zeros_like(result[..., 0, :]), atol=1e-12, rtol=0)
    if shape[-2] > 1:
        farthest = result.norm(dim=-1).amax(-1)
        torch.testing.assert_close(farthest, torch.ones_like(farthest))
        torch.testing.assert_close(normalize(3 * points - 8), result)
        torch.testing.assert_close(normalize(points.float()), result.float(), atol=1e-5, rtol=0)


def test_normalize_of_one_repeated_point_is_zero():
    assert torch.equal(normalize(torch.full((6, 3), 2.0)), torch.zeros(6, 3))


def test_named_gives_what_the_command_line_offers():
    points = torch.randn(2, 9, 3, generator=seeded())
    assert torch.equal(named("none", "y")(points, seeded()), points)
    assert named("scale_translate", "z") == ScaleTranslate()
    assert named("rotate", "z") == RotateUp("z")
    both = named("rotate+jitter", "x")(points, seeded(4))
    assert torch.equal(both, Compose(RotateUp("x"), Jitter())(points, seeded(4)))


@pytest.mark.parametrize(
    ("name", "axis", "words"), [("spin", "y", "spin"), ("", "y", "none"), ("rotate", "up", "'up'")]
)
def test_unknown_names_and_axes_are_refused(name, axis, words):
    with pytest.raises(ValueError, match=words):
        named(name, axis)
