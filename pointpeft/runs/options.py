"""NAME=VALUE options, typed by the dataclass fields of a method or a backbone."""

import json
import types
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def parse_options(pairs: Sequence[str], classes: Sequence[type]) -> dict[str, Any]:
    """Turns `rank=32` into {"rank": 32}.

    Args:
        pairs: NAME=VALUE each; of a repeated name the last one counts.
        classes: Dataclasses whose fields are the known names and types.

    Raises:
        ValueError: Not of that form, an unknown name (lists the known ones), or a value of another type.
    """
    types_of: dict[str, Any] = {}
    for cls in classes:
        hints = get_type_hints(cls)
        types_of |= {field.name: hints[field.name] for field in fields(cls) if field.init}
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ValueError(f"an option is NAME=VALUE, got {pair!r}; known names: {', '.join(sorted(types_of))}")
        if name not in types_of:
            raise ValueError(f"unknown option {name!r}; known: {', '.join(sorted(types_of))}")
        options[name] = parse_value(name, text.strip(), types_of[name])
    return options


def parse_value(name: str, text: str, annotation: Any) -> Any:
    """One value from its text by its type: bool, int, float, str, None, a Literal, a union, a tuple or list of them.

    Raises:
        ValueError: The text is no such value.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for member in sorted(inner, key=lambda m: m is str):  # str takes any text, so it is tried last
            try:
                return parse_value(name, text, member)
            except ValueError:
                continue
    elif annotation is type(None):
        if text.lower() in ("none", "null"):
            return None
    elif origin is Literal:
        for choice in inner:
            if text == str(choice):
                return choice
    elif origin in (tuple, list):
        texts = [word.strip() for word in text.strip("()[]").split(",") if word.strip()]
        variadic = origin is list or (len(inner) == 2 and inner[1] is Ellipsis)
        if variadic or len(texts) == len(inner):
            parsed = [parse_value(name, t, inner[0] if variadic else inner[i]) for i, t in enumerate(texts)]
            return origin(parsed)
    elif origin is dict:
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = None
        if isinstance(value, dict):
            return value
    elif annotation is bool:
        if text.lower() in ("true", "1", "yes", "on", "false", "0", "no", "off"):
            return text.lower() in ("true", "1", "yes", "on")
    elif annotation in (int, float):
        try:
            return annotation(text)
        except ValueError:
            pass
    elif annotation is str or annotation is Any:
        return text
    shown = getattr(annotation, "__name__", str(annotation)) if not inner else str(annotation).replace("typing.", "")
    raise ValueError(f"option {name} must be {shown}, got {text!r}")
