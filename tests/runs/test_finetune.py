import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pointpeft.runs.config import EvaluateConfig, FinetuneConfig
from pointpeft.runs.evaluate import evaluate, load_run
from pointpeft.runs.finetune import finetune, summarise
from pointpeft.runs.result import entries_of, read_result
from tests.clouds import TINY, TINY_MODEL, write_clouds


@pytest.fixture
def config(clouds_folder, tmp_path):
    return FinetuneConfig(
        data=str(clouds_folder),
        checkpoint="none",
        set=TINY_MODEL,
        device="cpu",
        quiet=True,
        output=tmp_path / "run",
        **TINY,
    )


def test_a_run_leaves_everything_it_promises(config, clouds_folder):
    result = finetune(config)
    for name in ("config.json", "checkpoint.pt", "log.csv", "confusion.png", "curves.png", "report.html"):
        assert (result.folder / name).stat().st_size > 0, name
    facts = json.loads((result.folder / "result.json").read_text())
    assert facts == json.loads(json.dumps(entries_of(result)))
    assert facts["clouds"] == {"train": 18, "val": 6, "test": 24}
    assert facts["test"]["clouds"] == 24
    assert facts["validation"]["clouds"] == 6
    assert facts["linear_probe"]["clouds"] == 24
    assert facts["selection"]["test_set_used"] is False
    assert 0 < facts["trainable_parameters_without_head"] < facts["trainable_parameters"] < facts["parameters"]
    for name in ("peak_memory_mib", "clouds_per_second", "versions", "augmentation", "votes", "seeds"):
        assert facts[name], name
    assert "http" not in (result.folder / "report.html").read_text()

    evaluated = evaluate(EvaluateConfig(run=result.folder, device="cpu", quiet=True))
    assert evaluated.test == facts["test"]
    assert evaluated.per_class == facts["per_class"]


def test_it_learns_shapes_that_differ(config):
    result = finetune(replace(config, method="full", set=TINY_MODEL[:-1], epochs=60, lr=2e-3, probe=False))
    assert result.test["overall_accuracy"] > 0.8  # three classes: chance is 0.33


def test_the_same_seed_gives_the_same_adapter_and_another_does_not(config, tmp_path):
    def weights(name, seed):
        run = finetune(replace(config, output=tmp_path / name, seed=seed, probe=False, epochs=2))
        return load_file(run.folder / "adapter" / "adapter_model.safetensors")

    first, second, other = weights("a", 3), weights("b", 3), weights("c", 4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("select", ["val-best", "last", "test-best"])
def test_selection_keeps_the_epoch_its_rule_asks_for(config, select):
    result = finetune(replace(config, select=select, probe=False, epochs=5))
    selection, history = result.selection, (result.folder / "log.csv").read_text().splitlines()
    part = {"val-best": "val", "test-best": "test"}.get(select)
    if part is None:
        assert selection.epoch == 5
        assert "accuracy" not in history[0]
    else:
        columns = history[0].split(",")
        rows = [dict(zip(columns, map(float, line.split(",")), strict=True)) for line in history[1:]]
        best = max(rows, key=lambda row: (row[f"{part} accuracy"], -row[f"{part} loss"]))
        assert selection.epoch == best["epoch"]
        kept = result.validation if part == "val" else result.test
        assert kept["overall_accuracy"] == pytest.approx(best[f"{part} accuracy"], abs=1e-4)
    assert selection.test_set_used is (select == "test-best")
    # Nothing is held out where nothing is selected on it.
    assert result.clouds["train"] == (18 if select == "val-best" else 24)


def test_repeats_give_mean_and_deviation(config):
    result = finetune(replace(config, repeats=2, seed=5, epochs=1, probe=False))
    values = [run.test["overall_accuracy"] for run in result.runs]
    assert result.seeds == (5, 6)
    assert result.test["overall_accuracy"] == pytest.approx(sum(values) / 2, abs=1e-4)
    assert result.test["overall_accuracy_std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5, abs=1e-4)
    assert (result.folder / "seed-6" / "adapter").is_dir()
    with pytest.raises(ValueError, match="several seeds"):
        load_run(result.folder, torch.device("cpu"))


def test_summary_of_known_numbers(config):
    single = finetune(replace(config, epochs=1, probe=False))

    def of_seed(seed, accuracy):
        summary = {"overall_accuracy": accuracy, "mean_class_accuracy": accuracy, "loss": 1.0, "clouds": 10}
        return replace(single, seeds=(seed,), test=summary, validation=None)

    runs = [of_seed(0, 0.5), of_seed(1, 0.7), of_seed(2, 0.9)]
    result = summarise(runs, single.folder, ("overall_accuracy", "mean_class_accuracy", "loss"))
    assert result.test["overall_accuracy"] == 0.7
    assert result.test["overall_accuracy_std"] == 0.2
    assert result.validation is None
    assert [run.seed for run in result.runs] == [0, 1, 2]


def test_a_result_comes_back_from_its_file_also_with_the_names_of_earlier_versions(config):
    result = finetune(replace(config, epochs=1))
    assert read_result(result.folder) == result
    entries = entries_of(result)
    earlier = {name.replace("_", " ").replace("mib", "MiB"): value for name, value in entries.items()}
    earlier |= earlier.pop("labels")
    selection = dict(entries["selection"])
    earlier["selection"] = selection | {"test set used to select": selection.pop("test_set_used")}
    for split in ("test", "validation", "linear probe"):
        earlier[split] = {name.replace("_", " "): value for name, value in earlier[split].items()}
    (result.folder / "result.json").write_text(json.dumps(earlier))
    assert read_result(result.folder) == result


def start(config_arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "pointpeft", "finetune", *config_arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("checkpoints", [0, 2])
def test_a_killed_run_resumes_bit_for_bit(clouds_folder, tmp_path, checkpoints):
    options = [f"--set={pair}" for pair in TINY_MODEL]
    options += [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "epochs": 12}.items()]
    options += ["--checkpoint=none", "--device=cpu", "--no-probe", "--quiet"]

    def finish(arguments):
        process = start(arguments)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()

    finish([str(clouds_folder), *options, f"--output={tmp_path / 'whole'}"])
    process = start([str(clouds_folder), *options, f"--output={tmp_path / 'killed'}"])
    log, waited = tmp_path / "killed" / "log.csv", time.monotonic()
    wanted = tmp_path / "killed" / "config.json"
    while not wanted.exists() or (checkpoints and not (log.exists() and log.read_text().count("\n") > checkpoints)):
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() - waited < 120
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "result.json").exists()
    finish(["--resume", str(tmp_path / "killed")])
    whole, resumed = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "killed")
    )
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed")]
    assert results[0]["test"] == results[1]["test"]
    assert results[0]["selection"] == results[1]["selection"]


