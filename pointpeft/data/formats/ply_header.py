"""The header of a .ply file: whether its elements can be in the file."""

import re

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.bounds import brief, require_unpacked

_MAX_HEADER = 1 << 16
_LIST_BYTES = 128  # of memory for a row's list, beside its numbers
_TYPE_BYTES = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "uint", "float", "int32", "uint32", "float32"), 4),
    **dict.fromkeys(("double", "float64"), 8),
}


def require_elements(content: bytes) -> None:
    """Refuses a .ply file whose header announces more rows than there are bytes for, before memory is taken for them.

    A header that is wrong in another way is left to the reader of the format.

    Args:
        content: The file, its header's lines ended by a line feed.

    Raises:
        DataError: It says which element is too large.
    """
    end = re.search(rb"(?:^|\n)[ \t]*end_header[ \t]*\n", content[:_MAX_HEADER])
    if end is None:
        if len(content) > _MAX_HEADER:
            raise DataError(f"has no header that ends within {_MAX_HEADER} bytes")
        return
    have = len(content) - end.end() + 1  # the last line need not end
    ascii_rows = False
    elements: list[tuple[str, int, list[list[str]]]] = []
    for words in (line.split() for line in content[: end.end()].decode("ascii", "replace").split("\n")):
        if words[:2] == ["format", "ascii"]:
            ascii_rows = True
        elif len(words) == 3 and words[0] == "element" and re.fullmatch("[0-9]{1,18}", words[2]):
            elements.append((words[1], int(words[2]), []))
        elif words[:1] == ["element"]:
            raise DataError(f"has a damaged header: {brief(' '.join(words))}")
        elif len(words) > 2 and words[0] == "property" and elements:
            elements[-1][2].append(words[1:])
    need = lists = 0
    for name, count, properties in elements:
        row = sum(_least(words, ascii_rows) for words in properties)
        need += count * max(1, row)
        lists += count * sum(words[0] == "list" for words in properties)
        if need > have:
            raise DataError(
                f"cannot be read: it is cut off, up to the {count} rows of {brief(name)} it needs {need} bytes, "
                f"{have} are there"
            )
    require_unpacked(len(content), lists * _LIST_BYTES)


def _least(words: list[str], ascii_rows: bool) -> int:
    """Fewest bytes of one property: that of an empty list is its length alone."""
    if ascii_rows:
        return 2  # a digit and a blank
    return _TYPE_BYTES.get(words[1] if words[0] == "list" else words[0], 1)
