"""A method with a publication is one file: nothing else is edited, and every part of the package knows it."""

import json
import subprocess
import sys

import pytest
import torch
import yaml

import pointpeft.methods
from pointpeft import create_model, from_published
from pointpeft.checkpoints import to_published
from pointpeft.cli.main import main
from pointpeft.drawing.card import Card
from pointpeft.methods import base, method_class, method_names
from pointpeft.recipes import find_preset, read_recipe
from pointpeft.view import show
from pointpeft.view.token_maps import observe
from tests.methods.tools import SMALL, cloud
from tests.recipes.test_presets import written

FILE = '''
"""Toy: a learned gain behind every block."""

from dataclasses import dataclass

import torch
from torch import nn

from pointpeft.backbones.layers import Block
from pointpeft.methods.base import Method, factory_kwargs, register_method
from pointpeft.methods.token_map import TokenMap
from pointpeft.weights.publication import Publication, YamlModel, modelnet_recipe


class GainBlock(Block):
    """y = g ⊙ Block(x)."""

    def __init__(self, block, start):
        self.adopt(block)
        self.gain = nn.Parameter(torch.full((block.width,), start, **factory_kwargs(block)))

    def amplify(self, x):
        return self.gain * x

    def forward(self, x, ctx):
        return self.amplify(super().forward(x, ctx))


@register_method
@dataclass(frozen=True)
class Toy(Method):
    """A learned gain of each channel behind every block."""

    start: float = 1.0

    trains = (r"^backbone\\.(cls_token|cls_pos)$",)
    publication = Publication(
        models=(YamlModel("PointTransformer_Toy", augment="rotate"),),
        options={"gain_start": "start"},
        optimizer_parts=("toy",),
        recipes=(modelnet_recipe("someone/Toy cfgs/modelnet.yaml", method_options={"start": 0.5}),),
        fixed_defects=("the gain is applied once; published twice",),
        markers=(".toy_gain",),
        renames=((r"\\.gain$", ".toy_gain"),),
    )
    token_maps = (
        TokenMap(GainBlock, "amplify", lambda block, inputs, y: y[0, :, 0], "first channel", "channel 0 of each patch"),
    )

    def build(self, model):
        for i, block in enumerate(model.backbone.blocks):
            model.backbone.blocks[i] = GainBlock(block, self.start)
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The file stands in a folder of methods; afterwards the method is unknown again."""
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "toy.py").write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(base, "_METHODS", dict(base._METHODS))
    monkeypatch.setattr(pointpeft.methods, "__path__", [*pointpeft.methods.__path__, str(folder)])
    pointpeft.methods.import_every_file()
    yield "toy"
    del pointpeft.methods.toy
    del sys.modules["pointpeft.methods.toy"]


@pytest.fixture
def model(toy):
    torch.manual_seed(0)
    return create_model("point_mae_tiny", toy, 4, **SMALL, start=0.5).eval()


def test_it_is_created_and_an_attribute_of_the_package(model):
    from pointpeft.methods import Toy

    assert model.method == Toy(start=0.5)
    assert "Toy" in dir(pointpeft.methods)
    assert model(cloud()).shape == (2, 4)


def test_its_recipe_is_a_preset(toy):
    preset = find_preset("toy/modelnet")
    assert (preset.method, preset.data, preset.num_points) == (toy, "modelnet40", 1024)
    assert preset.notes == ("the gain is applied once; published twice",)
    config = preset.config(data="shapes")
    assert config.set == ("num_groups=64", "drop_path=0.1", "start=0.5")
    assert (config.method, config.preset) == (toy, "toy/modelnet")


def test_its_published_files_are_read(toy, tmp_path):
    path = written(tmp_path, "vpt/modelnet")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["optimizer"]["part"] = "toy"
    del content["model"]["prompt_nums"]
    content["model"] |= {"NAME": "PointTransformer_Toy", "gain_start": 0.25}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    recipe = read_recipe(path)
    assert (recipe.method, recipe.backbone, recipe.method_options) == (toy, "point_mae", {"start": 0.25})
    content["model"]["gian_start"] = 0.25
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"unknown keys of model: gian_start; known: .*gain_start"):
        read_recipe(path)


def test_its_published_weights_are_recognised_and_written_again(model):
    state = to_published(model)
    assert "blocks.blocks.0.toy_gain" in state
    fields = model.backbone.config
    section = {
        "trans_dim": fields.width,
        "depth": fields.depth,
        "num_heads": fields.num_heads,
        "num_group": fields.num_groups,
        "group_size": fields.group_size,
        "cls_dim": 4,
        "gain_start": 0.5,
    }
    again = from_published(section, state, embed_width=fields.embed_width)
    assert again.method == model.method
    assert all(torch.equal(tensor, state[name]) for name, tensor in to_published(again).items())


def test_the_command_lists_it(toy, capsys):
    assert main(["methods", "--json", "--backbone=point_mae_tiny"]) == 0
    (row,) = (row for row in json.loads(capsys.readouterr().out) if row["method"] == toy)
    assert row["what"] == "A learned gain of each channel behind every block"
    assert row["trained"] > row["trained_without_head"] == 6 * 96 + 2 * 96


def test_show_draws_its_map(model):
    xyz = cloud(1)[0]
    maps = observe(model, xyz).layers
    assert maps["first channel"].shape == (128,)
    page = show.page([Card("a cloud", xyz, "ball", None, None, {}, maps)], "z")
    assert "channel 0 of each patch" in page


def test_no_optional_package_is_imported_for_the_registry():
    optional = sorted({package for name in method_names() for package in method_class(name).packages})
    code = f"import sys, pointpeft.methods; print([name for name in {optional} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert optional
    assert done.stdout.strip() == "[]"


def test_it_is_forgotten_after_the_tests():
    with pytest.raises(ValueError, match="unknown method 'toy'"):
        create_model("point_mae_tiny", "toy", 4)
    with pytest.raises(ValueError, match="unknown preset 'toy/modelnet'"):
        find_preset("toy/modelnet")
