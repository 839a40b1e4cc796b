"""Untrusted YAML of plain values, with a bound on the expansion of its aliases."""

from pathlib import Path
from typing import Any

import yaml

_MAX_BYTES = 1 << 18
_MAX_VALUES = 100_000  # of a configuration with each alias in full; published ones have a hundred
_LETTERS = 64  # so many of a text count as one value


def load_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: It is not YAML of plain values, or larger than a configuration.
    """
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ValueError(f"it has {size:,} bytes, at most {_MAX_BYTES:,} are read")
    text = path.read_text(encoding="utf-8")
    loader = None
    try:
        loader = yaml.SafeLoader(text)  # refuses characters that are no text
        node = loader.get_single_node()
        if node is None:
            return None
        _unfolded(node, {}, set())
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:  # nested deeper than the library can follow
        raise ValueError(str(error)) from error
    finally:
        if loader is not None:
            loader.dispose()


def _unfolded(node: yaml.Node, sizes: dict[int, int], above: set[int]) -> int:
    """Number of values of a node with each alias in full."""
    place = id(node)
    if place in above:
        raise ValueError(f"the alias in line {node.start_mark.line + 1} holds itself")
    if place not in sizes:
        above.add(place)
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        children = [child for item in inner for child in (item if isinstance(item, tuple) else (item,))]
        text = len(node.value) // _LETTERS if isinstance(node, yaml.ScalarNode) else 0
        sizes[place] = 1 + text + sum(_unfolded(child, sizes, above) for child in children)
        above.discard(place)
        if sizes[place] > _MAX_VALUES:
            raise ValueError(f"its aliases unfold to more than {_MAX_VALUES:,} values")
    return sizes[place]
