"""A backbone with published files is one file: nothing else is edited, and every part of the package knows it."""

import sys

import pytest
import torch
import yaml

import pointpeft.backbones
from pointpeft import create_model, from_published
from pointpeft.backbones import backbone_names, registry
from pointpeft.checkpoints import to_published
from pointpeft.recipes import find_preset, read_recipe
from tests.methods.tools import SMALL, cloud
from tests.recipes.test_presets import written

FILE = '''
"""Toy: Point-MAE with names of its own."""

from dataclasses import dataclass

from pointpeft.backbones.point_mae import PointMAE, PointMAEConfig
from pointpeft.backbones.registry import register_backbone
from pointpeft.weights.publication import Publication, YamlModel, modelnet_recipe


@dataclass(frozen=True)
class ToyNetConfig(PointMAEConfig):
    """Fields of a `ToyNet`: those of a `PointMAE`."""


class ToyNet(PointMAE):
    """Point-MAE with names of its own."""

    family = "toynet"
    publication = Publication(
        models=(YamlModel("ToyTransformer", keys=("toys",), augment="rotate"),),
        recipes=(modelnet_recipe("someone/Toy cfgs/modelnet.yaml", under="toynet/", backbone="toynet", lr=1e-3),),
    )
    published_renames = (*PointMAE.published_renames, (r"\\.mlp\\.", ".toy_mlp."))
    published_markers = (".toy_mlp.",)


ToyNetConfig.backbone_type = ToyNet


@register_backbone
def toynet() -> ToyNetConfig:
    """The published size."""
    return ToyNetConfig()


@register_backbone
def toynet_tiny() -> ToyNetConfig:
    """6 blocks of width 96."""
    return ToyNetConfig(width=96, depth=6, num_heads=3, num_groups=64, embed_width=32, drop_path=0.0)
'''


@pytest.fixture
def toynet(tmp_path, monkeypatch):
    """The file stands in a folder of backbones; afterwards the backbone is unknown again."""
    folder = tmp_path / "backbones"
    folder.mkdir()
    (folder / "toynet.py").write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))
    monkeypatch.setattr(pointpeft.backbones, "__path__", [*pointpeft.backbones.__path__, str(folder)])
    pointpeft.backbones.import_every_file()
    yield "toynet"
    del pointpeft.backbones.toynet
    del sys.modules["pointpeft.backbones.toynet"]


def test_its_names_are_registered_and_adapted(toynet):
    assert {"toynet", "toynet_tiny"} <= set(backbone_names())
    assert create_model("toynet_tiny", "dapt", 4, **SMALL).eval()(cloud()).shape == (2, 4)


def test_its_recipe_is_a_preset(toynet):
    preset = find_preset("full/toynet/modelnet")
    assert (preset.method, preset.backbone, preset.lr, preset.notes) == ("full", toynet, 1e-3, ())


def test_its_published_files_are_read(toynet, tmp_path):
    path = written(tmp_path, "full/scanobjectnn_hardest")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["model"] |= {"NAME": "ToyTransformer", "toys": 3}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    recipe = read_recipe(path)
    assert (recipe.method, recipe.backbone, recipe.augment) == ("full", toynet, "rotate")


def test_its_published_weights_are_recognised_and_written_again(toynet):
    torch.manual_seed(0)
    model = create_model("toynet_tiny", "full", 4, **SMALL)
    state = to_published(model)
    section = {"trans_dim": 96, "depth": 6, "num_heads": 3, "num_group": 16, "group_size": 8, "cls_dim": 4}
    again = from_published(section, state, embed_width=32)
    assert again.backbone_name == toynet
    assert all(torch.equal(tensor, state[name]) for name, tensor in to_published(again).items())


def test_it_is_forgotten_after_the_tests():
    assert "toynet" not in backbone_names()
    with pytest.raises(ValueError, match="unknown preset"):
        find_preset("full/toynet/modelnet")
