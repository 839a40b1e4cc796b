"""Logits and gradients of the published implementations, case by case."""

import functools
import re

import pytest
import torch

from pointpeft import from_published
from pointpeft.checkpoints import to_published
from pointpeft.weights.names import published_names
from tests.goldens import reader


@functools.cache
def run(name, dtype=torch.float32):
    """Our model with the golden's weights after one backward, and the golden."""
    meta, tensors = reader.read(name)
    beside = {key: tensors[key] for key in ("memory_bank",) if key in tensors}
    model = from_published(meta["config"], reader.state_dict(meta), **beside).eval().to(dtype)
    inputs = {key: tensors[key].to(dtype) if tensors[key].is_floating_point() else tensors[key] for key in model.inputs}
    logits = model(tensors["points"].to(dtype), **inputs)
    if model.dense:
        logits, tensors["logits"] = logits.log_softmax(-1), tensors["log_probs"]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), tensors["labels"].flatten())
    if "mask_loss" in tensors:  # the method's own, with its weight
        own = model.aux_losses()["selection"]
        assert own.item() == pytest.approx(meta["mask_loss_weight"] * tensors["mask_loss"].item(), rel=1e-4)
        loss = loss + own
    loss.backward()
    names = published_names(model)
    return model, meta, tensors, logits.detach(), {names[ours]: p for ours, p in model.named_parameters()}


@pytest.mark.parametrize("name", reader.NAMES)
def test_logits_agree(name):
    _, _, tensors, logits, _ = run(name)
    assert (logits - tensors["logits"]).abs().max() <= 1e-4 * tensors["logits"].abs().max()


@pytest.mark.parametrize("name", reader.NAMES)
def test_the_same_parameters_train(name):
    _, meta, _, _, parameters = run(name)
    assert {key for key, p in parameters.items() if p.requires_grad} == set(meta["trainable"])


@pytest.mark.parametrize("name", reader.NAMES)
def test_gradients_agree(name):
    # Those of dense heads in float64: in float32 a maximum that rounds the other way changes all by 2e-3.
    dtype = torch.float64 if "segmentation" in name else torch.float32
    model, meta, tensors, _, parameters = run(name, dtype)
    for key, norm in meta["grad_norm"].items():
        grad = parameters[key].grad
        if norm is None:
            assert grad is None or not grad.any(), key
            continue
        assert grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-9), key
        if model.dense:  # these goldens hold norms alone
            continue
        head = tensors[f"head.{key}"]
        assert (grad.flatten()[: len(head)] - head).abs().max() <= 1e-3 * grad.abs().max(), key


def test_a_dense_head_is_recognised_under_its_longer_names_too():
    meta, _ = reader.read("point_mae_part_segmentation")
    state = reader.state_dict(meta)
    parts = ("label_conv", "propagation_0", "convs1", "convs2", "convs3", "bns1", "bns2")
    longer = {re.sub(rf"^({'|'.join(parts)})\.", r"\1_cls.", key): tensor for key, tensor in state.items()}
    assert set(longer) != set(state)
    model = from_published(meta["config"], longer)
    assert (model.task, model.num_categories, model.num_classes) == ("part_segmentation", 16, 50)
    assert torch.equal(model.head.convs[0].weight, state["convs1.weight"])


NAMES_SMALL = [name for name in reader.NAMES if name.endswith(("small", "segmentation"))]


@pytest.mark.parametrize("name", NAMES_SMALL)
def test_written_files_hold_what_was_read(name):
    model, meta, *_ = run(name)
    state, written = reader.state_dict(meta), to_published(model)
    names = set(published_names(model).values())  # what is left are second names of the same tensors
    unread = {key for key in state if any(re.search(p, key) for p in model.backbone.unread_keys) and key not in names}
    assert {key for key in names if not key.endswith("num_batches_tracked")} == set(state) - unread
    assert set(written) >= names
    assert all(torch.equal(written[key], tensor) for key, tensor in state.items() if key not in unread)
    second = {key for key in set(written) - names if not key.endswith("num_batches_tracked")}
    assert second == set(meta.get("aliases", second))
