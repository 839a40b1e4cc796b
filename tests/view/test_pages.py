"""The pages in a real browser: they are drawn, answer the mouse and files, and complain of nothing."""

import threading
import time

import numpy as np
import pytest
import torch

from pointpeft import create_model
from pointpeft.drawing.card import DEPTH, PART
from pointpeft.methods.adapters.dapt import SCALE
from pointpeft.tasks.adapted import Adapted
from pointpeft.tasks.classification.task import Classification
from pointpeft.view import show
from pointpeft.view.service import create_app
from pointpeft.view.token_maps import ATTENTION, observe
from tests.view.browser import browser

SMALL = {"depth": 2, "num_groups": 16, "group_size": 8}


def classifier():
    torch.manual_seed(6)
    return Adapted(create_model("point_mae_tiny", "dapt", 3, **SMALL).eval(), ("bed", "chair", "lamp"), 256, True)


def parts_model():
    torch.manual_seed(6)
    model = create_model(
        "point_mae_tiny", "dapt", 4, task="part_segmentation", num_categories=2, **{**SMALL, "depth": 3}
    )
    metadata = {"parts": ["mug/cup", "mug/handle", "lamp/foot", "lamp/shade"], "parts_of": [[0, 1], [2, 3]]}
    return Adapted(model.eval(), ("mug", "lamp"), 256, True, metadata)


@pytest.fixture
def served(tmp_path):
    """Gives the address of a service of a model on the loopback, and stops it afterwards."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    running = []

    def serve(adapted):
        server = uvicorn.Server(uvicorn.Config(create_app(adapted), host="127.0.0.1", port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join(20)


def scan(path, seed=0):
    xyz = np.random.default_rng(seed).normal(size=(400, 3)) * (1, 0.3, 2)
    np.save(path, xyz.astype(np.float32))
    return path


def own(problems):
    """Without the icon that browsers ask every service for."""
    return [problem for problem in problems if "favicon.ico" not in problem]


def test_a_scan_dropped_on_the_served_page_is_classified_and_shown(served, tmp_path):
    with browser(tmp_path / "profile") as page:
        page.open(served(classifier()))
        files = [scan(tmp_path / "scan.npy")]
        page.drag("#drop", files, "dragEnter", "dragOver")
        assert page.run("drop.className") == "over"
        page.drag("#drop", files, "drop")
        page.wait("document.querySelector('figcaption small') !== null")
        assert page.run("drop.className") == ""
        caption = page.run("document.querySelector('figcaption').textContent")
        assert "scan.npy" in caption
        assert all(name in caption for name in ("bed", "chair", "lamp"))
        options = page.run("[...document.querySelectorAll('#layer option')].map(o => o.textContent)")
        assert options[:1] == [DEPTH]
        assert {ATTENTION, SCALE} <= set(options)
        page.wait("shown.length === 1")
        before = page.run("document.querySelector('canvas').toDataURL()")
        assert page.colours() > 20
        page.run(f"choice.value = {ATTENTION!r}; choice.onchange()")
        assert page.run("document.getElementById('meaning').textContent").startswith("attention of the last block")
        assert "gradient" in page.run("getComputedStyle(document.querySelector('figcaption .bar')).background")
        assert page.run("document.querySelector('canvas').toDataURL()") != before
        turned = page.run("document.querySelector('canvas').toDataURL()")
        x, y = page.middle("canvas")
        where = {"y": y, "button": "left", "clickCount": 1}
        page.call("Input.dispatchMouseEvent", type="mousePressed", x=x, buttons=1, **where)
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 60, buttons=1, **where)
        page.call("Input.dispatchMouseEvent", type="mouseReleased", x=x + 60, buttons=0, **where)
        assert page.run("document.querySelector('canvas').toDataURL()") != turned
        page.picture(tmp_path / "served.png")
        (tmp_path / "broken.npy").write_bytes(b"no array")
        page.choose("#files", [tmp_path / "broken.npy"])
        page.wait("document.querySelector('.wrong') !== null")
        assert "broken.npy" in page.run("document.querySelector('.wrong').textContent")
        assert [problem for problem in own(page.problems) if "422" not in problem] == []


def test_a_scan_dropped_anywhere_on_the_served_page_of_parts_is_shown_in_parts(served, tmp_path):
    with browser(tmp_path / "profile") as page:
        page.open(served(parts_model()))
        assert page.run("document.querySelector('h1').textContent") == "What are its parts?"
        page.run("category.value = 'lamp'")
        page.drag("h1", [scan(tmp_path / "scan.npy")], "dragEnter", "dragOver", "drop")
        page.wait("shown.length === 1")
        assert page.run("choice.value") == PART
        assert ATTENTION in page.run("[...document.querySelectorAll('#layer option')].map(o => o.textContent)")
        caption = page.run("document.querySelector('figcaption').textContent")
        assert "lamp/" in caption
        assert "mug/" not in caption
        assert page.run("document.querySelectorAll('figcaption b[style]').length") >= 1
        assert page.colours() > 2
        page.picture(tmp_path / "parts.png")
        assert own(page.problems) == []


def test_the_page_of_show_is_drawn_in_every_layer(tmp_path):
    adapted = classifier()
    cards = [Classification().card(adapted, torch.randn(256, 3), f"{i}.ply", observe) for i in range(2)]
    file, _ = show.write(tmp_path / "show", cards, "z")
    with browser(tmp_path / "profile") as page:
        page.open(file.as_uri())
        names = page.run("[...document.querySelectorAll('#layer option')].map(o => o.textContent)")
        pictures = set()
        for name in names:
            page.run(f"choice.value = {name!r}; choice.onchange()")
            assert page.colours() > 5
            pictures.add(page.run("document.querySelector('canvas').toDataURL()"))
        assert len(pictures) == len(names) >= 4
        page.picture(tmp_path / "show.png")
        assert page.problems == []
