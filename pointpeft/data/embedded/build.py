"""Rebuilds the embedded set of furniture clouds: `python -m pointpeft.data.embedded.build PATH_TO_H5`.

The input holds clouds of 2048 points sampled from the meshes of the Sweet Home 3D furniture libraries, area-weighted,
in random order: `data (M, N, 3)`, and per cloud `id`, `name` and `licence`. Which items are taken, and their classes,
stands in `items.tsv`; the list was drawn up by name and every cloud on it was looked at.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from pointpeft.data.dataset import DataError
from pointpeft.data.embedded.similarity import NEAR_DUPLICATE_RATIO, connected_groups, resampling_ratio
from pointpeft.data.transforms import normalize

FOLDER = Path(__file__).parent
NUM_POINTS = 1024
TEST_SHARE = 0.3
SEED = 0
# Coordinates are kept as integers of 12 bits: half a step is 0.00024, far below the spacing of 1024 points (about
# 0.03), and the empty upper bits compress away.
SCALE = 2047

LICENCES = {
    "CC0": "CC0 1.0 Universal, https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-3.0": "Creative Commons Attribution 3.0 Unported, https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-3.0-US": "Creative Commons Attribution 3.0 United States, https://creativecommons.org/licenses/by/3.0/us/",
}
CREDITS_HEAD = """\
Credits for furniture.h5
========================

The clouds in furniture.h5 were derived from 3D models of the furniture libraries of Sweet Home 3D, version 1.8, which
Emmanuel Puybaret / eTeks collected and converted (https://www.sweethome3d.com). The models were changed: each is
reduced to 1024 points sampled from its surface, centred and scaled to the unit sphere. The authors do not endorse it.

Copyright by library:
  Kator Legaz     (c) 2003-2008 Andrew Kator & Jennifer Legaz
  Reallusion      (c) 2008-2016 Reallusion
  Scopia          (c) Emmanuel Puybaret / eTeks and Scopia Visual Interfaces Systems
  Blend Swap      the authors named below, https://www.blendswap.com

Licences:
"""


@dataclass(frozen=True)
class Item:
    """One line of `items.tsv`: a model, the class it is an example of, its author, and its variants' common name."""

    class_name: str
    id: str
    author: str
    family: str | None = None


def read_items(path: Path = FOLDER / "items.tsv") -> list[Item]:
    """Reads the curated list.

    Raises:
        DataError: A line has too few or too many columns, or an item stands twice.
    """
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("#"):
            continue
        columns = line.split("\t")
        if len(columns) not in (3, 4):
            raise DataError(f"{path}, line {number}: needs class, item, author and perhaps a family, got {line!r}")
        items.append(Item(*columns))
    ids = [item.id for item in items]
    twice = sorted({id for id in ids if ids.count(id) > 1})
    if twice:
        raise DataError(f"{path}: every item must stand once, got twice: {', '.join(twice)}")
    return items


def group_variants(clouds: Tensor, items: list[Item]) -> list[int]:
    """Groups the items of one class that show the same model: of one family, or near-duplicates of each other.

    Args:
        clouds: Their clouds, float. [B, N, 3]
        items: The items, all of one class. [B]

    Returns:
        Group numbers; a group bears the position of its first item. [B]
    """
    linked = resampling_ratio(clouds) < NEAR_DUPLICATE_RATIO
    for i, item in enumerate(items):
        for j, other in enumerate(items):
            if item.family is not None and item.family == other.family:
                linked[i, j] = True
    return connected_groups(linked)


def draw_test(groups: list[int], share: float, generator: torch.Generator) -> list[bool]:
    """Draws whole groups into the test split until it holds `share` of the items, rounded.

    Args:
        groups: Group number of every item. [B]
        share: The share of items to draw, between 0 and 1.
        generator: Draws the order of the groups; a group too large for the room left is passed over.

    Returns:
        Whether each item is in the test split. [B]
    """
    names = sorted(set(groups))
    room = round(share * len(groups))
    chosen = set()
    for position in torch.randperm(len(names), generator=generator).tolist():
        size = groups.count(names[position])
        if size <= room:
            chosen.add(names[position])
            room -= size
    return [group in chosen for group in groups]


def build(source: Path, folder: Path, items: list[Item]) -> None:
    """Writes `furniture.h5` and `CREDITS`; the same input gives the same arrays and the same text.

    Args:
        source: The HDF5 file of all models.
        folder: Where the two files go.
        items: What to take.

    Raises:
        DataError: An item is not in the source.
    """
    with h5py.File(source) as file:
        rows = {id: row for row, id in enumerate(file["id"].asstr())}
        missing = [item.id for item in items if item.id not in rows]
        if missing:
            raise DataError(f"{source}: must hold every item of the list, lacks {', '.join(missing)}")
        data = torch.from_numpy(file["data"][()].astype(np.float32))
        names, licences = file["name"].asstr()[()], file["licence"].asstr()[()]
    classes = sorted({item.class_name for item in items})
    items = sorted(items, key=lambda item: (item.class_name, item.id))
    clouds = data[[rows[item.id] for item in items]]
    groups, test = [], []
    for class_name in classes:
        of_class = [i for i, item in enumerate(items) if item.class_name == class_name]
        variants = group_variants(clouds[of_class], [items[i] for i in of_class])
        groups += [of_class[group] for group in variants]
        # A draw of its own for each class: an item more in one leaves the split of the others as it was.
        test += draw_test(variants, TEST_SHARE, torch.Generator().manual_seed(SEED))
    order = torch.randperm(clouds.shape[1], generator=torch.Generator().manual_seed(SEED))[:NUM_POINTS]

    partial = folder / "furniture.h5.partial"
    with h5py.File(partial, "w") as file:
        integers = (normalize(clouds[:, order]) * SCALE).round().to(torch.int16).numpy()
        file.create_dataset(
            "points", data=integers, chunks=integers.shape, compression="gzip", compression_opts=9, shuffle=True
        )
        file["points"].attrs.update(scale=SCALE, up_axis="y")
        file["label"] = np.array([classes.index(item.class_name) for item in items], np.uint8)
        file["group"] = np.array(groups, np.uint16)
        file["test"] = np.array(test)
        file["item"] = [item.id for item in items]
        file["classes"] = classes
    partial.replace(folder / "furniture.h5")
    credits = credit_text(items, [(names[rows[item.id]], licences[rows[item.id]]) for item in items])
    partial = folder / "CREDITS.partial"
    partial.write_text(credits, encoding="utf-8")
    partial.replace(folder / "CREDITS")


def credit_text(items: list[Item], sources: list[tuple[str, str]]) -> str:
    """Words the credits: one line per item with its title, author and licence.

    Args:
        items: The items. [B]
        sources: Title and licence of every item. [B]

    Raises:
        DataError: A licence that is not among `LICENCES`, those known to allow redistribution with credit.
    """
    unknown = sorted({licence for _, licence in sources} - set(LICENCES))
    if unknown:
        raise DataError(f"licences must be among {', '.join(LICENCES)}, got {', '.join(unknown)}")
    known = "".join(f"  {short:<14}{full}\n" for short, full in LICENCES.items())
    lines = [
        f"{item.id} | {title} | {item.author} | {licence}\n"
        for item, (title, licence) in sorted(zip(items, sources, strict=True), key=lambda pair: pair[0].id)
    ]
    return f"{CREDITS_HEAD}{known}\nItem (library#model) | title | author | licence\n{''.join(lines)}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pointpeft.data.embedded.build PATH_TO_H5")
    build(Path(sys.argv[1]), FOLDER, read_items())
