import json

from pointpeft.cli.commands.info import Info, run


def test_info_says_which_backends_are_live_and_why_not(capsys):
    assert run(Info()) == 0
    text = capsys.readouterr().out
    for part in ("pointpeft", "torch", "build: compiler", "backend: cpu", "backend: cuda"):
        assert part in text


def test_info_as_json(capsys):
    assert run(Info(json=True)) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["backends"]["cpu"]["live"] is True
    assert facts["operations_answer_with"]["cpu"] == "compiled"
    for part in facts["backends"].values():
        assert part["live"] or part["remedy"]
