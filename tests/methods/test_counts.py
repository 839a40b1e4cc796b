"""Trainable parameters at the published size, as published."""

import pytest

from pointpeft import create_model

COUNTS = [
    # method, options, classes, with the head
    ("full", {}, 15, 22_093_327),
    ("dapt", {}, 15, 1_087_771),
    ("dapt", {"parts": ("cls", "patch_max")}, 15, 989_467),
    ("dapt", {"rank": 72, "parts": ("cls", "patch_max")}, 40, 1_069_716),
    ("idpt", {}, 15, 1_696_783),
    ("idpt", {"head": "promptonly"}, 15, 1_500_175),
    ("idpt", {"generator": "mlp"}, 15, 515_599),
]


@pytest.mark.parametrize(("method", "options", "classes", "count"), COUNTS)
def test_trainable_parameters(method, options, classes, count):
    assert create_model("point_mae", method, classes, device="meta", **options).trainable_parameters() == count
