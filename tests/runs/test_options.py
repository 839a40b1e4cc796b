from dataclasses import dataclass
from typing import Literal

import pytest

from pointpeft.runs.options import parse_options


@dataclass(frozen=True)
class Method:
    rank: int = 8
    scale: float | None = None
    fused: bool = True
    parts: tuple[str, ...] = ("cls",)
    mode: Literal["sound", "published"] = "sound"


@dataclass(frozen=True)
class Backbone:
    group_size: int = 32
    name: str = ""


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("rank=32", 32),
        ("scale=0.5", 0.5),
        ("scale=1", 1.0),
        ("scale=none", None),
        ("fused=no", False),
        ("fused=TRUE", True),
        ("parts=cls,patch_max", ("cls", "patch_max")),
        ("mode=published", "published"),
        ("group-size=16", 16),
        ("name=a=b", "a=b"),
    ],
)
def test_values_take_the_type_of_their_field(pair, value):
    (parsed,) = parse_options([pair], [Backbone, Method]).values()
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("pair", ["rank=3.5", "rank=many", "fused=2", "mode=other", "scale=x", "group_size="])
def test_a_value_of_another_type_is_an_error_that_names_it(pair):
    name = pair.split("=")[0]
    with pytest.raises(ValueError, match=f"option {name} must be"):
        parse_options([pair], [Backbone, Method])


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown option 'rnk'; known: fused, group_size, mode, name, parts, rank"):
        parse_options(["rnk=3"], [Backbone, Method])
    with pytest.raises(ValueError, match="NAME=VALUE"):
        parse_options(["rank"], [Backbone, Method])


def test_the_last_of_a_repeated_name_counts():
    assert parse_options(["rank=1", "rank=2"], [Method]) == {"rank": 2}
