import base64
import json
import re

import pytest
import torch

from pointpeft import create_model
from pointpeft.cli.main import main
from pointpeft.drawing.card import CLASS, PART, TRUE_PART
from pointpeft.methods.adapters.dapt import SCALE
from pointpeft.tasks.adapted import Adapted
from pointpeft.tasks.classification.task import Classification
from pointpeft.view import show
from pointpeft.view.token_maps import ATTENTION, PROMPTS, observe
from tests.clouds import TINY, TINY_MODEL, write_parts

SMALL = {"depth": 2, "num_groups": 16, "group_size": 8}


def adapted(classes=("a", "b", "c"), method="dapt"):
    torch.manual_seed(3)
    return Adapted(create_model("point_mae_tiny", method, len(classes), **SMALL).eval(), classes, 100, True)


def card_of(model, xyz, name, true=None):
    card = Classification().card(model, xyz, name, observe)
    card.true = true
    return card


def entries(text):
    return json.loads(re.search(r"const clouds = (\[.*?\]);\n", text).group(1))


def values(layer):
    return torch.frombuffer(bytearray(base64.b64decode(layer["values"])), dtype=torch.uint8)


def test_the_page_holds_clouds_and_layers_and_no_reference(generator):
    card = card_of(adapted(("a", "b", "c</script>")), torch.randn(100, 3, generator=generator), "x</script>.ply", "a")
    text = show.page([card], "y")
    assert text.count("</script>") == 1
    assert not re.search(r"(src|href|@import|url\()", text)
    (entry,) = entries(text)
    assert (entry["name"], entry["true"], entry["predicted"]) == ("x</script>.ply", "a", card.predicted)
    assert set(entry["layers"]) == {CLASS, ATTENTION, SCALE, PROMPTS}
    layer, expected = entry["layers"][ATTENTION], card.amounts[ATTENTION]
    found = values(layer) / 255 * (layer["high"] - layer["low"]) + layer["low"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_the_picture_has_a_column_per_layer(generator):
    model = adapted()
    cards = [card_of(model, torch.randn(60, 3, generator=generator), f"{i}.ply") for i in range(2)]
    figure = show.picture(cards, "z")
    drawn = [axes for axes in figure.axes if axes.name == "3d"]
    assert len(drawn) == 2 * 4
    assert drawn[0].get_title() == f"{cards[0].predicted} {cards[0].confidence:.0%}\n0.ply"
    colours = {axes.get_title(): axes.collections[0].get_array() for axes in drawn[1:4]}
    torch.testing.assert_close(torch.tensor(colours[SCALE].tolist()), cards[0].amounts[SCALE])


def test_page_and_picture_are_written(tmp_path, generator):
    card = card_of(adapted(), torch.randn(60, 3, generator=generator), "one.ply")
    html, png = show.write(tmp_path / "show", [card], "z")
    assert html.read_text().startswith("<!doctype html>")
    assert png.read_bytes()[:4] == b"\x89PNG"


def test_the_command_shows_parts_of_test_clouds(tmp_path, capsys):
    run = str(tmp_path / "run")
    data = str(write_parts(tmp_path / "parts.h5"))
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "epochs": 1}.items()]
    options += [*(f"--set={pair}" for pair in TINY_MODEL), "--checkpoint=none", "--device=cpu", "--quiet"]
    assert main(["finetune", data, "--task=part_segmentation", "--output", run, *options]) == 0
    capsys.readouterr()
    assert main(["show", run, "--count=2"]) == 0
    html, png = capsys.readouterr().out.split()
    found = entries(open(html).read())
    assert {entry["predicted"] for entry in found} == {"ball", "disc"}  # one of each before a second of any
    for entry in found:
        part, true = entry["layers"][PART], entry["layers"][TRUE_PART]
        assert entry["confidence"] == pytest.approx(float((values(part) == values(true)).float().mean()), abs=1e-6)
        assert {name.partition("/")[0] for name in part["names"]} == {entry["predicted"]}
    assert open(png, "rb").read(4) == b"\x89PNG"


def test_the_command_places_the_test_clouds_in_a_plane(clouds_folder, tmp_path, capsys):
    run = str(tmp_path / "run")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "epochs": 1}.items()]
    options += [*(f"--set={pair}" for pair in TINY_MODEL), "--checkpoint=none", "--device=cpu", "--quiet", "--no-probe"]
    assert main(["finetune", str(clouds_folder), "--output", run, *options]) == 0
    capsys.readouterr()
    assert main(["show", run, "--count=4", "--features=pca", f"--output={tmp_path / 'out'}"]) == 0
    written = capsys.readouterr().out.split()
    assert [path.rpartition("/")[2] for path in written] == ["show.html", "show.png", "features.png"]
    assert [entry["true"] for entry in entries(open(written[0]).read())] == ["ball", "disc", "rod", "ball"]
    assert main(["show", run, str(clouds_folder / "test" / "rod" / "0.npy")]) == 0
    written = capsys.readouterr().out.split()
    assert [path.rpartition("/")[2] for path in written] == ["show.html", "show.png"]
