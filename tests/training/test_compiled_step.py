import pytest
import torch
from torch import nn

import pointpeft
from pointpeft.tasks.batches import Clouds
from pointpeft.training import compiled_step as module
from pointpeft.training.compiled_step import check_compiled, compiled_step
from pointpeft.training.loop import Recipe, make_accelerator, train, trained_state
from pointpeft.training.run_folder import RunFolder
from pointpeft.training.seeds import derive_seed
from tests.clouds import FakeDataset

SMALL = {"width": 32, "depth": 1, "num_heads": 2, "num_groups": 8, "group_size": 4}


def run(folder, compiled=None):
    """Two epochs of two whole batches and a smaller one, with dropout, stochastic depth and gradient accumulation."""
    clouds = Clouds(FakeDataset([20] * 11), num_points=16)
    torch.manual_seed(0)
    model = pointpeft.create_model("point_mae_tiny", "dapt", 2, **SMALL)

    def loss_of(stepped, points, labels):
        logits = stepped(points)
        own = model.method.losses(model, points, labels, logits)
        return {"loss": nn.functional.cross_entropy(logits, labels), **own}

    def batches(epoch):
        return clouds.batches(5, torch.Generator().manual_seed(derive_seed(0, epoch)))

    recipe = Recipe(epochs=2, lr=1e-3, accumulate=2)
    state = train(make_accelerator("cpu"), model, recipe, batches, loss_of, RunFolder(folder), compiled=compiled)
    return model, [row["loss"] for row in state.history]


def test_compiled_steps_train_as_eager_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BACKEND", "aot_eager")  # the graphs, without compiling their kernels
    _, expected = run(tmp_path / "eager")
    called = []

    def compiled(model):
        step = compiled_step(model, cuda_graph=False)

        def counted(points):
            called.append(len(points))
            return step(points)

        return counted

    model, losses = run(tmp_path / "compiled", compiled)
    assert sorted(called) == [3, 3, 4, 4, 4, 4]
    assert losses == pytest.approx(expected, rel=1e-4)
    assert not any("_orig_mod" in name for name in trained_state(model))  # checkpoints and adapters keep their names


def test_cuda_graphs_are_refused_where_they_cannot_be(monkeypatch):
    check_compiled(False, torch.device("cpu"))
    with pytest.raises(ValueError, match="cuda_graph needs a CUDA device, got cpu"):
        check_compiled(True, torch.device("cpu"))
    monkeypatch.setattr("pointpeft.ops.core.triton_launch.available", lambda: False)
    with pytest.raises(ValueError, match="cuda_graph needs Triton"):
        check_compiled(True, torch.device("cuda"))


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_the_mode_is_the_one_that_records_graphs(cuda_graph, monkeypatch):
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda model, **options: asked.update(options))
    compiled_step(nn.Linear(1, 1), cuda_graph)
    assert asked == {"backend": "inductor", "mode": "reduce-overhead" if cuda_graph else None, "dynamic": False}


def test_a_step_trains_on_cuda_graphs(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = pointpeft.create_model("point_mae_tiny", "dapt", 2, dropout=0.0, drop_path=0.0, **SMALL).cuda().eval()
    points = torch.rand(4, 16, 3, device="cuda")
    step = compiled_step(model, cuda_graph=True)
    for _ in range(3):  # records, then replays
        loss = step(points).square().mean()
        loss.backward()
    torch.testing.assert_close(loss, model(points).square().mean(), rtol=1e-4, atol=1e-5)
