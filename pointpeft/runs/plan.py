"""From the names and options of a configuration to a model."""

from dataclasses import fields
from typing import Any

from pointpeft.backbones import backbone_config
from pointpeft.create import create_model
from pointpeft.methods import method_class
from pointpeft.methods.selective.linear import Linear
from pointpeft.model import PointModel
from pointpeft.runs.config import FinetuneConfig, PretrainConfig
from pointpeft.runs.options import parse_options
from pointpeft.weights.pretrained import pretrained_names

FRESH = "none"  # the checkpoint of who wants random weights


def backbone_options(config: PretrainConfig) -> dict[str, Any]:
    """The typed options of a pre-training."""
    return parse_options(config.set, [type(backbone_config(config.backbone))])


def build(config: FinetuneConfig, outputs: dict[str, Any]) -> PointModel:
    """The model that a configuration asks for.

    Args:
        config: Of the run.
        outputs: What the task tells `create_model`: num_classes, and for a dense task its name and categories.

    Raises:
        ValueError: An unknown name or option, or a checkpoint that is not there.
    """
    options = parse_options(config.set, [type(backbone_config(config.backbone)), method_class(config.method)])
    return create_model(config.backbone, config.method, checkpoint=_checkpoint(config), **outputs, **options)


def build_probe(config: FinetuneConfig, num_classes: int) -> PointModel:
    """The same backbone with the same weights, of which the head alone trains."""
    backbone_type = type(backbone_config(config.backbone))
    known = {field.name for field in fields(backbone_type)}
    options = parse_options(config.set, [backbone_type, method_class(config.method)])
    options = {name: value for name, value in options.items() if name in known}
    return create_model(config.backbone, Linear(tokens=False), num_classes, _checkpoint(config), **options)


def _checkpoint(config: FinetuneConfig) -> str | None:
    if config.checkpoint == FRESH:
        return None
    if config.checkpoint is not None:
        return config.checkpoint
    shipped = pretrained_names()
    if config.backbone not in shipped:
        raise ValueError(
            f"no pre-training of {config.backbone} is shipped (shipped: {', '.join(shipped) or 'none'}); "
            f"give --checkpoint FILE, make one with `pointpeft pretrain`, "
            f"or start from random weights: --checkpoint {FRESH}"
        )
    return config.backbone
