"""The recipes that published repositories ship, by name, gathered from the methods and the backbones."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pointpeft.backbones import backbone_publications
from pointpeft.methods import method_class, method_names
from pointpeft.methods.selective.full import Full
from pointpeft.runs.config import FinetuneConfig
from pointpeft.weights.publication import Recipe

# Differences between all presets and the published procedure, and their reasons.
DIFFERENCES = (
    "the epoch is selected on held-out training clouds; published on the test clouds: `--select test-best`",
    "the learning rate's cosine begins after the warm-up; published at epoch 0, with the first two epochs at its floor "
    "and one epoch more in all",
    "an epoch is cut into equal batches; published drops the last, incomplete one",
    "every point may become a centre; published none within 0.032 of the origin: `--set min_sq_norm=1e-3`",
    "the head answers the classes of the data; published few-shot heads keep 40",
)


@dataclass(frozen=True)
class Preset(Recipe):
    """A published recipe with the method that it trains, under a name of its own: METHOD/DATA or METHOD/BACKBONE/DATA.

    Attributes:
        method: Our name of the method.
    """

    method: str = field(kw_only=True)

    @property
    def notes(self) -> tuple[str, ...]:
        """Differences from the publication, beside `DIFFERENCES`; `--set quirks=published` repeats its defects."""
        return (*method_class(self.method).publication.fixed_defects, *self.differences)

    def config(self, **changes: Any) -> FinetuneConfig:
        """The configuration of a run, which records its origin; `changes` overrule the recipe."""
        same = ("method", "augment", "backbone", "num_points", "epochs", "warmup_epochs", "lr", "weight_decay")
        values = {name: getattr(self, name) for name in (*same, "batch_size", "accumulate", "clip")}
        options = (*pairs(self.backbone_options), *pairs(self.method_options))
        known = self.name in presets()
        origin = {"preset": self.name if known else None, "config": None if known else Path(self.published)}
        chosen: dict[str, Any] = {**values, **origin, "set": options, **changes}
        return FinetuneConfig(**chosen)


def pairs(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Options as the command line takes them: NAME=VALUE each."""
    return tuple(
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in options.items()
    )


def presets() -> dict[str, Preset]:
    """All presets by name: those of each method, and those of backbones' own publications, which train all of it."""
    owners = [(name, method_class(name).publication) for name in method_names()]
    owners += [(Full.name, publication) for publication in backbone_publications().values()]
    gathered = [_preset(method, recipe) for method, publication in owners for recipe in publication.recipes]
    return {preset.name: preset for preset in gathered}


def _preset(method: str, recipe: Recipe) -> Preset:
    values = {entry.name: getattr(recipe, entry.name) for entry in fields(recipe)}
    return Preset(method=method, **(values | {"name": f"{method}/{recipe.name}"}))


def find_preset(name: str) -> Preset:
    """A preset by its name.

    Raises:
        ValueError: An unknown name; names the nearest ones.
    """
    known = presets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.4) or list(known)
        raise ValueError(f"unknown preset {name!r}; near it: {', '.join(near)}; `pointpeft presets` prints all")
    return known[name]
