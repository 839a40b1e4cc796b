import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pointpeft.cli.main import main
from pointpeft.data.on_demand import OnDemand
from pointpeft.data.part_loading import load_segments
from pointpeft.runs.config import EvaluateConfig, FinetuneConfig
from pointpeft.runs.evaluate import evaluate, load_run, predict_points
from pointpeft.runs.finetune import finetune
from pointpeft.tasks.parts.batches import PartClouds, random_order
from pointpeft.training.run_folder import RunFolder
from tests.clouds import TINY, TINY_MODEL, write_parts


@pytest.fixture
def config(tmp_path):
    return FinetuneConfig(
        data=str(write_parts(tmp_path / "parts.h5")),
        task="part_segmentation",
        set=TINY_MODEL,
        checkpoint="none",
        device="cpu",
        quiet=True,
        output=tmp_path / "run",
        **TINY,
    )


def test_batches_keep_points_and_parts_together(config):
    clouds = PartClouds(load_segments(config.data), 64)
    for points, targets in clouds.batches(5, torch.Generator().manual_seed(0)):
        assert points.shape == (len(targets), 64, 3)
        # Normalisation moves the mean to the origin, so that the border of the parts lies beside 0.
        high = targets.parts % 2 == 1
        assert high[points[..., 1] > 0.25].all()
        assert not high[points[..., 1] < -0.25].any()
        assert torch.equal(targets.parts // 2, targets.category[:, None].expand(-1, 64))
    small = PartClouds(load_segments(config.data), 128)
    assert small.counted().tolist() == [90] * len(small)
    rows = small.labelled[0]
    assert torch.equal(small.fixed_rows(0, rows)[:90].sort(0).values, rows.sort(0).values)
    assert torch.equal(small.fixed()[0, :90], small.fixed_rows(0, rows)[:90, :3])


@pytest.mark.parametrize("num_points", [64, 128])  # of 90
def test_clouds_on_disk_are_those_in_memory(config, num_points):
    memory = PartClouds(load_segments(config.data), num_points)
    disk = PartClouds(load_segments(config.data, lazy=True), num_points, on_disk=True, workers=1)
    chosen = [3, 0, 7, 4, 1]
    for one, other in ((memory, disk), (memory.subset(chosen), disk.subset(chosen))):
        assert one.sizes == other.sizes
        for rank, world in ((0, 1), (1, 2)):
            parts = [list(c.batches(5, torch.Generator().manual_seed(2), rank, world)) for c in (one, other)]
            for (points, targets), (found, labels) in zip(*parts, strict=True):
                assert torch.equal(points, found)
                assert torch.equal(targets.category, labels.category)
                assert torch.equal(targets.parts, labels.parts)
        for view, same in ((one, other), (one.thinned(20, 1), other.thinned(20, 1))):
            assert isinstance(same.fixed(), OnDemand)
            assert torch.equal(view.fixed(), torch.stack(list(same.fixed())))
            assert torch.equal(view.fixed_parts(), torch.stack(list(same.fixed_parts())))
            assert torch.equal(view.counted(), same.counted())


def test_thinned_clouds_are_a_part_of_what_is_evaluated(config):
    clouds = PartClouds(load_segments(config.data), 64)
    thin = clouds.thinned(16, seed=0)
    for few, many in zip(thin.fixed(), clouds.fixed(), strict=True):
        assert all((many == point).all(1).any() for point in few)
        assert len(few.unique(dim=0)) == 16
    small = PartClouds(load_segments(config.data), 128).thinned(120, seed=0)
    assert small.counted().tolist() == [90] * len(small)
    assert all(len(points[:90].unique(dim=0)) == 90 for points in small.fixed())  # repetitions come last


def test_a_run_on_disk_ends_with_the_same_weights_and_numbers(config, tmp_path):
    found = []
    for where in ("memory", "disk"):
        facts = finetune(replace(config, clouds_in=where, votes=2, output=tmp_path / where))
        assert facts.clouds_in == where
        tested = evaluate(
            EvaluateConfig(tmp_path / where, clouds_in=where, votes=2, device="cpu", quiet=True, densities=(16,))
        )
        assert tested.clouds_in == where
        weights = load_file(tmp_path / where / "adapter" / "adapter_model.safetensors")
        numbers = facts.test, facts.validation, tested.test, tested.by_points_per_cloud
        found.append((numbers, weights))
    (numbers, weights), (others, values) = found
    assert others == numbers
    assert all(torch.equal(values[name], value) for name, value in weights.items())


@pytest.mark.parametrize(("size", "n"), [(10, 4), (10, 10), (3, 10), (1, 5)])
def test_random_order_repeats_no_more_than_it_must(size, n):
    counts = random_order(size, n, torch.Generator().manual_seed(0)).bincount(minlength=size)
    assert counts.sum() == n
    assert counts.max() - counts.min() <= 1


def test_a_run_learns_parts_and_can_be_evaluated(config, tmp_path):
    result = finetune(replace(config, epochs=30, lr=3e-3, method="full", set=TINY_MODEL[:-1]))
    facts = result
    assert facts.test["instance_miou"] > 0.7  # guessing one part of two everywhere gives 0.25
    assert facts.labels["parts_of"] == [[0, 1], [2, 3]]
    assert facts.linear_probe is None
    assert {"parts.png", "curves.png", "result.json", "log.csv", "adapter"} <= {p.name for p in result.folder.iterdir()}
    assert "val instance mIoU" in (result.folder / "log.csv").read_text().splitlines()[0]

    again = evaluate(EvaluateConfig(result.folder, device="cpu", quiet=True, densities=(64, 16)))
    assert again.test == facts.test
    assert again.by_points_per_cloud["64"] == facts.test
    assert again.by_points_per_cloud["16"]["clouds"] == facts.test["clouds"]
    voted = evaluate(EvaluateConfig(result.folder, device="cpu", quiet=True, votes=3, test_augment="isotropic"))
    assert voted.test_augment == "isotropic"
    assert voted.test["loss"] != facts.test["loss"]
    with pytest.raises(ValueError, match="densities must be between 8 and 64 points, got 65"):
        evaluate(EvaluateConfig(result.folder, device="cpu", quiet=True, densities=(65,)))

    adapted = load_run(result.folder, torch.device("cpu"))
    random = np.random.default_rng(5)
    cloud = random.normal(size=(500, 3))
    cloud /= np.linalg.norm(cloud, axis=1, keepdims=True)
    np.save(tmp_path / "new.npy", cloud)
    (found,) = predict_points(adapted, [tmp_path / "new.npy"], tmp_path / "out", "ball")
    labels = np.load(found["labels"])
    assert labels.shape == (500,)
    assert set(labels) <= {0, 1}
    assert (labels == (cloud[:, 1] > 0)).mean() > 0.8
    assert set(found["parts"]) <= {"ball/low", "ball/high"}
    with pytest.raises(ValueError, match="name the category of the clouds: --category, one of ball, disc"):
        predict_points(adapted, [tmp_path / "new.npy"], tmp_path / "out")
    missing = predict_points(adapted, [tmp_path / "none.npy"], tmp_path / "out", "disc")
    assert "none.npy" in missing[0]["error"]


def test_a_stopped_run_goes_on_to_the_same_weights(config, tmp_path, monkeypatch):
    whole = finetune(config)
    half = tmp_path / "half"
    write = RunFolder.log

    def log_and_stop(folder, history):
        write(folder, history)
        if len(history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "log", log_and_stop)
    with pytest.raises(KeyboardInterrupt):
        finetune(replace(config, output=half))
    monkeypatch.undo()
    assert torch.load(half / "checkpoint.pt", weights_only=True)["epoch"] == 2
    resumed = finetune(FinetuneConfig(resume=half, device="cpu"))
    assert resumed.test == whole.test
    ours, theirs = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (whole.folder, resumed.folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_other_parts_are_refused(config, tmp_path):
    result = finetune(replace(config, epochs=1, warmup_epochs=0))
    with h5py.File(config.data, "a") as file:
        file["part_names"][0] = b"ball/other"
    with pytest.raises(ValueError, match="has other parts than the adapter: ball/low, ball/other"):
        evaluate(EvaluateConfig(result.folder, device="cpu", quiet=True))


def test_double_step_steps_twice(config):
    once, twice = (
        finetune(replace(config, epochs=1, warmup_epochs=0, double_step=double, output=config.output / str(double)))
        for double in (False, True)
    )
    assert twice.double_step is True
    state = [
        torch.load(r.folder / "checkpoint.pt", weights_only=True)["optimizer"]["state"][0]["step"]
        for r in (once, twice)
    ]
    assert 2 * state[0] == state[1]
    with pytest.raises(ValueError, match="double_step must be off for classification"):
        finetune(FinetuneConfig(double_step=True, device="cpu"))


def test_commands(config, tmp_path, capsys):
    options = [
        *(f"--set={pair}" for pair in TINY_MODEL),
        *(f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "epochs": 1}.items()),
        "--checkpoint=none",
        "--device=cpu",
        "--quiet",
    ]
    run = str(tmp_path / "run")
    assert main(["finetune", config.data, "--task", "part_segmentation", "--output", run, *options]) == 0
    assert "test instance mIoU" in capsys.readouterr().out
    assert main(["evaluate", run, "--device=cpu", "--quiet", "--votes", "2", "--densities", "32"]) == 0
    text = capsys.readouterr().out
    assert "2 passes, test-time augmentation isotropic" in text
    assert "with 32 points" in text
    assert "best epoch on clouds held out" in text
    np.save(tmp_path / "new.npy", np.random.default_rng(0).normal(size=(100, 3)))
    output = tmp_path / "out"
    arguments = ["predict", run, str(tmp_path / "new.npy"), "--category=disc", f"--output={output}", "--device=cpu"]
    assert main([*arguments, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert sum(found["parts"].values()) == pytest.approx(1, abs=1e-3)
    assert (output / "new.labels.png").read_bytes().startswith(b"\x89PNG")
