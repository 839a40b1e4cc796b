"""From names and options to a model: the one place that knows backbones, methods and weights together."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from pointpeft.backbones import backbone_config
from pointpeft.methods import Method, create_method, method_class
from pointpeft.model import Origin, PointModel
from pointpeft.weights.pretrained import load_backbone


def create_model(
    backbone: str,
    method: str | Method = "dapt",
    num_classes: int | None = None,
    checkpoint: str | Path | None = None,
    *,
    task: str = "classification",
    num_categories: int = 0,
    classifier: str = "mlp",
    num_support: int = 0,
    up_axis: str | None = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> PointModel:
    """A backbone with a method attached.

    Args:
        backbone: A name from `pointpeft.backbones.backbone_names()`.
        method: A name from `pointpeft.methods.method_names()`, or a `Method`.
        num_classes: Number of logits.
        checkpoint: Pre-trained weights of the backbone: a .pth or .safetensors file, or the name of one that the
            package ships. None for fresh ones.
        task: classification of clouds; part_segmentation or semantic_segmentation, of their points.
        num_categories: Categories in part segmentation, whose index the call takes as `category`; 0 for none.
        classifier: What classifies clouds: the published "mlp", or "kernel", a `KernelHead` that `solve_kernel_head`
            fills.
        num_support: Clouds that a kernel head remembers.
        up_axis: The axis that points up in the clouds of a classifier, which turns them to the y up of published
            pre-trainings; None leaves them as they are.
        device: Where the weights live; "meta" for no weights at all.
        dtype: Of the weights.
        options: Fields of the backbone's configuration and of the method, by name.

    Returns:
        The model in training mode.

    Raises:
        ValueError: An unknown name or option (the message lists the known ones), a value out of range, or a checkpoint
            that does not fit.

    Example:
        >>> model = create_model("point_mae_tiny", "dapt", 10, rank=16)
        >>> model(torch.rand(2, 1024, 3)).shape
        torch.Size([2, 10])
    """
    config = backbone_config(backbone)
    backbone_fields = {f.name for f in fields(config)}
    cls = type(method) if isinstance(method, Method) else method_class(method)
    method_fields = {f.name for f in fields(cls)}
    for key in options:
        if key not in backbone_fields | method_fields:
            known = f"backbone {', '.join(sorted(backbone_fields))}; method {', '.join(sorted(method_fields))}"
            raise ValueError(f"unknown option {key!r} for {backbone!r} with {cls.name!r}; known: {known}")
    if isinstance(method, Method):
        method_options = sorted(method_fields & set(options))
        if method_options:
            raise ValueError(f"set {', '.join(method_options)} on the method object itself, not as an option beside it")
    else:
        method = create_method(method, **{key: options[key] for key in options if key in method_fields})
    config = backbone_config(backbone, **{key: options[key] for key in options if key in backbone_fields})
    built = config.build(device=device, dtype=dtype)
    source = None if checkpoint is None else load_backbone(built, checkpoint)
    # A method takes the loaded parameters over as they are, perhaps under another name: they are known by identity.
    loaded = {id(p) for name, p in built.named_parameters() if source is not None and name in source.loaded}
    model = PointModel(backbone, built, method, num_classes, task, num_categories, classifier, num_support, up_axis)  # type: ignore[arg-type]
    if source is not None:
        names = frozenset(name for name, p in model.named_parameters() if id(p) in loaded)
        model.origin = Origin(str(checkpoint), source.sha256, names)
    return model


def create_from_config(config: dict[str, Any], checkpoint: str | Path | None = None, **factory: Any) -> PointModel:
    """The model that `PointModel.config` describes, with fresh weights around the checkpoint's."""
    method = create_method(config["method"]["name"], **config["method"]["fields"])
    name, values = config["backbone"]["name"], config["backbone"]["fields"]
    # Older adapters classify by the published head.
    names = ("task", "num_categories", "classifier", "num_support", "up_axis")
    kinds = {key: config[key] for key in names if key in config}
    return create_model(name, method, config["num_classes"], checkpoint, **kinds, **factory, **values)
