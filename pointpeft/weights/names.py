"""Between our parameter names and those of published files."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger("pointpeft")

SHOWN = 12  # names an error lists before it only counts


@dataclass(frozen=True)
class LoadReport:
    """Result of matching the tensors of a file with those of a model, by our names.

    Attributes:
        loaded: Tensors taken from the file.
        missing: Tensors of the model that the file lacks, as expected.
        ignored: Names in the file that the model has no use for, as expected.
        sha256: Of the file, empty where there was none.
    """

    loaded: frozenset[str]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]
    sha256: str = ""


def renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """`name` after all substitutions, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def strip_prefixes(state: dict[str, Tensor], prefixes: Iterable[str]) -> dict[str, Tensor]:
    """`state` without `base_model.` and the given prefixes before its names."""
    pattern = "|".join(re.escape(prefix) for prefix in ("base_model.", *prefixes))
    return {re.sub(f"^(?:{pattern})+", "", name): tensor for name, tensor in state.items()}


def _fits(given: Tensor, tensor: Tensor) -> bool:
    """Whether a file's tensor has the shape of ours, or that of the same map as a convolution over single places."""
    return given.shape == tensor.shape or given.shape == (*tensor.shape, *[1] * (given.dim() - tensor.dim()))


@torch.no_grad()
def load(
    module: nn.Module,
    state: dict[str, Tensor],
    names: dict[str, str],
    *,
    optional: Iterable[str] = (),
    ignored: Iterable[str] = (),
    what: str = "the file",
) -> LoadReport:
    """Copies a file's tensors into a module; every difference is either explained or an error, before any copy.

    Args:
        module: Whose `state_dict` is filled.
        state: The file's tensors.
        names: Our name -> the file's, for every entry of the module.
        optional: Patterns of our names that the file may lack. Counters of BatchNorm always may.
        ignored: Patterns of the file's names that the module need not have.
        what: The file, for messages.

    Raises:
        ValueError: Unexplained missing or unexpected names, or other shapes.
    """
    target = module.state_dict()
    optional = (*optional, r"\.num_batches_tracked$")
    missing = [ours for ours in target if names[ours] not in state]
    lacking = [names[ours] for ours in missing if not any(re.search(p, ours) for p in optional)]
    known = set(names.values())
    left = [theirs for theirs in state if theirs not in known]
    unexpected = [theirs for theirs in left if not any(re.search(p, theirs) for p in ignored)]
    shapes = [
        f"{names[ours]} {tuple(state[names[ours]].shape)} for {tuple(tensor.shape)}"
        for ours, tensor in target.items()
        if names[ours] in state and not _fits(state[names[ours]], tensor)
    ]
    problems = [
        f"{len(affected)} {problem}: {', '.join(affected[:SHOWN])}{' ...' if len(affected) > SHOWN else ''}"
        for problem, affected in (("missing", lacking), ("unexpected", unexpected), ("of another shape", shapes))
        if affected
    ]
    if problems:
        raise ValueError(f"{what} does not fit the model. {'; '.join(problems)}")
    absent = set(missing)
    for ours, tensor in target.items():
        if ours not in absent:
            tensor.copy_(state[names[ours]].view_as(tensor))
    logger.info(
        "%s: %d tensors loaded, %d missing, %d ignored", what, len(target) - len(missing), len(missing), len(left)
    )
    return LoadReport(frozenset(set(target) - absent), tuple(missing), tuple(left))


def published_names(model: Any) -> dict[str, str]:
    """Our name -> the published one, for every entry of a `PointModel`."""
    rules = (*model.head.published_renames, *model.backbone.published_renames, *model.method.published_renames(model))
    return {name: renamed(name, rules) for name in model.state_dict()}
