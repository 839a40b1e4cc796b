"""Description of a publication's files, declared by a method or a backbone; readers of files loop over them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# Variants of ScanObjectNN by the names that presets and published files give them.
SCANOBJECTNN_VARIANTS = {
    "scanobjectnn_hardest": "pb_t50_rs",
    "scanobjectnn_objbg": "obj_bg",
    "scanobjectnn_objonly": "obj_only",
}


@dataclass(frozen=True)
class Recipe:
    """Training as one YAML file of a published repository sets it, in our terms.

    Attributes:
        name: DATA, or BACKBONE/DATA where the backbone is not Point-MAE; the preset's name is METHOD/ and this.
        published: Repository and file that the recipe is read from.
        augment: Augmentation of the training clouds, which published code sets, not its YAML file.
        data: "scanobjectnn", "modelnet40" or "few_shot".
        variant: Of ScanObjectNN.
        backbone: Our name of the backbone.
        backbone_options: Fields of the backbone that the file sets.
        method_options: Fields of the method that the file sets.
        num_points: N.
        batch_size: Clouds per step.
        accumulate: Batches per step.
        differences: Where the recipe leaves the file, beside what all recipes leave out.
    """

    name: str
    published: str
    augment: str
    data: str
    variant: str | None = None
    backbone: str = "point_mae"
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    method_options: Mapping[str, Any] = field(default_factory=dict)
    num_points: int = 2048
    epochs: int = 300
    warmup_epochs: int = 10
    lr: float = 5e-4
    weight_decay: float = 0.05
    batch_size: int = 32
    accumulate: int = 1
    clip: float = 10.0
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class YamlModel:
    """A model of a published repository, as the `model:` section of its YAML files describes it.

    Attributes:
        name: `NAME` in the section: the model's class there. Several repositories may use one name.
        keys: Keys of the section beside those that every file has and those that `Publication.options` translates.
        is_shown_by: Tells it from other models of that name by the section; None where the name is enough.
        folder: Name of the folder that the file must stand in, for code that chooses its backbone by the path.
        backbone: Family of the backbone; None for Point-MAE, or for the backbone that declares the model.
        augment: Augmentation of the training clouds in that code ...
        augmented: ... for these kinds of data; all others are scaled and shifted.
        differences: Where our model leaves the file.
    """

    name: str
    keys: tuple[str, ...] = ()
    is_shown_by: Callable[[Mapping[str, Any]], bool] | None = None
    folder: str | None = None
    backbone: str | None = None
    augment: str = "scale_translate"
    augmented: tuple[str, ...] = ("scanobjectnn",)
    differences: tuple[str, ...] = ()

    def fits(self, section: Mapping[str, Any], path: Path) -> bool:
        """Whether a file with this `model:` section describes the model."""
        shown = self.is_shown_by is None or self.is_shown_by(section)
        placed = self.folder is None or path.resolve().parent.name == self.folder
        return section.get("NAME") == self.name and shown and placed

    @property
    def is_special(self) -> bool:
        """Whether it goes before a model that is known by its name alone."""
        return self.is_shown_by is not None or self.folder is not None


@dataclass(frozen=True)
class Publication:
    """The files that the repository of a publication ships; all is empty where there are none.

    Attributes:
        models: What it trains, as its YAML files describe it.
        options: Keys of their `model:` section -> our options, where the value is taken as it is.
        optimizer_parts: What its files may say for `optimizer.part`, the choice of what trains.
        recipes: Its recipes of training, which become presets.
        fixed_defects: What its code does by mistake and this package does not, a clause each; `quirks="published"`
            repeats it.
        markers: Strings that only names of its tensors contain.
        renames: Substitutions that turn our names of tensors into theirs, after the backbone's own.
        copies: Substitutions that turn one of their names into a second one, under which their files hold the same
            tensor again.
        convolutions: Patterns of their names of weights that are linear maps here and convolutions over single places
            there, of shape [C', C, 1].
        unread: Patterns of their names of tensors that no forward reads, and that we have no place for.
        separate_tensors: Tensors that are no part of its weight files, under the names that `from_published` takes.
    """

    models: tuple[YamlModel, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    optimizer_parts: tuple[str, ...] = ()
    recipes: tuple[Recipe, ...] = ()
    fixed_defects: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    convolutions: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    separate_tensors: tuple[str, ...] = ()

    @property
    def plain_names(self) -> tuple[str, ...]:
        """Class names in YAML files that are enough to know a model by."""
        return tuple(model.name for model in self.models if model.is_shown_by is None)


def scanobjectnn_recipes(
    published: str,
    augment: str,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    under: str = "",
    drop_path: float = 0.1,
    **fields: Any,
) -> tuple[Recipe, ...]:
    """Recipes for the variants of ScanObjectNN: 2048 points in 128 groups.

    Args:
        published: Repository and file, with `{}` for the variant as files name it.
        augment: Augmentation of the training clouds.
        changes: Variant -> fields of its recipe that differ from `fields`; also `drop_path`. Without it, or for an
            empty mapping, the variant has `fields` alone; variants that are not named have no recipe. None for all.
        under: What stands before the names, such as "act/".
        drop_path: Of the backbone.
        fields: Further fields of all recipes.
    """
    recipes = []
    for name in SCANOBJECTNN_VARIANTS if changes is None else changes:
        values: dict[str, Any] = {"drop_path": drop_path, **fields, **(changes or {}).get(name, {})}
        recipe = Recipe(
            name=f"{under}{name}",
            published=published.format(name.replace("scanobjectnn", "scan")),
            augment=augment,
            data="scanobjectnn",
            variant=SCANOBJECTNN_VARIANTS[name],
            backbone_options={"num_groups": 128, "drop_path": values.pop("drop_path")},
        )
        recipes.append(replace(recipe, **values))
    return tuple(recipes)


def modelnet_recipe(
    published: str,
    name: str = "modelnet",
    *,
    under: str = "",
    num_groups: int = 64,
    drop_path: float = 0.1,
    num_points: int = 1024,
    **fields: Any,
) -> Recipe:
    """A recipe for ModelNet40, by default of 1024 points in 64 groups, scaled and shifted; or for few clouds of it.

    Args:
        published: Repository and file.
        name: "fewshot" for few clouds, which are trained for half as long.
        under: What stands before the name.
        num_groups: Of the backbone.
        drop_path: Of the backbone.
        num_points: N.
        fields: Further fields of the recipe.
    """
    few = name == "fewshot"
    recipe = Recipe(
        name=f"{under}{name}",
        published=published,
        augment="scale_translate",
        data="few_shot" if few else "modelnet40",
        backbone_options={"num_groups": num_groups, "drop_path": drop_path},
        num_points=num_points,
        epochs=150 if few else 300,
    )
    return replace(recipe, **fields)
