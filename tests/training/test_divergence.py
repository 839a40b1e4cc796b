import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pointpeft import create_model
from pointpeft.runs.config import FinetuneConfig, PretrainConfig
from pointpeft.runs.evaluate import load_run, predict
from pointpeft.runs.finetune import finetune
from pointpeft.runs.predict import predict_stream
from pointpeft.runs.pretrain import pretrain
from pointpeft.tasks.adapted import Adapted
from pointpeft.training.divergence import NotFiniteError, not_finite, require_finite_logits
from pointpeft.training.loop import Recipe, make_accelerator, train
from pointpeft.training.run_folder import RunFolder
from tests.clouds import TINY, TINY_MODEL

RUN = {**TINY, "set": TINY_MODEL, "checkpoint": "none", "probe": False, "quiet": True, "device": "cpu"}


def finite_files(folder):
    """Whether every weight and every number that a run left is finite; gives the names of the weight files."""
    found = []
    for path in folder.rglob("*"):
        if path.suffix == ".safetensors":
            assert not_finite(load_file(path)) is None, path
            found.append(path.name)
        elif path.name == "checkpoint.pt":
            assert not_finite(torch.load(path, weights_only=True)) is None, path
            found.append(path.name)
        elif path.suffix == ".json":
            json.loads(path.read_text(), parse_constant=pytest.fail)
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e38, "epochs": 1},
        {"lr": 1e38, "epochs": 1, "select": "last"},
        {"lr": 1e20, "epochs": 1, "select": "last", "method": "linear", "classifier": "mlp", "set": TINY_MODEL[:-1]},
        {"lr": 1e38, "epochs": 1, "ema": 0.5, "select": "last"},
        {"lr": 1e38, "epochs": 1, "clip": 1e30, "method": "full", "set": TINY_MODEL[:-1]},
    ],
    ids=str,
)
def test_a_run_that_diverges_in_its_last_epoch_is_no_success(change, clouds_folder, tmp_path):
    config = FinetuneConfig(str(clouds_folder), **{**RUN, **change}, output=tmp_path / "run")
    with pytest.raises(NotFiniteError, match=r"training diverged in epoch 1.*Begin a new run with a smaller lr than"):
        finetune(config)
    assert finite_files(tmp_path / "run") == []
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_pre_training_that_diverges_writes_no_backbone(clouds_folder, tmp_path):
    config = PretrainConfig(
        str(clouds_folder), set=TINY_MODEL[:-1], epochs=1, lr=1e38, num_points=64, batch_size=8, warmup=0.0,
        quiet=True, device="cpu", output=tmp_path / "run",
    )  # fmt: skip
    with pytest.raises(NotFiniteError, match="training diverged in epoch 1"):
        pretrain(config)
    assert finite_files(tmp_path / "run") == []


def test_a_probe_that_diverges_is_named_and_no_result_is_written(clouds_folder, tmp_path, monkeypatch):
    import pointpeft.runs.finetune as finetuning

    real = finetuning.probe

    def wild(accelerator, model, recipe, *others):
        return real(accelerator, model, Recipe(epochs=1, lr=1e38), *others)

    monkeypatch.setattr(finetuning, "probe", wild)
    config = FinetuneConfig(str(clouds_folder), **{**RUN, "probe": True}, output=tmp_path / "run")
    with pytest.raises(NotFiniteError, match="of the linear probe, which --no-probe leaves out: training diverged"):
        finetune(config)
    assert finite_files(tmp_path / "run") == ["checkpoint.pt"]


class Batches(list):
    @property
    def sizes(self):
        return [len(labels) for _, labels in self]


@pytest.mark.parametrize("where", ["loss", "gradient", "weights", "statistics", "measured"])
def test_the_last_finite_checkpoint_stays_whatever_breaks(where, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    folder, epoch = RunFolder(tmp_path), 0

    def batches(number):
        nonlocal epoch
        epoch = number
        if number == 2:
            assert (tmp_path / "checkpoint.pt").exists()
        return Batches((torch.randn(6, 3), torch.arange(6) % 2) for _ in range(2))

    def loss_of(module, points, labels):
        loss = nn.functional.cross_entropy(module(points), labels)
        return {"loss": loss * float("inf") if epoch == 2 and where == "loss" else loss}

    def after_step():
        if epoch == 2 and where == "weights":
            model[0].weight.data[0, 0] = float("nan")
        if epoch == 2 and where == "statistics":
            model[1].running_var[0] = float("inf")

    def after_epoch(module, state):
        if epoch == 2 and where == "measured":
            require_finite_logits(torch.tensor([[1.0, float("nan")]]))
        return {"val loss": 0.5}

    if where == "gradient":
        model[2].weight.register_hook(lambda grad: grad * float("nan") if epoch == 2 else grad)
    recipe = Recipe(epochs=4, lr=1e-3)
    with pytest.raises(NotFiniteError, match=r"diverged in epoch 3.*The checkpoint of epoch 2 is kept"):
        train(make_accelerator("cpu"), model, recipe, batches, loss_of, folder, after_epoch, after_step=after_step)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["epoch"] == 2
    assert not_finite(saved) is None


def broken(value=float("nan")):
    torch.manual_seed(0)
    model = create_model("point_mae_tiny", "linear", 3, depth=1, num_groups=8, group_size=8, width=24, num_heads=2)
    with torch.no_grad():
        next(model.head.parameters())[0, 0] = value
    return Adapted(model.eval(), ("ball", "disc", "rod"), 64, True)


def test_a_model_that_gives_nan_names_no_class(clouds_folder, tmp_path):
    files = sorted((clouds_folder / "test" / "ball").glob("*.npy"))[:2]
    for result in predict(broken(), files):
        assert "class" not in result
        assert "the model's logits are not finite for 1 of 1 clouds" in result["error"]
    result = predict_stream(broken(), [clouds_folder / "test" / "ball"], tmp_path / "out.jsonl")
    assert result.errors == result.clouds == 8
    assert "class" not in (tmp_path / "out.jsonl").read_text()


def test_an_adapter_of_a_diverged_run_is_refused_when_it_is_loaded(clouds_folder, tmp_path):
    from pointpeft.checkpoints import save_adapter

    adapted = broken(float("inf"))
    facts = {"classes": ["ball", "disc", "rod"], "points": 64, "clouds_normalized": True}
    save_adapter(adapted.model, tmp_path / "adapter", facts)
    with pytest.raises(NotFiniteError, match=r"adapter holds numbers that are not finite, in head\."):
        load_run(tmp_path / "adapter", torch.device("cpu"))
