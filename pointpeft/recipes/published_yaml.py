"""YAML files of published repositories, read as presets."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pointpeft.backbones import backbone_config, backbone_families, backbone_names, backbone_publications
from pointpeft.backbones.point_mae import PointMAE
from pointpeft.checkpoints.yaml_files import load_yaml
from pointpeft.data.formats.bounds import brief
from pointpeft.methods import method_class, method_names
from pointpeft.methods.selective.full import Full
from pointpeft.recipes.presets import Preset
from pointpeft.weights.publication import YamlModel

# Keys of the `model:` section that every file may have.
MODEL = "NAME trans_dim embed_dim depth drop_path_rate drop_rate cls_dim num_heads group_size num_group encoder_dims"
OTHERWISE = "scale_translate"  # augmentation of data for which published code has no other
INCLUDE = "_base_"


def read_recipe(path: str | Path) -> Preset:
    """The recipe of a published YAML file.

    Args:
        path: The file; its `_base_` includes are looked for below its folder and the folders above, then below the
            working directory.

    Returns:
        The recipe; `differences` tells what it leaves out.

    Raises:
        ValueError: Not such a file, an include that is not there, keys that are not known (all are listed), or a value
            that has no counterpart here.
    """
    path = Path(path)
    try:
        return _recipe(path, _load(path, path))
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error


def _recipe(path: Path, content: dict[str, Any]) -> Preset:
    numbers = "npoints total_bs step_per_update max_epoch grad_norm_clip"
    _known(content, "", f"optimizer scheduler dataset model task {numbers}")
    if content.get("task", "classification") != "classification":
        raise ValueError(f"task must be classification, got {brief(content['task'])}")
    optimizer, scheduler = _section(content, "optimizer"), _section(content, "scheduler")
    _known(optimizer, "optimizer", "type part kwargs")
    _known(scheduler, "scheduler", "type kwargs")
    _one_of(optimizer, "optimizer.type", "type", ("AdamW",))
    allowed = (word for name in method_names() for word in method_class(name).publication.optimizer_parts)
    _one_of(optimizer, "optimizer.part", "part", (None, *allowed))
    _one_of(scheduler, "scheduler.type", "type", ("CosLR",))
    rates, course = _section(optimizer, "kwargs", "optimizer."), _section(scheduler, "kwargs", "scheduler.")
    _known(rates, "optimizer.kwargs", "lr weight_decay")
    _known(course, "scheduler.kwargs", "epochs initial_epochs")
    epochs = _number(content, "max_epoch", int)
    if _number(course, "epochs", int) != epochs:
        raise ValueError(f"scheduler.kwargs.epochs must be max_epoch = {epochs}, got {course['epochs']}")
    data, variant = _data(content)
    model = _section(content, "model")
    family, method, described = _described(model, path)
    own_keys = (*described.keys, *method_class(method).publication.options)
    _known(model, "model", f"{MODEL} {' '.join(own_keys)}")
    if model.get("drop_rate"):
        raise ValueError(f"model.drop_rate must be 0, got {brief(model['drop_rate'])}")
    values = backbone_families()[family].yaml_fields(model)
    backbone, backbone_options = _registered(family, values)
    return Preset(
        name=str(path),
        published=str(path),
        method=method,
        augment=described.augment if data in described.augmented else OTHERWISE,
        data=data,
        variant=variant,
        backbone=backbone,
        backbone_options=backbone_options,
        method_options=method_class(method).yaml_options(model),
        num_points=_number(content, "npoints", int),
        epochs=epochs,
        warmup_epochs=_number(course, "initial_epochs", int),
        lr=_number(rates, "lr", float),
        weight_decay=_number(rates, "weight_decay", float),
        batch_size=_number(content, "total_bs", int),
        accumulate=_number(content, "step_per_update", int, 1),
        clip=_number(content, "grad_norm_clip", float),
        differences=(*described.differences, *backbone_families()[family].yaml_differences(model)),
    )


def _load(path: Path, first: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file with its includes in place; of an include and its neighbours the neighbours win."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.resolve() in above:
        raise ValueError(f"{path} includes itself")
    try:
        content = load_yaml(path)
    except ValueError as error:
        raise ValueError(f"{path} is not YAML of plain values: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a YAML mapping, got {type(content).__name__}")
    return _include(content, first, (*above, path.resolve()))


def _include(section: dict[str, Any], first: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    if INCLUDE in section:
        merged = _load(_find(str(section[INCLUDE]), first), first, above)
    for key, value in section.items():
        if key != INCLUDE:
            merged[key] = _include(value, first, above) if isinstance(value, dict) else value
    return merged


def _find(include: str, first: Path) -> Path:
    """Published includes are relative to the repository's root, which is some folder above the file."""
    places = [folder / include for folder in (*first.resolve().parents, Path.cwd())]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ValueError(f"{first} includes {include}, which is in none of the folders above it; copy it along")
    return file


