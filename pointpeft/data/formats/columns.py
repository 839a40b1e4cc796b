"""Names of columns, fields and arrays: which of them hold the coordinates x, y and z."""

import re
from collections.abc import Sequence

from pointpeft.data.dataset import DataError

_UNIT = r"(?:m|mm|cm|dm|km|ft|feet|in|inch|inches|met(?:er|re)s?|us[-_ ]?ft)"
_BRACKETS = re.compile(r"\[[^\]]*\]|\([^)]*\)|\{[^}]*\}|<[^>]*>")
# A name is what stands before and behind its axis: x, x_coord, pos.x, Points:0, POINT_X.
_AFFIXES = ("", "p", "pt", "pnt", "point", "points", "pos", "position", "coord", "coords", "coordinate", "coordinates",
            "loc", "location", "vertex", "vert", "center", "centre", "xyz", "utm", "map", "world", "global", "local",
            "scan", "lidar", "cartesian", "cart", "val", "value", "axis", "koordinate",
            "field")  # fmt: skip
_AXES = (("x", "y", "z"), ("0", "1", "2"))
_EASTING = ("easting", "eastings", "east", "e", "x", "xeasting", "eastingx", "rechtswert")
_NORTHING = ("northing", "northings", "north", "n", "y", "ynorthing", "northingy", "hochwert")
_HEIGHT = ("height", "elevation", "altitude", "elev", "alt", "h", "z", "hgt", "up", "u", "level", "zheight", "heightz",
           "elevationz", "zelevation", "elevationm", "ellipsoidheight", "ellipsoidalheight", "orthoheight")  # fmt: skip
_DEGREES = re.compile(r"^(lat|lon|long|lng|latitude|longitude|latdeg|londeg)\w*$")
# Columns that are no coordinates, however the others are called.
_OTHERS = re.compile(
    r"^(\w*time\w*|t|date|id|\w+id|idx|index|no|nr|num|number|row|count|label\w*|class\w*|categor\w+|segment\w*|instance\w*"
    r"|r|g|b|rf|gf|bf|red|green|blue|alpha|rgba?|colou?r\w*|intensity\w*|i|refl\w*|amplitude|return\w*|numret\w*|n[xyz]|normal\w*"
    r"|ring|frame|scalar\w*|gps\w*|range|distance|dist|angle|scanangle\w*|azimuth|theta|phi|rho|polar\w*|curvature|confidence|weight|name)$"
)


def coordinate_columns(names: Sequence[str]) -> tuple[int, int, int] | None:
    """Finds the columns of x, y and z by their names.

    Names may be in any case and spelling that is common: `X`, `"x"`, `x_coord`, `pos.x`, `Points:0`, `X [m]`,
    `Easting Northing Height`.

    Args:
        names: What the columns are called, in their order.

    Returns:
        Positions of x, y and z; None where the names say nothing of coordinates.

    Raises:
        DataError: They name a part of the coordinates, angles of the globe, or one axis twice.
    """
    plain = [plain_name(name) for name in names]
    for axes in _AXES:
        for affix in _AFFIXES if axes == _AXES[0] else _AFFIXES[1:]:
            for spelt in ([affix + axis for axis in axes], [axis + affix for axis in axes]):
                if set(spelt) <= set(plain):
                    return _positions(plain, spelt)
    mixed = [[name for name in plain if _stem(name) == axis] for axis in "xyz"]
    if all(len(spelt) == 1 for spelt in mixed):  # x_utm, y_utm, z
        return _positions(plain, [spelt[0] for spelt in mixed])
    families = (_EASTING, _NORTHING, _HEIGHT)
    matches = [[name for name in dict.fromkeys(plain) if name in family] for family in families]
    if all(matches):
        # East, north and up may be called so, or x, y and z; of two columns of one axis none is the right one.
        for family, spelt in zip(families, matches, strict=True):
            if len(spelt) > 1:
                spelt.sort(key=family.index)
        return _positions(plain, [spelt[0] for spelt in matches])
    if degrees := [name for name, simple in zip(names, plain, strict=True) if _DEGREES.match(simple)]:
        raise DataError(
            f"its columns {', '.join(degrees)} are angles on the globe: project them to metres (x, y, z) first"
        )
    some = [axis for axis in "xyz" if axis in plain] or [spelt[0] for spelt in matches if spelt and len(spelt[0]) > 1]
    if some and not set(some) <= set(_HEIGHT):
        raise DataError(f"it has no x, y and z, only {shown(names)}: of the coordinates {', '.join(some)} alone")
    return None


def _stem(name: str) -> str:
    """A plain name without the affix before or behind its axis."""
    for axis in "xyz":
        if (name.startswith(axis) and name[1:] in _AFFIXES) or (name.endswith(axis) and name[:-1] in _AFFIXES):
            return axis
    return ""


def plain_name(name: str) -> str:
    """A name without case, quotes, units and punctuation."""
    text = without_units(name).strip().strip("\"'").casefold()
    text = re.sub(rf"[\s_./:-]+{_UNIT}$", "", text)
    return re.sub(r"[\W_]+", "", text)


def without_units(text: str) -> str:
    """A text without its bracketed words, unless nothing else remains."""
    return rest if (rest := _BRACKETS.sub("", text)).strip() else text


def is_other(name: str) -> bool:
    """Whether a name denotes something other than a coordinate, such as time, colour or a label."""
    return _OTHERS.match(plain_name(name)) is not None


def shown(names: Sequence[str]) -> str:
    """Names in a message; of very many or very long ones the beginning."""
    text = ", ".join(str(name)[:40] for name in names[:16])
    return text + (", …" if len(names) > 16 else "")


def _positions(plain: list[str], spelt: Sequence[str]) -> tuple[int, int, int]:
    for name in spelt:
        if plain.count(name) > 1:
            raise DataError(f"its columns name {name} twice")
    x, y, z = (plain.index(name) for name in spelt)
    return x, y, z
