import csv
import json
import os
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch

from pointpeft.locks import InUseError
from pointpeft.runs.comparison.compare import compare
from pointpeft.runs.comparison.report import Row, as_csv, caption, latex, markdown
from pointpeft.runs.config import CompareConfig
from pointpeft.training.run_folder import RunFolder
from tests.clouds import TINY_MODEL, write_parts

METHODS = ("linear:classifier=mlp", "dapt:rank=4")  # both of which train
BACKBONE = tuple(pair for pair in TINY_MODEL if not pair.startswith("rank"))


def config(folder, output, **changes):
    options = {
        "methods": ("linear", "dapt:rank=4"),
        "seeds": 2,
        "epochs": 2,
        "batch_size": 8,
        "num_points": 64,
        "set": BACKBONE,
        "checkpoint": "none",
        "device": "cpu",
        "quiet": True,
    }
    return CompareConfig(data=str(folder), output=output, **{**options, **changes})


def test_a_comparison_is_completed_not_repeated(clouds_folder, tmp_path):
    output = tmp_path / "compare"
    first = compare(config(clouds_folder, output, methods=METHODS, seeds=1))
    assert not first.failures
    assert [row.method for row in first.rows] == list(METHODS)
    assert first.rows[0].trained < first.rows[1].trained
    for row in first.rows:
        seed = output / row.method.replace(":", "_") / "seed-0"
        kept = json.loads((seed / "result.json").read_text())["selection"]["epoch"]
        with open(seed / "log.csv") as file:
            losses = [float(line["loss"]) for line in csv.DictReader(file)]
        assert row.training_loss == round(losses[kept - 1], 3)
    done = sorted(output.rglob("seed-0/result.json"))
    assert len(done) == 2
    times = [path.stat().st_mtime_ns for path in done]
    os.remove(output / "result.json")
    second = compare(config(clouds_folder, output, methods=METHODS))
    assert [row.seeds for row in second.rows] == [2, 2]
    assert [path.stat().st_mtime_ns for path in done] == times
    with open(output / "table.csv") as file:
        assert [row["method"] for row in csv.DictReader(file)] == list(METHODS)
    assert json.loads((output / "result.json").read_text())["rows"] == [asdict(row) for row in second.rows]
    assert second.rows[0].p_value is None
    assert 0 < second.rows[1].p_value <= 1
    assert "dapt:rank=4" in (output / "table.md").read_text()
    assert (output / "table.tex").read_text().count("\\\\") == 3  # the headings and two rows
    page = (output / "table.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page
    with pytest.raises(ValueError, match="holds a comparison with other options"):
        compare(config(clouds_folder, output, methods=METHODS, epochs=3))


def test_a_failing_method_does_not_keep_the_others_from_their_result(clouds_folder, tmp_path):
    result = compare(config(clouds_folder, tmp_path / "c", methods=("nope", "linear"), seeds=1))
    assert [row.method for row in result.rows] == ["linear"]
    assert "unknown method 'nope'" in result.failures["nope seed 0"]


def test_part_segmentation_is_compared_by_miou(tmp_path):
    wanted = config(
        write_parts(tmp_path / "parts.h5"), tmp_path / "c", task="part_segmentation", methods=("linear",), seeds=1
    )
    result = compare(wanted)
    assert not result.failures
    assert 0 < result.rows[0].score < 1
    text = (tmp_path / "c" / "table.md").read_text()
    assert "| instance mIoU | class mIoU |" in text
    assert f"{result.rows[0].second_score:.1%} ± 0.0%" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"methods": ("dapt", "dapt")}, "name each method once"),
        ({"methods": ()}, "name each method once"),
        ({"methods": ("dapt:rank",)}, "METHOD:NAME=VALUE"),
        ({"methods": ("dapt:lr=fast",)}, "lr in 'dapt:lr=fast' must be a number"),
    ],
)
def test_wrong_arguments_are_named(change, message, clouds_folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        compare(config(clouds_folder, tmp_path / "c", **change))


def test_numbers_chosen_on_the_test_set_are_marked(clouds_folder, tmp_path):
    result = compare(config(clouds_folder, tmp_path / "c", methods=("linear",), seeds=1, select="test-best"))
    assert "TEST SET CHOSE" in caption(result.rows, "test-best")
    for name in ("table.md", "table.tex", "table.html"):
        assert "TEST SET CHOSE" in (tmp_path / "c" / name).read_text()


def test_a_comparison_is_not_completed_with_other_data_or_weights_nor_by_two_at_once(clouds_folder, tmp_path):
    from safetensors.torch import save_file

    options = config(clouds_folder, tmp_path / "c", methods=("nothing",), seeds=1)  # no run is needed to see it
    assert compare(options).failures
    held = RunFolder(tmp_path / "c").lock()
    with pytest.raises(InUseError, match="c is in use by process"):
        compare(options)
    held.close()
    np.save(clouds_folder / "train" / "ball" / "0.npy", np.ones((99, 3), np.float32))
    with pytest.raises(ValueError, match=r"the data .* changed: 1 files changed, such as train/ball/0\.npy"):
        compare(options)
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    options = replace(options, output=tmp_path / "d", checkpoint=str(tmp_path / "w.safetensors"))
    assert compare(options).failures
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"the checkpoint .*w\.safetensors of the run in .* changed"):
        compare(options)


def row_of(**changes):
    numbers = {field.name: 0 for field in fields(Row)} | {"training_loss": None, "p_value": None}
    return Row(**(numbers | changes))


def test_a_table_has_as_many_columns_whatever_a_method_is_called():
    lines = markdown([row_of(method="a:set=x|y\n<b>")]).splitlines()
    assert [line.replace("\\|", "").count("|") for line in lines] == [12, 12, 12]
    assert as_csv([row_of(method="=1")]).splitlines()[1].startswith("'=1,")
    assert latex([row_of(method="\\^~")], "last").count(r"\textbackslash{}\textasciicircum{}\textasciitilde{}") == 1


def test_the_scores_have_the_names_of_the_task_in_csv():
    heads = as_csv([row_of(method="linear")], "part_segmentation").splitlines()[0].split(",")
    assert {"instance_miou", "instance_miou_std", "class_miou", "class_miou_std"} < set(heads)


def test_latex_escapes_what_it_must():
    row = row_of(method="a_b:lr=1e-3", trained=1234, trained_percent=1.5, score=0.5, score_std=0.1)
    text = latex([row], "val-best")
    assert r"a\_b:lr=1e-3 & 1,234 & 1.5 \% & 50.0\% $\pm$ 10.0\%" in text
