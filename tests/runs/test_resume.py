import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from pointpeft.cli.main import main
from pointpeft.locks import InUseError
from pointpeft.runs.config import FinetuneConfig, PretrainConfig
from pointpeft.runs.finetune import finetune
from pointpeft.runs.pretrain import pretrain
from pointpeft.training.run_folder import RunFolder
from tests.clouds import TINY, TINY_MODEL, write_clouds

RUN = {**TINY, "set": TINY_MODEL, "checkpoint": "none", "probe": False, "quiet": True, "device": "cpu"}


@pytest.fixture(scope="module", params=["memory", "disk"])
def begun(request, tmp_path_factory):
    """A data set and a run of it that was stopped before its result."""
    root = tmp_path_factory.mktemp(request.param)
    data = write_clouds(root / "scans", per_class=5)
    shutil.copytree(data, root / "kept")  # with its times
    finetune(FinetuneConfig(str(data), **RUN, clouds_in=request.param, output=root / "run"))
    (root / "run" / "result.json").unlink()
    return root


@pytest.fixture
def root(begun, tmp_path):
    """Them, the data as it was."""
    shutil.rmtree(begun / "scans")
    shutil.copytree(begun / "kept", begun / "scans")
    return begun


def replaced(data):
    np.save(data / "train" / "ball" / "0.npy", np.random.default_rng(9).normal(size=(96, 3)).astype(np.float32))


def renamed(data):
    (data / "train" / "ball").rename(data / "train" / "zebra")
    (data / "test" / "ball").rename(data / "test" / "zebra")


def added(data):
    np.save(data / "train" / "ball" / "9.npy", np.random.default_rng(9).normal(size=(96, 3)).astype(np.float32))


def removed(data):
    (data / "test" / "rod" / "1.npy").unlink()


def moved(data):
    (data / "train" / "rod" / "1.npy").rename(data / "train" / "disc" / "1b.npy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced, r"training data .* changed: .*ball/0\.npy"),
        (renamed, r"training data .* changed: classes were ball, disc, rod, and are disc, rod, zebra"),
        (added, r"training data .* changed: .*1 clouds were added, such as train/ball/9\.npy"),
        (removed, r"data .* changed: .*1 (clouds|files) are gone, such as test/rod/1\.npy"),
        (moved, r"training data .* changed: 1 clouds were added, such as train/disc/1b\.npy; 1 clouds are gone"),
    ],
)
def test_a_run_does_not_go_on_with_other_data(change, message, root, tmp_path):
    run = shutil.copytree(root / "run", tmp_path / "run")
    change(root / "scans")
    with pytest.raises(ValueError, match=message):
        finetune(FinetuneConfig(resume=run))
    assert not (run / "result.json").exists()


def test_a_run_does_not_go_on_with_other_frozen_weights(clouds_folder, tmp_path):
    finetune(FinetuneConfig(str(clouds_folder), **RUN, output=tmp_path / "run"))
    inputs = json.loads((tmp_path / "run" / "inputs.json").read_text())
    inputs["frozen weights"] = "0" * 64
    (tmp_path / "run" / "inputs.json").write_text(json.dumps(inputs))
    with pytest.raises(ValueError, match=r"frozen weights of the run in .* changed"):
        finetune(FinetuneConfig(resume=tmp_path / "run"))


def test_data_in_memory_may_be_a_copy(clouds_folder, tmp_path, capsys):
    finetune(FinetuneConfig(str(clouds_folder), **RUN, output=tmp_path / "run"))
    shutil.copytree(clouds_folder, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(clouds_folder)
    (tmp_path / "copy").rename(clouds_folder)
    finetune(FinetuneConfig(resume=tmp_path / "run"))
    assert f"{tmp_path / 'run'} is finished: nothing is left to train" in capsys.readouterr().err


def test_a_pre_training_does_not_go_on_with_other_data(clouds_folder, tmp_path):
    config = PretrainConfig(
        str(clouds_folder), set=TINY_MODEL[:-1], epochs=1, num_points=64, batch_size=8, quiet=True, device="cpu",
        output=tmp_path / "run",
    )  # fmt: skip
    pretrain(config)
    added(clouds_folder)
    with pytest.raises(ValueError, match=r"training data .* 1 clouds were added, such as train/ball/9\.npy"):
        pretrain(PretrainConfig(resume=tmp_path / "run"))


def test_a_run_in_use_is_not_resumed(clouds_folder, tmp_path):
    finetune(FinetuneConfig(str(clouds_folder), **RUN, output=tmp_path / "run"))
    held = RunFolder(tmp_path / "run").lock()
    with pytest.raises(InUseError, match="run is in use by process"):
        finetune(FinetuneConfig(resume=tmp_path / "run"))
    held.close()
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "5"], "epochs is 3 there and 5 here"),
        (["--epochs", "60"], "epochs is 3 there and 60 here"),  # the command's default, but asked for
        (["--lr", "0.1", "--epochs", "3"], "lr is 0.0005 there and 0.1 here"),
        (["furniture"], "data is"),
        (["--set", "rank=8"], "set is"),
        (["--preset", "dapt/scanobjectnn_hardest"], "preset is None there"),
        (["--output", "elsewhere"], "output is"),
    ],
)
def test_no_option_beside_resume_is_ignored(arguments, message, clouds_folder, tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    folder.write_config(FinetuneConfig(str(clouds_folder), **RUN, output=tmp_path / "run"), "finetune")
    assert main(["finetune", "--resume", str(folder.path), *arguments]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "begin a new run without --resume" in said
    if "furniture" not in arguments and "--output" not in arguments:
        name = arguments[0].removeprefix("--")
        value = {"epochs": 5, "lr": 0.1, "set": ("rank=8",), "preset": "dapt/scanobjectnn_hardest"}[name]
        with pytest.raises(ValueError, match=f"{name} is"):
            finetune(replace(FinetuneConfig(resume=folder.path), **{name: value}))


def test_options_that_change_no_result_are_taken_up(clouds_folder, tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    folder.write_config(FinetuneConfig(str(clouds_folder), **{**RUN, "probe": True, "quiet": False}), "finetune")
    assert main(["finetune", "--resume", str(folder.path), "--no-probe", "--quiet", "--clouds-in", "disk"]) == 0
    facts = json.loads((folder.path / "result.json").read_text())
    assert facts["linear_probe"] is None
    assert facts["clouds_in"] == "disk"


def test_one_class_and_one_cloud_a_step_are_named(clouds_folder, tmp_path):
    one = write_clouds(tmp_path / "one", shapes={"ball": (1, 1, 1)})
    with pytest.raises(ValueError, match=r"has only one class, ball: a model needs at least two"):
        finetune(FinetuneConfig(str(one), **RUN, output=tmp_path / "run"))
    with pytest.raises(ValueError, match=r"at least 2 clouds in every step.*larger --batch-size than 1"):
        finetune(FinetuneConfig(str(clouds_folder), **{**RUN, "batch_size": 1}, output=tmp_path / "run"))
