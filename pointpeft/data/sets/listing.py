"""The clouds of a data set before any is read."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from pointpeft.data.splits import split_validation

LEVELS = {"train": ("train", "training"), "test": ("test", "testing")}
UNUSED = ("val", "valid", "validation")
TEST_FRACTION = 0.2
SEED = 0


@dataclass(frozen=True)
class Listing:
    """The files of a data set before any is read.

    Attributes:
        root: The folder that names are relative to.
        classes: Class names, sorted.
        splits: (file, label) of "train" and "test".
        notes: What the user should know.
        problems: What makes the data set unusable.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, list[tuple[Path, int]]]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def make_listing(
    root: Path, clouds: dict[str, list[tuple[Path, str]]], notes: list[str], problems: list[str]
) -> Listing:
    """Numbers the classes of the files found, and draws a test split where there is none."""
    classes_of = {split: {name for _, name in members} for split, members in clouds.items()}
    if clouds["train"] and (unseen := sorted(classes_of["test"] - classes_of["train"])):
        problems.append(f"{root}: classes only in the test split: {', '.join(unseen)}, which cannot be learnt")
    classes = tuple(sorted(classes_of["train"] or classes_of["test"]))
    number = {name: i for i, name in enumerate(classes)}
    numbered = {s: [(path, number[name]) for path, name in clouds[s] if name in number] for s in ("train", "test")}
    if numbered["train"] and not numbered["test"]:
        numbered, note = _draw_test(numbered["train"], classes)
        notes.append(note)
    return Listing(root, classes, numbered, tuple(notes), tuple(problems))


def _draw_test(
    clouds: list[tuple[Path, int]], classes: tuple[str, ...]
) -> tuple[dict[str, list[tuple[Path, int]]], str]:
    """Holds out a share of every class."""
    train, test = split_validation(torch.tensor([label for _, label in clouds]), TEST_FRACTION, SEED)
    note = f"no test split is given: {len(test)} of {len(clouds)} clouds were drawn for it, class by class, seed {SEED}"
    counts = Counter(clouds[i][1] for i in test.tolist())
    untested = [name for label, name in enumerate(classes) if not counts[label]]
    if untested:
        note += f"; none of {', '.join(untested)}"
    return {"train": [clouds[i] for i in train.tolist()], "test": [clouds[i] for i in test.tolist()]}, note
