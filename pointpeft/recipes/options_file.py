"""Files of a run's options: YAML with the names of the command line, and the `config.json` of a run."""

import difflib
import json
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from pointpeft.recipes.presets import find_preset
from pointpeft.runs.config import FinetuneConfig

COMMAND = "finetune"
PUBLISHED = "model"  # the section that every published file has
LEFT_OUT = ("command", "output", "resume")  # of the run that a file is from, not of one that repeats it


def read_options(path: str | Path) -> FinetuneConfig | None:
    """The configuration that a file of our own options holds.

    Args:
        path: A YAML or JSON mapping whose keys are fields of `FinetuneConfig`; those that are missing have their
            defaults, or what the preset sets that the file names. A run's `config.json` is such a file: its output
            folder is left out.

    Returns:
        The configuration; None for a published file, which has sections instead.

    Raises:
        ValueError: Not such a mapping, an unknown key (the nearest one is named), or a value of another type.
    """
    path = Path(path)
    content = _mapping(path)
    if PUBLISHED in content:
        return None
    command = content.get("command", COMMAND)
    if command != COMMAND:
        raise ValueError(f"{path} holds options of `{command}`; a file of `{COMMAND}` is needed")
    hints = typing.get_type_hints(FinetuneConfig)
    names = [field.name for field in fields(FinetuneConfig)]
    values: dict[str, Any] = {}
    for key, value in FinetuneConfig.upgraded(dict(content)).items():
        name = str(key).replace("-", "_")
        if name in LEFT_OUT:
            continue
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
            raise ValueError(f"{path}: unknown key {key}; {hint}")
        try:
            values[name] = _converted(value, hints[name])
        except (TypeError, ValueError):
            raise ValueError(f"{path}: {key} must be {_described(hints[name])}, got {reprlib.repr(value)}") from None
    if values.get("preset") is not None and not values.get("set"):
        values.pop("set", None)
        return replace(find_preset(values["preset"]).config(), **values)
    return FinetuneConfig(**values)


def _mapping(path: Path) -> Mapping[Any, Any]:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        expected_format = "JSON" if path.suffix.lower() == ".json" else "YAML of plain values"
        raise ValueError(f"{path} is not {expected_format}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of options, got {type(content).__name__}")
    return content


def _converted(value: Any, hint: Any) -> Any:
    """`value` as the type of a field; ValueError or TypeError where it is not of that type."""
    options = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (hint,) = (option for option in options if option is not type(None))
        return _converted(value, hint)
    if origin is typing.Literal:
        if value not in options:
            raise ValueError
        return value
    if origin is tuple:
        if isinstance(value, dict):
            return tuple(f"{name}={','.join(map(str, v)) if isinstance(v, list) else v}" for name, v in value.items())
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise TypeError
        return tuple(value)
    if isinstance(value, bool) is not (hint is bool):
        raise TypeError
    if hint is float and isinstance(value, str):  # YAML takes 5e-4, which has no dot, for text
        return float(value)
    expected = {float: (int, float), Path: (str,)}.get(hint, (hint,))
    if not isinstance(value, expected):
        raise TypeError
    return hint(value)


def _described(hint: Any) -> str:
    options = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if option is type(None) else _described(option) for option in options)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, options))}"
    if origin is tuple:
        return "a list of NAME=VALUE, or a mapping"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}[hint]
