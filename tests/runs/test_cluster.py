"""Sweeps and predictions by Ray on this machine: what one process gives."""

import json
import sys

import h5py
import numpy as np
import pytest

from pointpeft.cli.main import main
from pointpeft.runs.cluster import connected
from pointpeft.runs.comparison.compare import compare
from pointpeft.runs.predict import units
from tests.clouds import TINY, TINY_MODEL
from tests.runs.comparison.test_compare import config

MEASURED = ("peak_memory_mib", "clouds_per_second", "training_seconds")


def needs_ray():
    return pytest.importorskip("ray", reason="ray is not installed: pip install 'pointpeft[ray]'")


def test_without_ray_the_extra_is_named(monkeypatch, clouds_folder, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'pointpeft\[ray\]'"):
        compare(config(clouds_folder, tmp_path / "c", ray="local"))
    assert not list((tmp_path / "c").glob("linear/*/result.json"))


def test_a_wrong_address_or_too_many_cores_are_refused(clouds_folder, tmp_path):
    needs_ray()
    with pytest.raises(ValueError, match=r"ray_cpus must be at least 1, got 0"):
        compare(config(clouds_folder, tmp_path / "c", ray="local", ray_cpus=0))
    with pytest.raises(ValueError, match=r"ray must be local, auto or the address of a cluster, got 'nowhere'"):
        with connected("nowhere"):
            pass


def test_a_sweep_by_ray_has_the_results_of_a_sequential_one(clouds_folder, tmp_path):
    needs_ray()
    methods = ("linear", "dapt:rank=4", "nope")
    first = compare(config(clouds_folder, tmp_path / "one", methods=methods[:2], seeds=1))
    second = compare(config(clouds_folder, tmp_path / "ray", methods=methods, seeds=1, ray="local"))
    assert list(second.failures) == ["nope seed 0"]
    assert "unknown method 'nope'" in second.failures["nope seed 0"]
    for row, other in zip(first.rows, second.rows, strict=True):
        assert {k: v for k, v in vars(row).items() if k not in MEASURED} == {
            k: v for k, v in vars(other).items() if k not in MEASURED
        }
    for name in ("linear/seed-0", "dapt_rank=4/seed-0"):
        results = [json.loads((tmp_path / who / name / "result.json").read_text()) for who in ("one", "ray")]
        assert results[0]["test"] == results[1]["test"]


@pytest.fixture
def finished_run(clouds_folder, tmp_path):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "epochs": 1, "device": "cpu"}.items()]
    sets = [text for pair in TINY_MODEL for text in ("--set", pair)]
    output = tmp_path / "run"
    arguments = [str(clouds_folder), "--output", str(output), "--checkpoint", "none", "--no-probe", "--quiet"]
    assert main(["finetune", *arguments, *options, *sets]) == 0
    return output


def test_predictions_by_ray_are_those_of_one_process(finished_run, clouds_folder, tmp_path, capsys):
    needs_ray()
    shards = []
    for i in range(3):
        shards.append(tmp_path / f"{i}.h5")
        with h5py.File(shards[-1], "w") as file:
            file["data"] = np.random.default_rng(i).normal(size=(5, 80, 3)).astype(np.float32)
    with h5py.File(shards[1], "a") as file:
        file["data"][2, 0, 0] = np.nan
    places = [*map(str, shards[:2]), str(clouds_folder / "test"), str(shards[2])]
    common = ["predict", str(finished_run), *places, "--quiet", "--device", "cpu", "--batch-size", "4"]
    for who, more in (("one", []), ("ray", ["--ray", "local"])):
        assert main([*common, "--output", str(tmp_path / who), *more]) == 1  # one cloud is broken
    one, ray = ((tmp_path / who / "predictions.jsonl").read_text().splitlines() for who in ("one", "ray"))
    assert len(one) == 15 + 24
    for line, other in zip(map(json.loads, one), map(json.loads, ray), strict=True):
        # Other batches: a probability may round to another fourth digit.
        assert other.pop("probability", 0) == pytest.approx(line.pop("probability", 0), abs=2e-4)
        assert other == line
    assert not (tmp_path / "ray" / "predictions.jsonl.parts").exists()
    assert main([*common, "--output", str(tmp_path / "ray"), "--ray", "local"]) == 1
    assert "is there already" in capsys.readouterr().err


def test_pieces_of_work_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr("pointpeft.runs.predict.FILES_PER_UNIT", 2)
    (tmp_path / "many").mkdir()
    for i in range(3):
        np.save(tmp_path / "many" / f"{i}.npy", np.zeros((4, 3)))
    files = [tmp_path / "many" / f"{i}.npy" for i in range(3)]
    shard, single = tmp_path / "s.tar", tmp_path / "x.ply"
    assert units([single, tmp_path / "many", shard, single]) == [
        [single, files[0]],
        [files[1], files[2]],
        [shard],
        [single],
    ]
