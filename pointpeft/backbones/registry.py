"""Backbones by name: each registered function gives the configuration that the name stands for."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, ClassVar, Protocol, TypeVar

from torch import nn

from pointpeft.weights.publication import Publication


class BackboneConfig(Protocol):
    """A frozen dataclass of a backbone's fields that can build it."""

    backbone_type: ClassVar[type]

    def build(self, *, device: Any = None, dtype: Any = None) -> nn.Module:
        """The backbone with fresh weights."""
        ...


_BACKBONES: dict[str, Callable[[], BackboneConfig]] = {}
F = TypeVar("F", bound=Callable[[], Any])


def register_backbone(function: F) -> F:
    """Registers a function without arguments, under its own name, that returns a `BackboneConfig`."""
    if function.__name__ in _BACKBONES:
        raise ValueError(f"a backbone named {function.__name__!r} is registered already")
    _BACKBONES[function.__name__] = function
    return function


def backbone_names() -> list[str]:
    """Names of all registered backbones."""
    return sorted(_BACKBONES)


def backbone_config(name: str, **overrides: Any) -> Any:
    """The configuration a name stands for, with some fields replaced.

    Raises:
        ValueError: An unknown name or field; the message lists the known ones.
    """
    if name not in _BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; known: {', '.join(backbone_names())}")
    config = _BACKBONES[name]()
    known = [f.name for f in fields(config)]  # type: ignore[arg-type]
    for key in overrides:
        if key not in known:
            raise ValueError(f"unknown option {key!r} of backbone {name!r}; known: {', '.join(known)}")
    return replace(config, **overrides)  # type: ignore[type-var]


def backbone_families() -> dict[str, Any]:
    """The registered backbone classes by the name of their published size."""
    types = [function().backbone_type for function in _BACKBONES.values()]  # type: ignore[attr-defined]
    return {backbone.family: backbone for backbone in types}


def backbone_publications() -> dict[str, Publication]:
    """Publications of backbones by family, of the classes that set `publication` themselves."""
    declared = {family: vars(backbone).get("publication") for family, backbone in sorted(backbone_families().items())}
    return {family: publication for family, publication in declared.items() if publication is not None}


def create_backbone(name: str, *, device: Any = None, dtype: Any = None, **overrides: Any) -> Any:
    """A registered backbone with fresh weights; `overrides` replace fields of its configuration."""
    return backbone_config(name, **overrides).build(device=device, dtype=dtype)
