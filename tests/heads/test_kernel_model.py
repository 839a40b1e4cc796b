"""A kernel head in a model: on every backbone, saved, loaded, exported and turned."""

import pytest
import torch

from pointpeft import create_model
from pointpeft.backbones import backbone_names
from pointpeft.checkpoints import load_adapter, save_adapter
from pointpeft.data.transforms import turn_y_up
from pointpeft.heads import KernelHead, LevelPool
from pointpeft.heads.kernel import solve_kernel_head

SMALL = {"width": 24, "depth": 3, "num_heads": 2, "num_groups": 8, "group_size": 8}
UNEQUAL = torch.tensor([1.0, 2.0, 0.3])


def small_model(backbone="point_mae", method="linear", **options):
    torch.manual_seed(0)
    return create_model(backbone, method, 3, classifier="kernel", num_support=9, **SMALL, **options).eval()


def clouds(count=9):
    return torch.randn(count, 64, 3, generator=torch.Generator().manual_seed(1)) * UNEQUAL


def solve(model, xyz):
    with torch.no_grad():
        features = model.forward_features(xyz)
    model.head.load_state_dict(solve_kernel_head(features, torch.arange(9) % 3, 3, model.pool.groups).head.state_dict())
    return features


@pytest.mark.parametrize("backbone", [name for name in backbone_names() if name.count("_") < 2])
def test_every_backbone_gives_levels_and_shape(backbone):
    model = small_model(backbone)
    assert isinstance(model.pool, LevelPool)
    assert isinstance(model.head, KernelHead)
    features = solve(model, clouds())
    assert features.shape == (9, model.pool.out_dim)
    assert model(clouds()).shape == (9, 3)


@pytest.mark.parametrize("method", ["dapt", "idpt", "vpt"])
def test_methods_with_tokens_of_their_own_are_read_at_their_patches(method):
    assert small_model(method=method)(clouds()).isfinite().all()


def test_it_is_saved_and_loaded_with_its_clouds(tmp_path):
    model = small_model(up_axis="z")
    solve(model, clouds())
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter")
    assert (again.up_axis, again.classifier) == ("z", "kernel")
    torch.testing.assert_close(again(clouds()), model(clouds()), rtol=0, atol=0)


def test_clouds_are_turned_as_the_pre_training_had_them():
    upright, given = small_model(), small_model(up_axis="z")
    given.load_state_dict(upright.state_dict())
    torch.testing.assert_close(given.forward_features(clouds()), upright.forward_features(turn_y_up(clouds(), "z")))
    assert not torch.allclose(given.forward_features(clouds()), upright.forward_features(clouds()), atol=1e-3)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_turning_keeps_hands(axis):
    unit = torch.eye(3)
    turned = turn_y_up(unit, axis)
    assert turned["xyz".index(axis)].tolist() == [0, 1, 0]
    assert torch.linalg.det(turned) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classifier": "tree"}, "classifier must be one of mlp, kernel"),
        ({"classifier": "kernel"}, "num_support must be positive for a kernel head"),
        ({"num_support": 3}, "num_support must be positive for a kernel head, and 0 for others, got 3"),
        ({"up_axis": "up"}, "up_axis must be"),
        ({"up_axis": "z", "task": "part_segmentation"}, "up_axis must be None but for classification"),
        ({"classifier": "kernel", "num_support": 3, "task": "part_segmentation"}, "mlp but for classification"),
    ],
)
def test_what_does_not_go_together_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        create_model("point_mae", "linear", 3, **SMALL, **options)


def test_it_is_exported(tmp_path):
    from pointpeft.checkpoints.export import export

    model = small_model(up_axis="z")
    solve(model, clouds())
    assert export(model, tmp_path / "model.pt2", num_points=64) < 1e-3
