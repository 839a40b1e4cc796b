"""Trainable parameters at the published size, as published."""

import pytest

from pointpeft import create_model
from tests.methods.tools import packages

COUNTS = [
    # method, options, classes, with the head
    ("full", {}, 15, 22_093_327),
    ("vpt", {}, 15, 360_463),
    ("adapter_x", {}, 15, 416_720),
    ("dapt", {}, 15, 1_087_771),
    ("dapt", {"parts": ("cls", "patch_max")}, 15, 989_467),
    ("dapt", {"rank": 72, "parts": ("cls", "patch_max")}, 40, 1_069_716),
    ("point_peft", {}, 15, 773_017),
    ("point_gst", {}, 15, 622_831),
    ("point_lora", {}, 15, 772_752),
    ("ppt", {}, 15, 1_042_191),
    ("gft", {}, 15, 733_455),
    ("gaprompt", {}, 15, 628_147),
    ("stag", {}, 15, 428_431),
    ("stag", {"adapted": 0.75, "share_down": 3, "share_graph": 3}, 15, 1_020_751),
    ("idpt", {}, 15, 1_696_783),
    ("idpt", {"head": "promptonly"}, 15, 1_500_175),
    ("idpt", {"generator": "mlp"}, 15, 515_599),
]


@pytest.mark.parametrize(("method", "options", "classes", "count"), COUNTS)
def test_trainable_parameters(method, options, classes, count):
    assert create_model("point_mae", method, classes, device="meta", **options).trainable_parameters() == count


POINTS = [
    # backbone, method, categories, classes, with the head
    ("point_mae", "full", 16, 50, 27_063_730),
    ("point_mae", "idpt", 16, 50, 5_686_066),
    ("point_mae", "point_gst", 0, 13, 5_549_805),
]


@pytest.mark.parametrize(("backbone", "method", "categories", "classes", "count"), POINTS)
def test_trainable_parameters_where_points_are_classified(backbone, method, categories, classes, count):
    task = "part_segmentation" if categories else "semantic_segmentation"
    model = create_model(backbone, method, classes, task=task, num_categories=categories, device="meta")
    assert model.trainable_parameters() == count


TOKENS = 2 * 384  # the class token and its position, which train under every method but are in no formula

WITHOUT_HEAD = [
    # method, options, parameters beside the head and the class token
    ("bitfit", {}, 36_864),
    ("ln_tuning", {}, 18_432),
    ("ssf", {}, 102_912),
    ("houlsby", {}, 1_190_400),
    ("houlsby", {"places": ("mlp",)}, 595_200),
    ("adaptformer", {}, 595_200),
    ("ia3", {}, 27_648),
    ("prefix", {}, 92_160),
    ("prefix", {"hidden": 512}, 4_928_768),
    ("vpt", {"positions": False, "placement": "after_prefix"}, 46_080),
    ("vpt", {"positions": False, "placement": "after_prefix", "deep": False}, 3_840),
    ("dyt", {}, 599_820),
    ("peterrec", {}, 1_780_992),
    ("adapter_x", {}, 50_113),
    ("adapter_x", {"dynamic": True}, 50_885),
    ("iconformer", {}, 413_952),
    ("iconformer", {"form": "curve"}, 413_952),
    ("unipelt", {"parts": ("adapter",)}, 12 * (2 * 384 * 24 + 24 + 384 + 385)),
    ("unipelt", {"parts": ("lora",)}, 12 * 2 * (2 * 8 * 384 + 385)),
    ("unipelt", {"parts": ("prefix",)}, 4_928_768 + 12 * 385),
    ("unipelt", {"parts": ("lora",), "bitfit": True}, 12 * 2 * (2 * 8 * 384 + 385) + 36_864),
    ("unipelt", {"parts": ("lora",), "soft_prompts": 10}, 12 * 2 * (2 * 8 * 384 + 385) + 3_840),
    ("unipelt", {"parts": ("lora", "prefix"), "central_gate": True}, 12 * (4 * 8 * 384 + 770) + 4_928_768),
    ("adalora", {}, 885_312),
    ("fact", {}, 49_152),
    ("fact", {"form": "tk"}, 18_688),
    ("bi_adaptformer", {}, 294_912),
    ("sct", {}, 111_744),
    ("most", {}, 12 * (2 * 8 * 48 * 48 + 3 * 384) + 768),
]


@pytest.mark.parametrize(("method", "options", "count"), WITHOUT_HEAD)
def test_trainable_parameters_beside_the_head(method, options, count):
    model = create_model("point_mae", method, 15, device="meta", **options)
    assert model.trainable_parameters(head=False) == count + TOKENS


REPARAMETERISED = [
    # method, options, parameters beside the head and the class token
    ("lora", {}, 589_824),
    ("rslora", {}, 589_824),
    ("dora", {}, 631_296),
    ("vera", {"rank": 256}, 53_760),
    ("oft", {}, 499_968),
    ("loha", {}, 1_179_648),
    ("lokr", {}, 45_696),
    ("hra", {}, 258_048),
]


@pytest.mark.parametrize(
    ("method", "options", "count"), [pytest.param(*row, marks=packages(row[0])) for row in REPARAMETERISED]
)
def test_trainable_parameters_of_weight_updates(method, options, count):
    model = create_model("point_mae", method, 15, device="meta", **options)
    assert model.trainable_parameters(head=False) == count + TOKENS
