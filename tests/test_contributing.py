"""Additions as CONTRIBUTING.md describes them: what is registered is known everywhere, without further edits."""

from dataclasses import dataclass

import pytest
import torch

from pointpeft import create_model, load_adapter
from pointpeft.backbones import backbone_families, backbone_names, registry
from pointpeft.backbones.point_mae import PointMAE, PointMAEConfig
from pointpeft.checkpoints import save_adapter
from pointpeft.cli import main as cli

COMMAND = '''
"""`pointpeft count-letters`: letters of a text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CountLetters:
    """Count the letters of a text."""

    text: str
    """What is counted."""
    twice: bool = False
    """Count each letter twice."""


def run(command: CountLetters) -> int:
    if not command.text:
        raise ValueError("text must have a letter, got none")
    print(len(command.text) * (1 + command.twice))
    return 0
'''


@pytest.fixture
def command(tmp_path, monkeypatch):
    (tmp_path / "count_letters_command.py").write_text(COMMAND)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "count-letters", ("count_letters_command", "CountLetters"))


@pytest.mark.usefixtures("command")
def test_a_command_is_a_file_and_a_line(capsys):
    assert cli.main(["count-letters", "--text", "abc", "--twice"]) == cli.OK
    assert capsys.readouterr().out == "6\n"
    assert cli.main(["count-letters", "--text", ""]) == cli.FAILED
    assert "error: text must have a letter" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["count-leters"])
    assert stopped.value.code == cli.USAGE
    assert "did you mean count-letters?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["count-letters", "--help"])
    assert "What is counted." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "Count the letters of a text." in capsys.readouterr().out


@dataclass(frozen=True)
class WideConfig(PointMAEConfig):
    """Fields of a `Wide`."""


class Wide(PointMAE):
    """A backbone of its own family."""

    family = "wide"


WideConfig.backbone_type = Wide


@pytest.fixture
def backbone(monkeypatch):
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))

    @registry.register_backbone
    def wide_tiny():
        """Two blocks."""
        return WideConfig(width=48, depth=2, num_heads=3, num_groups=16, group_size=8, embed_width=32)

    return "wide_tiny"


@pytest.mark.parametrize("method", ["linear", "dapt", "idpt", "ssf"])
def test_a_backbone_is_one_file(method, backbone, tmp_path, generator):
    assert backbone in backbone_names()
    assert backbone_families()["wide"] is Wide
    clouds = torch.rand(2, 64, 3, generator=generator)
    model = create_model(backbone, method, 4).eval()
    save_adapter(model, tmp_path / "adapter")
    assert torch.equal(load_adapter(tmp_path / "adapter")(clouds), model(clouds))


@pytest.mark.usefixtures("backbone")
def test_a_backbone_is_known_to_the_command_line(capsys):
    assert cli.main(["methods", "--backbone", "wide_tiny", "--short"]) == cli.OK
    assert "dapt" in capsys.readouterr().out
    assert cli.main(["methods", "--backbone", "wide_tyni"]) == cli.FAILED
    assert "wide_tiny" in capsys.readouterr().err
