"""Every backbone with every method: no pair is refused."""

import re

import pytest
import torch
from torch.nn.functional import cross_entropy

from pointpeft import create_model, load_adapter, save_adapter
from pointpeft.backbones import backbone_families, backbone_names
from pointpeft.methods import method_class
from tests.methods.tools import every_method, packages

SMALL = {"width": 32, "depth": 2, "num_heads": 2, "num_groups": 16, "group_size": 4, "embed_width": 8, "drop_path": 0.0}
FAMILIES = sorted(backbone_families())
NOT_MERGEABLE = "has nothing that can be folded"


def attach(family, method):
    torch.manual_seed(0)
    return create_model(f"{family}_tiny", method, 3, **SMALL)


def clouds():
    return torch.randn(4, 32, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])


def test_every_family_has_a_published_and_a_tiny_size():
    assert {name for family in FAMILIES for name in (family, f"{family}_tiny")} <= set(backbone_names())


@pytest.mark.parametrize("method", every_method())
@pytest.mark.parametrize("family", FAMILIES)
def test_pair(family, method, tmp_path):
    model = attach(family, method)
    xyz, labels = clouds()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    for _ in range(2):
        logits = model(xyz)
        loss = cross_entropy(logits, labels) + sum(model.method.losses(model, xyz, labels, logits).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)

    save_adapter(model.eval(), tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter")
    with torch.no_grad():
        logits = model(xyz)
        assert torch.equal(logits, again(xyz))

    if method_class(method).mergeable:
        with torch.no_grad():
            merged = model.merge()(xyz)
        assert (merged - logits).abs().max() <= 1e-4 * logits.abs().max()
    else:
        with pytest.raises(ValueError, match=NOT_MERGEABLE):
            model.merge()


IDENTITY_AT_START = ("adaptformer", "dapt", "houlsby", "ia3", "lora", "point_gst", "ssf")
RANDOM_SCALES = {  # drawn around the identity
    "dapt": r"tfts_\w+|(patch|token)_transform",
    "ssf": r"ssf_\w+|(patch|token)_transform",
}


@pytest.mark.parametrize("method", [pytest.param(name, marks=packages(name)) for name in IDENTITY_AT_START])
@pytest.mark.parametrize("family", ["recon", "point_gpt"])
def test_a_method_starts_from_the_backbone_where_residuals_start_from_normalised_tokens(family, method):
    models = [attach(family, name).eval() for name in ("linear", method)]
    weights = {name: weight for name, weight in models[0].backbone.state_dict().items()}
    models[1].backbone.load_state_dict(weights, strict=False)
    for name, parameter in models[1].named_parameters():
        if method in RANDOM_SCALES and re.search(RANDOM_SCALES[method], name):
            parameter.data.fill_(float(name.endswith("gamma")))
    hidden = []
    for model in models:
        tokens, ctx = model.backbone(clouds()[0])
        hidden.append(ctx.split(tokens)[2])
    if method == "dapt":  # its prompts are tokens of their own: the first block alone sees none
        hidden = [first_block(model) for model in models]
    assert (hidden[0] - hidden[1]).abs().max() <= 1e-5


def first_block(model):
    """Patch tokens after the first block."""
    return model.backbone(clouds()[0], taps=(0,))[1].hidden[0]


PUBLISHED = [  # parameters with the head for 15 classes
    ("point_mae", {}, 22_093_327),
    ("act", {}, 22_093_327),
    ("point_bert", {}, 22_059_535),
    ("recon", {}, 43_571_215),
    ("recon_plain", {}, 22_093_327),
    ("point_gpt", {"generator_depth": 4}, 29_232_335),
    ("point_gpt_base", {"generator_depth": 4}, 120_461_263),
    ("point_gpt_large", {"generator_depth": 4}, 360_457_679),
    ("pcp_mae", {}, 22_338_959),
    ("point_femae", {}, 27_428_623),
]


@pytest.mark.parametrize(("name", "options", "count"), PUBLISHED)
def test_published_parameter_counts(name, options, count):
    assert create_model(name, "full", 15, device="meta", **options).trainable_parameters() == count


@pytest.mark.parametrize(
    ("method", "options", "count"),
    [
        ("dapt", {"parts": ("cls", "token_max")}, 4_238_119),
        ("point_gst", {}, 2_429_647),
        ("most", {"quirks": "published", "generator_depth": 4}, 8_142_095),
    ],
)
def test_published_counts_on_the_large_point_gpt(method, options, count):
    model = create_model("point_gpt_large", method, 15, device="meta", **options)
    assert model.trainable_parameters() == count


DENSE = {**SMALL, "depth": 3}


@pytest.mark.parametrize("method", every_method())
@pytest.mark.parametrize("family", FAMILIES)
def test_pair_for_points(family, method, tmp_path):
    torch.manual_seed(0)
    model = create_model(f"{family}_tiny", method, 5, task="part_segmentation", num_categories=3, **DENSE)
    xyz, category = clouds()
    labels = torch.randint(5, xyz.shape[:2], generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    for _ in range(2):
        logits = model(xyz, category=category)
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss = loss + sum(model.method.losses(model, xyz, labels, logits, category=category).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    if method != "linear":
        own = [p for name, p in model.named_parameters() if p.requires_grad and name.startswith("backbone.")]
        assert any(p.grad is not None and p.grad.any() for p in own)
    save_adapter(model.eval(), tmp_path / "adapter")
    with torch.no_grad():
        logits = model(xyz, category=category)
        assert torch.equal(load_adapter(tmp_path / "adapter")(xyz, category=category), logits)
        if method_class(method).mergeable:
            assert (model.merge()(xyz, category=category) - logits).abs().max() <= 1e-4 * logits.abs().max()
