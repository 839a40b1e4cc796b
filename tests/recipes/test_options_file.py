"""Files of options for `--config`: our own YAML, and the config.json of a run."""

import json
from pathlib import Path

import pytest

from pointpeft.cli.main import main
from pointpeft.recipes.options_file import read_options
from pointpeft.recipes.presets import find_preset
from pointpeft.recipes.published_yaml import read_recipe
from pointpeft.runs.config import FinetuneConfig
from tests.cli.test_main import QUICK


def written(tmp_path, text, name="own.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_yaml_of_our_options(tmp_path):
    path = written(
        tmp_path,
        "data: scans\nmethod: linear\nbatch-size: 8\nlr: 5e-4\nset: {rank: 3, parts: [cls, patch_max]}\nema: null\n",
    )
    expected = FinetuneConfig("scans", method="linear", batch_size=8, lr=5e-4, set=("rank=3", "parts=cls,patch_max"))
    assert read_options(path) == expected


def test_the_config_of_a_run_without_its_folder(tmp_path):
    entries = {
        "command": "finetune",
        "data": "scans",
        "output": "runs/a",
        "resume": None,
        "set": ["rank=3"],
        "epochs": 2,
    }
    path = written(tmp_path, json.dumps(entries), "config.json")
    assert read_options(path) == FinetuneConfig("scans", set=("rank=3",), epochs=2, classifier="mlp")


def test_a_preset_that_a_file_names_is_filled_in(tmp_path):
    path = written(tmp_path, "preset: dapt/scanobjectnn_hardest\nepochs: 7\n")
    assert read_options(path) == find_preset("dapt/scanobjectnn_hardest").config(epochs=7)


def test_a_published_file_is_not_one_of_ours(tmp_path):
    assert read_options(written(tmp_path, "model: {NAME: PointTransformer}\n")) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3\n", "unknown key epoch; did you mean epochs?"),
        ("epochs: three\n", "epochs must be a whole number, got 'three'"),
        ("epochs: true\n", "epochs must be a whole number, got True"),
        ("probe: 1\n", "probe must be true or false, got 1"),
        ("select: best\n", "select must be one of val-best, cv, last, test-best, got 'best'"),
        ("set: [1]\n", "set must be a list of NAME=VALUE, or a mapping, got [1]"),
        ("command: pretrain\n", "holds options of `pretrain`"),
        ("- 1\n", "must hold a mapping of options, got list"),
        ("a: [\n", "is not YAML of plain values"),
    ],
)
def test_an_error_names_the_file_the_key_and_the_need(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_options(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_an_error_in_a_published_file_names_it(tmp_path):
    path = written(tmp_path, "model: {NAME: PointTransformer}\nnonsense: 1\n", "published.yaml")
    with pytest.raises(ValueError, match="nonsense") as error:
        read_recipe(path)
    assert str(path) in str(error.value)


def test_a_run_is_repeated_from_its_own_file(clouds_folder, tmp_path, capsys):
    first, again = tmp_path / "first", tmp_path / "again"
    assert main(["finetune", str(clouds_folder), *QUICK, "--seed=3", f"--output={first}"]) == 0
    assert main(["finetune", f"--config={first / 'config.json'}", "--batch-size=4", f"--output={again}"]) == 0
    one, other = (json.loads(Path(run / "config.json").read_text()) for run in (first, again))
    assert {name for name in one if one[name] != other[name]} == {"output", "batch_size"}
