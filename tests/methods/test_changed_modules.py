"""Whatever somebody makes of a module of an adapted model has the effect that it has in plain PyTorch.

Plain PyTorch is the same model on the reference backend, all of whose layers have been given a subclass's class: nobody
may take the weights of those, so that every one is called.
"""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from pointpeft.backbones.layers import Attention, Mlp
from pointpeft.backbones.plain import is_frozen, is_plain

from .tools import cloud, every_method, stirred

SIZES = {"depth": 2}


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


class OwnLinear(nn.Linear):
    """Another forward of the same weights."""

    def forward(self, x):
        return super().forward(x) * 0.5 + 0.1


class OwnNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) * 0.5 + 0.1


class OwnTensor(torch.Tensor):
    """Stands for the weights of quantised layers: their products are not what their stored values say."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            args = [a.as_subclass(torch.Tensor) * 0.5 if isinstance(a, OwnTensor) else a for a in args]
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


def subclassed(layer):
    layer.__class__ = OwnNorm if isinstance(layer, nn.LayerNorm) else OwnLinear


def own_forward(layer):
    before = layer.forward
    layer.forward = lambda x: before(x) * 0.5 + 0.1


def hook(layer):
    layer.register_forward_hook(lambda module, given, y: y * 0.5 + 0.1)


def pre_hook(layer):
    layer.register_forward_pre_hook(lambda module, given: (given[0] * 0.5,))


def own_tensor(layer):
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(OwnTensor), requires_grad=False)


def dropping(layer):
    prune.l1_unstructured(layer, "weight", amount=0.5)


def old_weight_norm(layer):
    weight_norm(layer)
    layer.weight_g.data.mul_(0.5)


def new_weight_norm(layer):
    parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data.mul_(0.5)


OF_LINEAR = {
    "forward hook": hook,
    "forward pre-hook": pre_hook,
    "subclass": subclassed,
    "own forward": own_forward,
    "parametrisation": lambda layer: parametrize.register_parametrization(layer, "weight", Halved()),
    "weight norm": new_weight_norm,
    "old weight norm": old_weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": spectral_norm,
    "pruning": dropping,
    "weight of another class": own_tensor,
}
OF_NORM = {name: OF_LINEAR[name] for name in ("forward hook", "forward pre-hook", "subclass", "own forward")}
OF_CONTAINER = {name: OF_LINEAR[name] for name in ("forward hook", "forward pre-hook")}


def changed(model, chance, seed=0):
    """Changes layers of the backbone at random, each in one of the ways there are for it; returns how many."""
    generator = torch.Generator().manual_seed(seed)
    count = 0
    for module in list(model.backbone.modules()):
        ways = OF_LINEAR if type(module) is nn.Linear else OF_NORM if type(module) is nn.LayerNorm else None
        ways = OF_CONTAINER if type(module) in (Attention, Mlp) else ways
        if ways is None or torch.rand((), generator=generator) > chance:
            continue
        names = sorted(ways)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            ways[names[int(torch.randint(len(names), (), generator=generator))]](module)
        count += 1
    return count


def unfused(model, monkeypatch):
    """Every layer is called from now on, and the reference answers for all operations."""
    for module in model.modules():
        if type(module) in (nn.Linear, nn.LayerNorm, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d):
            module.register_forward_hook(lambda module, given, y: None)
    monkeypatch.setenv("POINTPEFT_BACKEND", "reference")
    return model


@torch.no_grad()
def logits(model):
    return model(cloud())


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", every_method())
def test_changed_layers_have_their_effect_in_every_method(name, seed, monkeypatch):
    model = stirred(name, **SIZES)
    before = logits(model)
    assert changed(model, 0.4, seed) > 3
    after = logits(model)
    assert not torch.allclose(after, before, atol=1e-3)
    expected = logits(unfused(model, monkeypatch))
    assert (after - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("way", OF_LINEAR)
@pytest.mark.parametrize("target", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
@pytest.mark.parametrize("merged", [False, True])
def test_one_changed_map_of_dapt(target, way, merged, monkeypatch):
    model = stirred("dapt", **SIZES)
    if merged:
        model.merge()
    before = logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        OF_LINEAR[way](model.backbone.blocks[1].get_submodule(target))
    after = logits(model)
    assert not torch.allclose(after, before, atol=1e-4)
    expected = logits(unfused(model, monkeypatch))
    assert (after - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", every_method())
def test_hooks_are_called_everywhere(name):
    model = stirred(name, **SIZES)
    heard = set()
    watched = {
        key: module
        for key, module in model.backbone.named_modules()
        if type(module) in (nn.Linear, nn.LayerNorm, Attention, Mlp, nn.Conv1d, nn.ReLU) and "unread" not in key
    }
    for key, module in watched.items():
        module.register_forward_hook(lambda module, given, y, key=key: heard.add(key))
    logits(model)
    tuners = ("lora_A", "lora_B")  # of methods that use peft, each is in the state of its layer
    assert {key for key in watched if key not in heard and not any(t in key for t in tuners)} <= unheard(name, watched)


def unheard(name, watched):
    """Layers that no pass of a method calls: those of the prompts that the last blocks of Point-PEFT do not read."""
    return {key for key in watched if name == "point_peft" and "cp_adapter" in key}


def test_backward_hooks_are_called():
    model = stirred("dapt", **SIZES).train()
    block = model.backbone.blocks[1]
    heard = set()
    for part in ("norm1", "norm2", "attn", "attn.qkv", "attn.proj", "mlp", "mlp.fc1", "mlp.fc2", "adapter.up"):
        block.get_submodule(part).register_full_backward_hook(lambda module, given, out, part=part: heard.add(part))
    model(cloud()).sum().backward()
    assert heard == {"norm1", "norm2", "attn", "attn.qkv", "attn.proj", "mlp", "mlp.fc1", "mlp.fc2", "adapter.up"}


def test_hooks_on_all_modules_hear_every_layer():
    model = stirred("dapt", **SIZES)
    heard = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, y: heard.add(id(module)))
    try:
        logits(model)
    finally:
        handle.remove()
    lacking = {key for key, module in model.backbone.named_modules() if id(module) not in heard}
    assert {key for key in lacking if "drop_path" not in key} <= {"", "blocks"}


def test_a_norm_of_another_class(monkeypatch):
    model = stirred("dapt", **SIZES)
    block = model.backbone.blocks[0]
    block.norm1, block.norm2, block.adapter.norm = (nn.RMSNorm(block.width) for _ in range(3))
    after = logits(model)
    torch.testing.assert_close(after, logits(unfused(model, monkeypatch)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"bias": False}, {"elementwise_affine": False}])
def test_a_norm_without_bias_or_weight(options, monkeypatch):
    model = stirred("dapt", **SIZES)
    block = model.backbone.blocks[0]
    block.norm1, block.norm2 = (nn.LayerNorm(block.width, **options) for _ in range(2))
    after = logits(model)
    torch.testing.assert_close(after, logits(unfused(model, monkeypatch)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "dapt", "ssf"])
def test_maps_without_bias(name, monkeypatch):
    model = stirred(name, **SIZES)
    for block in model.backbone.blocks:
        for layer in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            layer.bias = None
    after = logits(model)
    torch.testing.assert_close(after, logits(unfused(model, monkeypatch)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "dapt"])
@pytest.mark.parametrize("activation", [nn.GELU, nn.Sigmoid, nn.Identity])
def test_the_tokenizer_with_another_activation(name, activation, monkeypatch):
    model = stirred(name, **SIZES)
    before = logits(model)
    model.backbone.patch_embed.first_conv[2] = activation()
    after = logits(model)
    assert not torch.allclose(after, before, atol=1e-4)
    torch.testing.assert_close(after, logits(unfused(model, monkeypatch)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("stack", ["first_conv", "second_conv"])
@pytest.mark.parametrize("training", [False, True])
def test_hooks_in_the_tokenizer(stack, index, training, monkeypatch):
    model = stirred("dapt", dropout=0.0, **SIZES)
    model.backbone.train(training)
    hook(getattr(model.backbone.patch_embed, stack)[index])
    state = copy.deepcopy(model.state_dict())  # with the statistics of BatchNorm
    after = logits(model)
    model.load_state_dict(state)
    torch.testing.assert_close(after, logits(unfused(model, monkeypatch)), rtol=1e-4, atol=1e-4)


def test_dropout_alone_in_training_drops():
    model = stirred("dapt", dropout=0.5, **SIZES)
    with torch.no_grad():
        assert torch.equal(model(cloud()), model(cloud()))
        for module in model.backbone.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        assert not torch.equal(model(cloud()), model(cloud()))


@pytest.mark.parametrize("name", ["linear", "dapt", "ssf", "houlsby", "point_gst"])
@pytest.mark.parametrize("merged", [False, True])
def test_a_dynamically_quantised_model(name, merged, monkeypatch):
    model = stirred(name, **SIZES)
    if merged and model.method.mergeable:
        model.merge()
    before = logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch names a successor
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    after = logits(quantised)
    assert not torch.equal(after, before)
    expected = logits(unfused(quantised, monkeypatch))
    # A rounding of the last bit of an activation may move it to the next of 256 values.
    assert (after - expected).abs().max() <= 0.02 * expected.abs().max()


def test_merging_leaves_what_it_cannot_fold():
    model = stirred("dapt", **SIZES)
    for block in model.backbone.blocks:
        hook(block.mlp.fc1)
        subclassed(block.attn.proj)
    before = logits(model)
    after = logits(model.merge())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("task", ["part_segmentation", "semantic_segmentation"])
@pytest.mark.parametrize("backbone", ["point_mae_tiny", "point_bert_tiny"])
def test_changed_convolutions_of_dense_heads(task, backbone, monkeypatch):
    from pointpeft import create_model

    torch.manual_seed(0)
    options = {"num_categories": 3} if task == "part_segmentation" else {}
    sizes = {"num_groups": 16, "group_size": 8, "depth": 3}
    model = create_model(backbone, "linear", 4, task=task, **sizes, **options).eval()
    given = {"category": torch.tensor([0, 2])} if options else {}

    @torch.no_grad()
    def points():
        return model(cloud(), **given)

    before = points()
    for module in model.head.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            parametrize.register_parametrization(module, "weight", Halved())
    after = points()
    assert not torch.allclose(after, before, atol=1e-3)
    for module in model.head.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            parametrize.remove_parametrizations(module, "weight")
    torch.testing.assert_close(after, points(), rtol=1e-4, atol=1e-4)


def test_what_is_plain():
    layer = nn.Linear(4, 4)
    assert is_plain(layer, nn.Linear)
    assert not is_plain(layer, nn.Module)
    assert not is_frozen(layer)
    with torch.no_grad():
        assert is_frozen(layer)
    assert is_frozen(layer.requires_grad_(False))
    assert not is_plain(nn.LayerNorm((2, 4)), nn.LayerNorm)
    assert not is_plain(nn.Conv1d(4, 4, 3), nn.Conv1d)
    assert is_plain(nn.Conv1d(4, 4, 1), nn.Conv1d)
    assert not is_plain(nn.Conv1d(4, 4, 1, stride=2), nn.Conv1d)
    assert not is_plain(nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d)
    handle = layer.register_forward_hook(lambda *given: None)
    assert not is_plain(layer, nn.Linear)
    handle.remove()
    assert is_plain(layer, nn.Linear)
