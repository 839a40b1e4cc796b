"""A whole training step under torch.compile: one graph, and the gradients of the eager step."""

import pytest
import torch
import torch.nn.functional as F

from pointpeft import create_model
from pointpeft.methods import method_class, method_names


@pytest.mark.parametrize("method", ["dapt", "linear", "full"])
def test_a_training_step_compiles_to_one_graph(method):
    torch.manual_seed(0)
    model = create_model("point_mae_tiny", method, 5, depth=2, num_groups=8, group_size=8, drop_path=0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    # In float32 the tokenizer's gradients, sums in which much cancels, are 3e-5 of the exact ones off, whoever sums.
    model, xyz, labels = model.double(), torch.randn(4, 64, 3).double(), torch.randint(5, (4,))
    trained = [p for name, p in model.named_parameters() if p.requires_grad]

    def loss(xyz, labels):
        return F.cross_entropy(model(xyz), labels)

    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = torch.autograd.grad(loss(xyz, labels), trained, allow_unused=True)
    model.load_state_dict(state)  # the statistics of the norms have moved
    got = torch.autograd.grad(
        torch.compile(loss, fullgraph=True, backend="aot_eager")(xyz, labels), trained, allow_unused=True
    )
    for e, g in zip(expected, got, strict=True):
        assert (e is None) == (g is None)
        if e is not None:
            torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in method_names() if not method_class(name).packages])
def test_no_method_breaks_the_graph(name):
    # Recorded and run, not compiled: what a compiler makes of the graph is the test above.
    torch.compiler.reset()
    model = create_model("point_mae_tiny", name, 5, depth=2, num_groups=16, group_size=8)
    step = torch.compile(lambda xyz, y: F.cross_entropy(model(xyz), y), fullgraph=True, backend="eager")
    assert step(torch.randn(2, 64, 3), torch.tensor([1, 4])).isfinite()
