"""Random cases of every CUDA operation, and what each must give. One stem per operation, as in csrc."""

import importlib
from collections.abc import Callable

from tests.csrc.cases.draw import Case, Draw

OPERATIONS = (
    "gather",
    "ball_query",
    "knn",
    "furthest_point_sample",
    "aggregate_neighbors",
    "chamfer_distance",
    "sample_and_group",
)


def makers(operation: str) -> tuple[Callable[[Draw], Case], ...]:
    """Functions that draw a case of a kernel file."""
    return importlib.import_module(f"tests.csrc.cases.{operation}").CASES
