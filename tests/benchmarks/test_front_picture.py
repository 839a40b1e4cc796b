"""The picture of the README: a dot per method, and clouds that stand upright."""

import csv

import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from benchmarks import front_picture


def test_every_method_of_the_table_is_a_dot_as_large_as_its_memory():
    with front_picture.RESULTS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    axes = Figure().subplots()
    front_picture.draw_methods(axes, rows)
    dots = [dot for dot in axes.collections if isinstance(dot, PathCollection) and len(dot.get_offsets()) == 1]
    assert len(dots) == len(rows)
    by_place = {tuple(dot.get_offsets()[0]): float(dot.get_sizes()[0]) for dot in dots}
    for row in rows:
        place = (float(row["trained"]), float(row["ModelNet40 mean (%)"]))
        assert by_place[place] > 0
    assert {text.get_text() for text in axes.texts} >= {"idpt", "dapt", "head alone", "full, no pre-training"}


def test_a_cloud_is_drawn_with_its_up_axis_up():
    axes = Figure().add_subplot(projection="3d")
    xyz = torch.tensor([[0.0, 0, 0], [0, 2, 0], [0.5, 1, 0]])
    front_picture.draw_points(axes, xyz, "y", "a cloud", color="red")
    low, high = axes.get_zlim()
    assert (round(low, 6), round(high, 6)) == (0.0, 2.0)
