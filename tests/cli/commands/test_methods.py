"""The table of methods."""

import json
import re

import pytest

from pointpeft.cli.commands.methods import collect, short_table, table
from pointpeft.cli.main import main
from pointpeft.methods import method_class, method_names


@pytest.fixture(scope="module")
def rows():
    return collect("point_mae", 15)


def test_every_method_has_a_row(rows):
    assert [row["method"] for row in rows] == method_names()
    by_name = {row["method"]: row for row in rows}
    assert by_name["dapt"]["trained"] == 1_087_771
    assert by_name["full"]["trained"] == by_name["full"]["parameters"] == 22_093_327
    text = table(rows)
    assert "| `dapt` | 1,087,771 | " in text
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_the_short_table_runs_down_and_holds_all():
    rows = [{"method": f"m{i}", "trained": i, "merges": i == 2} for i in range(1, 8)]
    lines = short_table(rows).splitlines()
    assert lines[2] == "| `m1` | 1 | `m4` | 4 | `m7` | 7 |"
    assert lines[3] == "| `m2` * | 2 | `m5` | 5 |  |  |"
    assert len({line.count("|") for line in lines}) == 1


def test_a_missing_package_is_named_in_its_row(monkeypatch):
    monkeypatch.setattr("pointpeft.methods.base.find_spec", lambda name: None)
    rows = {row["method"]: row for row in collect("point_mae_tiny", 3)}
    assert "pip install 'pointpeft[peft]'" in rows["lora"]["missing"]
    assert rows["dapt"]["trained"] > 0
    assert re.search(r"\| `lora` \| - \| - \| - \|.*pip install", table(list(rows.values())))


def test_a_refused_pair_is_listed_with_its_reason(monkeypatch):
    def build(method, model):
        raise ValueError("needs something else")

    monkeypatch.setattr(method_class("dapt"), "build", build)
    rows = {row["method"]: row for row in collect("recon_tiny", 3)}
    assert rows["dapt"]["refused"] == "needs something else"
    assert rows["stag"]["trained"] > 0


def test_the_command_prints_json_and_names_a_wrong_backbone(capsys):
    assert main(["methods", "--backbone=point_mae_tiny", "--json"]) == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)] == method_names()
    assert main(["methods", "--backbone=nope"]) == 1
    assert "unknown backbone 'nope'" in capsys.readouterr().err
