from dataclasses import replace

import pytest

from pointpeft.cli.main import main
from pointpeft.runs.comparison.few_shot import few_shot
from pointpeft.runs.config import FewShotConfig
from tests.clouds import TINY_MODEL, write_clouds


@pytest.fixture
def config(tmp_path):
    return FewShotConfig(
        data=str(write_clouds(tmp_path / "scans", per_class=6)),
        ways=2,
        shots=3,
        folds=2,
        methods=("linear", "dapt:rank=4"),
        checkpoint="none",
        set=TINY_MODEL[:-1],
        epochs=2,
        num_points=64,
        device="cpu",
        quiet=True,
        output=tmp_path / "few",
    )


def test_every_method_sees_every_fold_and_the_table_is_their_mean(config):
    result = few_shot(config)
    assert not result.failures
    assert [row.method for row in result.rows] == ["linear", "dapt:rank=4"]
    for row in result.rows:
        each = list(result.accuracies[row.method].values())
        assert len(each) == row.folds == 2
        assert row.overall_accuracy == pytest.approx(sum(each) / 2, abs=1e-4)
        assert row.std == pytest.approx(abs(each[0] - each[1]) / 2**0.5, abs=1e-4)
    assert result.protocol.test_set_used is False
    text = (config.output / "table.md").read_text()
    assert "2-way 3-shot accuracy" in text
    assert "TEST SET" not in text


def test_the_same_command_completes_and_another_recipe_is_refused(config):
    few_shot(replace(config, methods=("linear",), folds=1))
    first = config.output / "linear" / "fold-0" / "result.json"
    written = first.stat().st_mtime_ns
    (config.output / "linear" / "fold-1").mkdir()
    result = few_shot(replace(config, methods=("linear",)))
    assert result.rows[0].folds == 2
    assert first.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="holds a comparison with other options"):
        few_shot(replace(config, methods=("linear",), epochs=3))


def test_selection_on_the_test_set_is_marked(config):
    result = few_shot(replace(config, methods=("linear",), folds=1, select="test-best"))
    assert result.protocol.test_set_used is True
    assert "ON THE TEST SET" in (config.output / "table.md").read_text()


def test_a_fold_that_fails_is_reported_and_the_others_count(config, capsys):
    result = few_shot(replace(config, methods=("linear", "nothing"), folds=1))
    assert list(result.failures) == ["nothing fold 0"]
    assert [row.method for row in result.rows] == ["linear"]


@pytest.mark.parametrize(
    ("change", "message"), [({"folds": 0}, "folds must be"), ({"methods": ("dapt", "dapt")}, "name each method once")]
)
def test_wrong_options(config, change, message):
    with pytest.raises(ValueError, match=message):
        few_shot(replace(config, **change))


def test_command(config, capsys):
    arguments = ["few-shot", config.data, "--ways=2", "--shots=3", "--folds=1", "--methods", "linear"]
    options = [f"--set={pair}" for pair in config.set] + ["--checkpoint=none", "--epochs=1", "--num-points=64"]
    assert main([*arguments, *options, "--device=cpu", "--quiet", f"--output={config.output}"]) == 0
    assert "| linear |" in capsys.readouterr().out
