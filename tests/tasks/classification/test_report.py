import base64
import json
import re

import torch

from pointpeft.tasks.batches import Clouds
from pointpeft.tasks.classification.metrics import measure
from pointpeft.tasks.classification.report import page, write_report
from tests.clouds import FakeDataset


def test_the_page_holds_the_misclassified_clouds_the_surest_first():
    clouds = Clouds(FakeDataset([50] * 6), num_points=50)
    clouds.names[3] = "</script><b>.ply"
    logits = torch.tensor([[3.0, 0], [0, 1], [0, 1], [5, 0], [2, 0], [0, 9]])  # labels 0 1 0 1 0 1: 2 and 3 are wrong
    text = page(clouds, logits, measure(logits, clouds.labels))
    cards = json.loads(re.search(r"clouds = (\[.*?\]);\n", text).group(1))
    assert [card["name"] for card in cards] == ["</script><b>.ply", "cloud 2"]
    assert text.count("</script>") == 1
    assert (cards[0]["true"], cards[0]["predicted"]) == ("b", "a")
    assert not re.search(r"(src|href|@import|url\()", text)
    points = torch.frombuffer(bytearray(base64.b64decode(cards[1]["points"])), dtype=torch.int8).view(-1, 3) / 127
    cloud = clouds.points[2]
    cloud = cloud - (cloud.amax(0) + cloud.amin(0)) / 2
    assert torch.allclose(points, cloud / cloud.abs().max(), atol=0.5 / 127 + 1e-6)


def test_a_class_named_like_a_place_of_the_page_stays_a_name():
    clouds = Clouds(FakeDataset([50] * 4, classes=("@DATA@", "@VIEWER@")), num_points=50)
    logits = torch.tensor([[0.0, 1], [1, 0], [1, 0], [0, 1]])
    text = page(clouds, logits, measure(logits, clouds.labels))
    assert "<td>@DATA@</td>" in text
    assert "<td>@VIEWER@</td>" in text
    cards = json.loads(re.search(r"clouds = (\[.*?\]);\n", text).group(1))
    assert {card["true"] for card in cards} == {"@DATA@", "@VIEWER@"}


def test_names_that_are_formulas_or_no_text_are_written(tmp_path):
    clouds = Clouds(FakeDataset([50] * 3, classes=("=cmd|' /C calc'!A0", r"$\frac$")), num_points=50)
    clouds.names = ["=1+1.npy", "caf\udce9.npy", "b.npy"]
    logits = torch.tensor([[0.0, 1], [1, 0], [1, 0]])
    write_report(tmp_path, clouds, logits, measure(logits, clouds.labels))
    rows = (tmp_path / "predictions.csv").read_text().splitlines()[1:]
    assert rows[0].startswith("'=1+1.npy,'=cmd|")
    assert rows[1].startswith(r"caf\udce9.npy,")