def test_evaluation_follows_class_names_not_numbers(config, tmp_path):
    run = finetune(replace(config, probe=False))
    shapes = {"rod": (0.1, 1.0, 0.1), "disc": (1.0, 0.1, 1.0)}  # fewer classes, so other numbers
    fewer = write_clouds(tmp_path / "fewer", shapes=shapes, seed=1)
    result = evaluate(EvaluateConfig(run=run.folder, data=str(fewer), device="cpu", quiet=True))
    assert result.per_class["ball"]["clouds"] == 0
    assert result.per_class["rod"]["clouds"] == 8
    other = write_clouds(tmp_path / "other", shapes={"cone": (1, 1, 1), "rod": (0.1, 1, 0.1)})
    with pytest.raises(ValueError, match="does not know: cone"):
        evaluate(EvaluateConfig(run=run.folder, data=str(other), device="cpu", quiet=True))


def test_voting_is_repeatable_whatever_the_batches(config):
    run = finetune(replace(config, probe=False))

    def loss(**options):
        return evaluate(EvaluateConfig(run=run.folder, device="cpu", quiet=True, **options)).test["loss"]

    assert loss(votes=3) == loss(votes=3, batch_size=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set": ("rnk=3",)}, "unknown option 'rnk'; known: .*rank"),
        ({"method": "nope"}, "nope"),
        ({"backbone": "nope"}, "nope"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": float("inf")}, "lr must be finite"),
        ({"votes": 0}, "votes must be at least 1"),
        ({"patience": 2, "select": "last"}, "patience must be None"),
        ({"checkpoint_blocks": True, "method": "dyt", "set": TINY_MODEL[:-1]}, "checkpoint_blocks must be off for dyt"),
        ({"checkpoint_blocks": True, "compile": True}, "checkpoint_blocks must be off with compile"),
        ({"cuda_graph": True, "device": "cpu"}, "cuda_graph needs a CUDA device, got cpu"),
        ({"val_fraction": 1.5}, "val_fraction must be between 0 and 1"),
        ({"checkpoint": "missing.pth"}, "missing.pth"),
        ({"set": ("group_size=97",)}, "has 96 points, at least 97 are needed"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_trained(config, change, message):
    with pytest.raises((ValueError, OSError), match=message):
        finetune(replace(config, **change))
    assert not (config.output / "log.csv").exists()


def test_a_wrong_rate_makes_no_folder(config):
    with pytest.raises(ValueError, match="lr must be at least 0, got nan"):
        finetune(replace(config, lr=float("nan")))
    assert not config.output.exists()


def test_an_unfinished_run_says_how_to_go_on(config, tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not finished; go on with: pointpeft finetune --resume"):
        load_run(tmp_path / "part", torch.device("cpu"))
    with pytest.raises(ValueError, match="holds no run"):
        finetune(replace(config, resume=tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
