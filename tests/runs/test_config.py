from pointpeft.backbones import backbone_names
from pointpeft.runs.config import registered_backbones


def test_the_help_names_every_registered_backbone():
    assert sorted(registered_backbones()) == sorted(backbone_names())
