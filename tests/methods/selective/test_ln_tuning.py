"""LN-tuning trains both norms of every block."""

from tests.methods.tools import make


def test_what_trains():
    model = make("ln_tuning")
    names = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    norms = {f"blocks.{i}.norm{j}.{part}" for i in range(6) for j in (1, 2) for part in ("weight", "bias")}
    assert names == norms | {"cls_token", "cls_pos"}
