"""Published checkpoints: recognised by their names, read into our models and written again."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pointpeft.backbones import backbone_config, backbone_families
from pointpeft.backbones.patch_embed import PatchEmbed
from pointpeft.backbones.point_mae import PointMAE
from pointpeft.create import create_model
from pointpeft.files import tensors_of, write_atomically
from pointpeft.methods import Method, create_method, method_class, method_names
from pointpeft.methods.selective.full import Full
from pointpeft.model import PointModel
from pointpeft.weights.names import LoadReport, load, logger, published_names, strip_prefixes

# Every backbone here starts with this tokenizer: what lacks it is not one of ours.
TOKENIZER = "encoder.first_conv.0.weight"
# ACT and IDPT end the names of their dense heads' parts so, for a filter by name that finds what trains.
SUFFIX = r"^(label_conv|propagation_0|convs\d|bns\d)_cls\."
# Tensors of a pre-training that a dense task does not read.
UNREAD_PREFIX = (r"^(cls_token|cls_pos)$",)


def infer_family(state: dict[str, Tensor], name: str | None = None) -> tuple[str, str]:
    """Which backbone and which method a published state dict belongs to.

    Args:
        state: Tensors by published name; the prefixes of a pre-training may tell backbones of one network apart.
        name: Class name in the published YAML file; it decides the method where the tensors show none, as in a
            pre-training.

    Returns:
        Family of the backbone, and name of the method.

    Raises:
        ValueError: None or several fit; the message says what was seen.
    """
    sample = f"it has {len(state)} tensors such as {', '.join(list(state)[:4])}"
    plain = _without_prefixes(state)
    if TOKENIZER not in plain:
        raise ValueError(f"unknown layout: no {TOKENIZER}; {sample}")
    shown = {name: family.shown_by(state) or family.shown_by(plain) for name, family in backbone_families().items()}
    backbones = [family for family, marker in shown.items() if marker]
    if len(backbones) > 1:
        raise ValueError(f"ambiguous backbone: {', '.join(f'{b} by {shown[b]}' for b in backbones)}; name the family")
    backbone = backbones[0] if backbones else PointMAE.family
    if not backbones and "blocks.blocks.0.attn.qkv.weight" not in plain:
        raise ValueError(
            f"unknown layout: no blocks.blocks.0.attn.qkv.weight and no sign of another backbone; {sample}"
        )
    publications = {method: method_class(method).publication for method in method_names()}
    shown = {method: _shown(publication.markers, state) for method, publication in publications.items()}
    methods = [method for method, marker in shown.items() if marker]
    if len(methods) > 1:
        raise ValueError(f"ambiguous method: {', '.join(f'{m} by {shown[m]}' for m in methods)}; name the family")
    if not methods:
        methods = [method for method, known in publications.items() if name in known.plain_names] or [Full.name]
        if len(methods) > 1:
            raise ValueError(f"ambiguous method: {name!r} is the class name of {', '.join(methods)}; name the family")
    return backbone, methods[0]


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefixes = {prefix for family in backbone_families().values() for prefix in family.published_prefixes}
    return strip_prefixes(state, sorted(prefixes, key=len, reverse=True))


def _shown(markers: tuple[str, ...], state: dict[str, Tensor]) -> str | None:
    return next((marker for marker in markers if any(marker in key for key in state)), None)


def parse_family(family: str) -> tuple[str | None, str | None]:
    """A backbone, a method, or both as "backbone+method".

    Raises:
        ValueError: A part is neither.
    """
    backbone = method = None
    for word in family.split("+"):
        if word in backbone_families():
            backbone = word
        elif word in method_names():
            method = word
        else:
            known = ", ".join([*sorted(backbone_families()), *method_names()])
            raise ValueError(f"family must be a backbone, a method or backbone+method of {known}, got {family!r}")
    return backbone, method


def from_published(
    config: dict[str, Any], state_dict: dict[str, Any], family: str | None = None, **extra: Any
) -> PointModel:
    """A model with the logits of a published one.

    Args:
        config: The `model:` section of its YAML file.
        state_dict: Its tensors by their published names, or the whole content of its file. A pre-training's will do:
            then what adaptation adds is fresh.
        family: Such as "dapt", "point_mae" or "point_mae+dapt"; None infers it from the names, and logs it.
        extra: Options of the backbone or the method that overrule the file's, and tensors that published files of
            the method lack (`Publication.separate_tensors`). `task` and `num_categories`, which files of dense tasks
            show themselves, for a pre-training.

    Returns:
        The model in training mode; `load_report` tells what was missing and ignored.

    Raises:
        ValueError: An unknown or ambiguous layout, a missing or unknown option, or names and shapes that do not fit.
    """
    raw = tensors_of(state_dict, "state_dict")
    state = _without_prefixes(raw)
    backbone, method = parse_family(family) if family is not None else (None, None)
    if backbone is None or method is None:
        inferred = infer_family(raw, config.get("NAME"))
        backbone, method = backbone or inferred[0], method or inferred[1]
    logger.info("published checkpoint: backbone %s, method %s", backbone, method)
    if "cls_dim" not in config:
        raise ValueError(f"config must have cls_dim, got {sorted(config)}")
    separate = {key: extra.pop(key) for key in method_class(method).publication.separate_tensors if key in extra}
    state |= separate
    state = {_shortened(key): tensor for key, tensor in state.items()}
    task = _dense_task(state)
    model = _build(backbone, method_class(method), config | separate, extra, task)
    names = {ours: _shortened(theirs) for ours, theirs in published_names(model).items()}
    backbone_type = backbone_families()[backbone]
    for copy, original in _copies(model, names).items():
        if copy in state and original in state and not torch.equal(state[original], state[copy]):
            raise ValueError(f"{copy} must equal {original}, of which it is a copy in published files")
        state.pop(copy, None)
    fresh = _fresh(model, state, names)
    report = load(
        model,
        state,
        names,
        optional=fresh,
        ignored=(
            *(backbone_type.ignored_keys if fresh else ()),
            *(UNREAD_PREFIX if model.dense else ()),
            *_unread(model, names),
        ),
        what=f"published {backbone} with {method}",
    )
    model.load_report = report
    if fresh:
        model.method.after_load(model)
    for module in model.backbone.modules():
        if isinstance(module, PatchEmbed):
            module.published_order = True
    return model


def _shortened(name: str) -> str:
    return re.sub(SUFFIX, r"\1.", name)


def _dense_task(state: dict[str, Tensor]) -> dict[str, Any]:
    """The task that a file's tensors show: the head of part segmentation has a branch for categories."""
    if "propagation_0.mlp_convs.0.weight" not in state:
        return {}
    if "dgcnn_pro_1.layer1.0.weight" in state:  # the last propagation reads the category, the place and C channels
        categories = state["propagation_0.mlp_convs.0.weight"].shape[1] - 3 - state["conv1.weight"].shape[1]
        return {"task": "part_segmentation" if categories else "semantic_segmentation", "num_categories": categories}
    if "label_conv.0.weight" not in state:
        return {"task": "semantic_segmentation"}
    return {"task": "part_segmentation", "num_categories": state["label_conv.0.weight"].shape[1]}


