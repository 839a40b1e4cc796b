"""DAPT on the fused operations against the same model on the reference backend."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft import create_model


@pytest.fixture
def model():
    """Small, with everything away from its initial value: open gates, adapters that are not zero."""
    torch.manual_seed(0)
    sizes = {"rank": 12, "num_groups": 20, "group_size": 12}
    model = create_model("point_mae_tiny", "dapt", 7, dropout=0.0, drop_path=0.0, gate_bias=0.5, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def clouds(generator):
    return torch.rand(4, 256, 3, generator=generator) * 2 - 1


def steps(model, clouds, count, labels=(0, 1, 2, 3)):
    """Losses of some training steps, and the gradients of the last."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    torch.manual_seed(1)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(clouds), torch.tensor(labels))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def kept(model, clouds, backend, monkeypatch):
    """Bytes of the activations that a training step keeps for its backward."""
    monkeypatch.setenv("POINTPEFT_BACKEND", backend)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps the address from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.cross_entropy(model(clouds), torch.zeros(len(clouds), dtype=torch.int64)).backward()
    return sum(size for pointer, (size, _) in storages.items() if pointer not in own)


def test_gradients_equal_the_reference_backend_s(model, clouds, monkeypatch):
    model, clouds = model.double(), clouds.double()  # in single precision, rounding moves a gate over zero now and then
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses, grads = steps(model, clouds, 1)
    model.load_state_dict(state)
    monkeypatch.setenv("POINTPEFT_BACKEND", "reference")
    expected_losses, expected = steps(model, clouds, 1)
    assert losses == pytest.approx(expected_losses, rel=1e-9)
    largest = max(float(g.abs().max()) for g in expected.values())
    assert set(grads) == set(expected)
    for name, gradient in grads.items():
        # The floor is for biases before a BatchNorm, whose true gradient is zero.
        torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-10 * largest, msg=name)


def test_twenty_steps_follow_the_reference_backend_s(clouds, monkeypatch):
    torch.manual_seed(0)
    sizes = {"rank": 4, "num_groups": 12, "group_size": 8, "width": 32, "num_heads": 2, "depth": 3, "gate_bias": 0.5}
    model = create_model("point_mae_tiny", "dapt", 7, dropout=0.0, drop_path=0.0, dtype=torch.float64, **sizes)
    clouds = clouds.double()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses, _ = steps(model, clouds, 20)
    model.load_state_dict(state)
    monkeypatch.setenv("POINTPEFT_BACKEND", "reference")
    expected, _ = steps(model, clouds, 20)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert losses[-1] < losses[0]


def test_evaluation_equals_the_reference_backend_and_sees_changed_weights(model, clouds, monkeypatch):
    model.eval()
    for _ in range(2):  # the second time after a change of what evaluation has folded and kept
        with torch.no_grad():
            logits = model(clouds)
            assert torch.equal(model(clouds), logits)
            with monkeypatch.context() as patch:
                patch.setenv("POINTPEFT_BACKEND", "reference")
                torch.testing.assert_close(logits, model(clouds), rtol=1e-4, atol=1e-4)
            model.backbone.blocks[0].tfts_fc1.gamma.mul_(1.5)


def test_gradients_in_evaluation_are_there(model, clouds):
    model.eval()
    model(clouds).sum().backward()
    assert model.backbone.blocks[0].tfts_qkv.gamma.grad.abs().max() > 0


def test_a_step_keeps_less_than_a_third_of_what_the_reference_keeps(model, clouds, monkeypatch):
    ours = kept(model, clouds, "auto", monkeypatch)
    assert ours <= 0.35 * kept(model, clouds, "reference", monkeypatch)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_step_at_the_published_width_keeps_less_than_three_tenths_of_full_fine_tuning(backend, clouds, monkeypatch):
    ours, full = (create_model("point_mae", method, 7, num_groups=64) for method in ("dapt", "full"))
    assert kept(ours, clouds[:2], "auto", monkeypatch) <= 0.3 * kept(full, clouds[:2], backend, monkeypatch)


def test_a_step_compiles_without_graph_breaks(model, clouds):
    block = model.backbone.blocks[0]
    x = torch.randn(2, 9, 96, requires_grad=True)

    def run(x):
        from pointpeft.backbones import Context

        return block(x, Context(clouds, clouds[:, :8]))

    expected = torch.autograd.grad(run(x).square().sum(), x)[0]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), x)[0], expected)


@pytest.mark.parametrize("task", ["part_segmentation", "semantic_segmentation"])
def test_in_a_dense_task_the_last_prompt_alone_gets_no_gradient(task, clouds):
    torch.manual_seed(0)
    model = create_model(
        "point_mae_tiny", "dapt", 4, task=task, gate_bias=1.0, dropout=0.0, num_groups=20, group_size=12
    ).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # in the first step the adapters' second layers are zero
        optimizer.zero_grad()
        model(clouds).square().mean().backward()
        optimizer.step()
    still = {name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    last = len(model.backbone.blocks) - 1
    assert still == {f"backbone.blocks.{last}.tfts_3.{name}" for name in ("gamma", "beta")}
