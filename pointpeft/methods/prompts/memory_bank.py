"""Point-PEFT's memory bank: features of clouds by the frozen backbone, built, given to a model, kept in a file."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pointpeft.backbones.context import Context
from pointpeft.files import require_header
from pointpeft.model import PointModel

TENSOR = "memory_bank"  # its name in a file
SHA256 = "base_model_sha256"  # of the pre-training, in the file's metadata


@torch.no_grad()
def build_memory_bank(model: PointModel, clouds: Iterable[Tensor]) -> Tensor:
    """Features of clouds by the frozen backbone, one unit column each.

    Args:
        model: Adapted by Point-PEFT, without published quirks.
        clouds: Batches of coordinates, such as a loader without its labels. [B, N, 3] each

    Returns:
        The bank for `set_memory_bank`. [C, M]

    Raises:
        ValueError: Another method, published quirks, or no clouds.
    """
    prior = _prior(model)
    if prior.method.published:
        raise ValueError(
            'the model must have quirks="none", since the published mode has no frozen backbone of its own'
        )
    backbone, training = model.backbone, model.training
    model.eval()
    features = []
    try:
        for xyz in clouds:
            xyz = model.turned(xyz)
            patches, centers = backbone.group(xyz)
            ctx = Context(xyz, centers)
            x = backbone.embed(ctx, patches)
            features.append(F.normalize(prior.frozen_feature(ctx.split(x)[2], ctx.patch_pos), dim=-1))
    finally:
        model.train(training)
    if not features:
        raise ValueError("clouds must hold at least one batch")
    return torch.cat(features).T.contiguous()


def set_memory_bank(model: PointModel, bank: Tensor) -> None:
    """Gives the model its memory bank, of any number of columns.

    Raises:
        ValueError: Another method, or a wrong shape.
    """
    prior = _prior(model)
    if bank.dim() != 2 or bank.shape[0] != prior.config.width or not bank.is_floating_point():
        raise ValueError(f"bank must be floating, ({prior.config.width}, M), got {bank.dtype} {tuple(bank.shape)}")
    model.method = prior.method = replace(prior.method, bank_size=bank.shape[1])
    prior.memory_bank = bank.detach().clone().to(prior.memory_bank)


def load_memory_bank(path: Path, model: PointModel) -> Tensor:
    """The bank in a file that `pointpeft memory-bank` wrote. [C, M]

    Raises:
        ValueError: There is none, or it was made with other weights than the model's.
    """
    if not path.is_file():
        raise ValueError(f"no memory bank {path}; make one with: pointpeft memory-bank DATA --output {path}")
    require_header(path)
    try:
        with safe_open(path, "pt") as file:
            made_with = (file.metadata() or {}).get(SHA256)
            if TENSOR not in file.keys():
                raise ValueError(f"{path} is no memory bank: it has no tensor {TENSOR}")
            bank = file.get_tensor(TENSOR)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    pretraining = None if model.origin is None else model.origin.sha256
    if made_with is not None and made_with != pretraining:
        raise ValueError(
            f"the memory bank {path} was made with another pre-training (sha256 {made_with[:16]}...) than the model's "
            f"({'none' if pretraining is None else pretraining[:16] + '...'})"
        )
    return bank


def _prior(model: PointModel) -> Any:
    """The `PointPrior` that Point-PEFT put into the backbone; that class stands above this file."""
    if model.method.name != "point_peft":
        raise ValueError(f"the model must be adapted by 'point_peft', got {model.method.name!r}")
    return model.backbone.prior