def _build(
    backbone: str, method: type[Method], config: dict[str, Any], extra: dict[str, Any], task: dict[str, Any]
) -> PointModel:
    extra = dict(extra)
    task |= {key: extra.pop(key) for key in ("task", "num_categories") if key in extra}
    values = backbone_families()[backbone].published_config(config)
    options = method.published_config(config)
    backbone_fields = {f.name for f in fields(backbone_config(backbone))}
    method_fields = {f.name for f in fields(method)}
    for key, value in extra.items():
        if key in backbone_fields:
            values[key] = value
        elif key in method_fields:
            options[key] = value
        else:
            raise ValueError(f"unknown option {key!r}; known: {', '.join(sorted(backbone_fields | method_fields))}")
    return create_model(backbone, create_method(method.name, **options), int(config["cls_dim"]), **task, **values)


def _fresh(model: PointModel, state: dict[str, Tensor], names: dict[str, str]) -> tuple[str, ...]:
    """Patterns of what a pre-training lacks: the head and what the method added; none for a fine-tuned file."""
    if any(names[ours] in state for ours in names if ours.startswith("head.")):
        return ()
    plain = create_model(model.backbone_name, Full(), 1, device="meta", **vars(model.backbone.config)).state_dict()
    added = [f"^{re.escape(ours)}$" for ours in names if ours not in plain]
    return (*model.backbone.optional_keys, r"^head\.", *added)


def _unread(model: PointModel, names: dict[str, str]) -> tuple[str, ...]:
    """Patterns of published names that no forward reads and that the model has no place for."""
    places = set(names.values())
    left = tuple(key for key in model.backbone.unread_keys if not any(re.search(key, name) for name in places))
    return (*left, *model.method.publication.unread)


def _copies(model: PointModel, names: dict[str, str]) -> dict[str, str]:
    """Second published names of tensors that published files hold twice -> their first ones."""
    pairs = (*model.backbone.published_copies, *model.method.publication.copies)
    copies = {re.sub(p, r, theirs): theirs for theirs in names.values() for p, r in pairs if re.search(p, theirs)}
    first_names = set(names.values())
    return {copy: original for copy, original in copies.items() if copy not in first_names}


def to_published(model: PointModel) -> dict[str, Tensor]:
    """The model's tensors under their published names.

    Raises:
        ValueError: The model is merged, so that published code has no place for its tensors.
    """
    if model.merged:
        raise ValueError("a merged model has no published layout; write it before merge()")
    names = published_names(model)
    state = {names[ours]: tensor.detach().cpu() for ours, tensor in model.state_dict().items()}
    for theirs in state:
        if any(re.search(pattern, theirs) for pattern in model.method.publication.convolutions):
            state[theirs] = state[theirs].unsqueeze(-1)
    state |= {copy: state[original] for copy, original in _copies(model, names).items()}
    return state


def save_published(model: PointModel, path: str | Path) -> None:
    """Writes a .pth file as published code reads it: a dict with the tensors under `base_model`."""
    state = to_published(model)
    write_atomically(Path(path), lambda temporary: torch.save({"base_model": state}, temporary))


__all__ = ["LoadReport", "from_published", "infer_family", "save_published", "to_published"]