def _data(content: Mapping[str, Any]) -> tuple[str, str | None]:
    """The kind of data and its variant; paths are given on the command line."""
    dataset = _section(content, "dataset")
    _known(dataset, "dataset", "train val test extra_train")
    train = _section(dataset, "train", "dataset.")
    _known(train, "dataset.train", "NAME ROOT DATA_PATH PC_PATH N_POINTS NUM_CATEGORY USE_NORMALS others")
    _known(train.get("others", {}), "dataset.train.others", "subset bs whole npoints")
    if train.get("USE_NORMALS") not in (None, False, "FALSE"):
        raise ValueError(
            f"dataset.train.USE_NORMALS must be false, got {brief(train['USE_NORMALS'])}: models here see points"
        )
    name = train.get("NAME")
    if name == "ScanObjectNN_hardest":
        return "scanobjectnn", "pb_t50_rs"
    if name == "ScanObjectNN":
        return "scanobjectnn", "obj_only" if str(train.get("ROOT", "")).rstrip("/").endswith("nobg") else "obj_bg"
    datasets = {"ModelNet": "modelnet40", "ModelNetFewShot": "few_shot"}
    if name not in datasets:
        raise ValueError(
            f"dataset.train.NAME must be ScanObjectNN_hardest, ScanObjectNN, {' or '.join(datasets)}, got {brief(name)}"
        )
    return datasets[name], None


def _described(section: Mapping[str, Any], path: Path) -> tuple[str, str, YamlModel]:
    """The model that a `model:` section describes: family of the backbone, method, and what is known of such files.

    Where one name is that of several models, those that other keys or the file's folder show go before that which is
    known by its name alone. A backbone's own publication trains all of it.
    """
    known: list[tuple[str, str, YamlModel]] = [
        (model.backbone or PointMAE.family, method, model)
        for method in method_names()
        for model in method_class(method).publication.models
    ]
    known += [
        (model.backbone or family, Full.name, model)
        for family, publication in backbone_publications().items()
        for model in publication.models
    ]
    names = dict.fromkeys(model.name for _, _, model in known)
    if section.get("NAME") not in names:
        raise ValueError(f"model.NAME must be one of {', '.join(names)}, got {brief(section.get('NAME'))}")
    fitting = [entry for entry in known if entry[2].fits(section, path)]
    if not fitting:
        raise ValueError(f"no model named {section['NAME']} has the keys {', '.join(map(str, section))}")
    return max(fitting, key=lambda entry: entry[2].is_special)  # the first of those that go before


def _registered(family: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered backbone of these sizes, and the fields that files always set or where this one differs."""
    backbone_type = backbone_families()[family]
    sizes = ("width", "depth", "num_heads")
    alike = [name for name in backbone_names() if backbone_config(name).backbone_type is backbone_type]
    fitting = [n for n in alike if all(getattr(backbone_config(n), size) == values[size] for size in sizes)]
    name = fitting[0] if fitting else family
    known = backbone_config(name)
    options = {field: values[field] for field in ("num_groups", "drop_path")}
    others = (f.name for f in fields(known) if f.name in values)
    return name, options | {other: values[other] for other in others if getattr(known, other) != values[other]}


def _section(content: Mapping[str, Any], name: str, above: str = "") -> dict[str, Any]:
    value = content.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{above}{name} must be a mapping, got {brief(value)}; it has {', '.join(map(str, content))}")
    return value


def _known(section: Mapping[str, Any], name: str, names: str) -> None:
    unknown = [str(key) for key in section if key not in names.split()]
    if unknown:
        of = f" of {name}" if name else ""
        raise ValueError(f"unknown keys{of}: {', '.join(unknown)}; known: {', '.join(sorted(set(names.split())))}")


def _one_of(section: Mapping[str, Any], name: str, key: str, values: tuple[Any, ...]) -> None:
    if section.get(key) not in values:
        raise ValueError(f"{name} must be one of {', '.join(map(str, values))}, got {brief(section.get(key))}")


def _number(section: Mapping[str, Any], key: str, number_type: type, default: Any = None) -> Any:
    """A number; YAML takes 5e-4, which has no dot, for text."""
    value = section.get(key, default)
    try:
        number = number_type(value)
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, bool) or (number_type is int and number != float(value)):
        raise ValueError(f"{key} must be {'a whole number' if number_type is int else 'a number'}, got {brief(value)}")
    return number
