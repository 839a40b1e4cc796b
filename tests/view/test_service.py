import io
import re
import time

import numpy as np
import pytest
import torch

from pointpeft import create_model
from pointpeft.data import read_points
from pointpeft.methods.adapters.dapt import SCALE
from pointpeft.runs.evaluate import predict, predict_points
from pointpeft.tasks.adapted import Adapted
from pointpeft.view.service import Limits, create_app
from pointpeft.view.token_maps import ATTENTION, PROMPTS

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
from fastapi.testclient import TestClient

SMALL = {"depth": 2, "num_groups": 16, "group_size": 8}
CLASSES = ("bed", "chair", "lamp", "sofa")
HOME = "http://localhost"


@pytest.fixture(scope="module")
def adapted():
    torch.manual_seed(6)
    model = create_model("point_mae_tiny", "dapt", 4, **SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return Adapted(model.eval(), CLASSES, 64, True)


@pytest.fixture
def client(adapted):
    with TestClient(create_app(adapted), base_url=HOME) as client:
        yield client


def scan(seed=0, points=100):
    file = io.BytesIO()
    np.save(file, np.random.default_rng(seed).normal(size=(points, 3)).astype(np.float32))
    return file.getvalue()


def test_a_scan_gets_the_class_that_predict_gives(client, adapted, tmp_path):
    (tmp_path / "scan.npy").write_bytes(scan())
    expected = predict(adapted, [tmp_path / "scan.npy"])[0]
    said = client.post("/predict?name=scan.npy", content=scan())
    assert said.status_code == 200
    result = said.json()
    assert (result["name"], result["class"]) == ("scan.npy", expected["class"])
    assert result["probability"] == pytest.approx(expected["probability"], abs=1e-3)
    assert (result["top"][0]["class"], result["top"][0]["probability"]) == (result["class"], result["probability"])
    assert len(result["points"]) == 64 * 3 * 4 // 3  # base64 of three bytes per point


def test_whoever_looks_gets_the_layers(client, adapted):
    assert "layers" not in client.post("/predict?name=scan.npy", content=scan()).json()
    layers = client.post("/predict?name=scan.npy&layers=true", content=scan()).json()["layers"]
    assert set(layers) == {ATTENTION, SCALE, PROMPTS}
    assert all(layer["low"] <= layer["high"] and len(layer["values"]) == 88 for layer in layers.values())
    assert client.post("/predict?name=scan.npy&category=bed", content=scan()).status_code == 422


def test_a_model_of_parts_gives_the_part_of_each_point(tmp_path):
    torch.manual_seed(6)
    options = {**SMALL, "depth": 3, "task": "part_segmentation", "num_categories": 2}
    model = create_model("point_mae_tiny", "dapt", 4, **options).eval()
    metadata = {"parts": ["cup", "handle", "foot", "shade"], "parts_of": [[0, 1], [2, 3]], "up_axis": "z"}
    adapted = Adapted(model, ("mug", "lamp"), 64, True, metadata)
    np.save(tmp_path / "scan.npy", np.load(io.BytesIO(scan(points=64))))
    expected = predict_points(adapted, [tmp_path / "scan.npy"], tmp_path, "lamp")[0]["parts"]
    with TestClient(create_app(adapted), base_url=HOME) as client:
        result = client.post("/predict?name=scan.npy&category=lamp", content=scan(points=64)).json()
        assert (result["category"], result["parts"]) == ("lamp", expected)
        assert set(result["layers"]["part"]["names"]) == set(expected)
        refused = client.post("/predict?name=scan.npy", content=scan())
        assert refused.status_code == 422
        assert "mug, lamp" in refused.json()["error"]
        assert "lamp" in client.get("/").text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scan.exe", b"MZ", r"scan\.exe|\.exe"),
        ("scan.npy", b"not an array", r"scan\.npy"),
        ("scan.npy", scan(points=4), "4 points, at least group_size = 8"),
        ("../../etc/passwd", b"", r"."),
        ("", b"", r"."),
        ("a." + "x" * 300, b"", r"unknown kind of file"),
        ("a.\0npy", b"", r"unknown kind of file"),
        ("a.npy\0", b"", r"unknown kind of file"),
        ("x" * 5000 + ".npy", b"no array", r"x\.npy"),
        ("a\0b\udcff.npy".encode("utf-8", "surrogateescape").decode("latin1"), b"no array", r"\.npy"),
    ],
)
def test_a_bad_file_is_named(client, name, content, message):
    said = client.post("/predict", params={"name": name}, content=content)
    assert said.status_code == 422
    error = said.json()["error"]
    assert re.search(message, error)
    assert "/tmp" not in error
    assert client.get("/health").json()["requests_under_way"] == 0


def test_pickles_are_not_run(client):
    file = io.BytesIO()
    np.save(file, np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    assert client.post("/predict?name=scan.npy", content=file.getvalue()).status_code == 422


def test_large_files_are_refused_with_and_without_content_length(adapted):
    with TestClient(create_app(adapted, Limits(megabytes=0.001)), base_url=HOME) as client:
        assert client.post("/predict?name=a.npy", content=scan(points=200)).status_code == 413
        chunks = (scan(points=200)[i : i + 100] for i in range(0, 2400, 100))
        assert client.post("/predict?name=a.npy", content=chunks).status_code == 413
        assert client.post("/predict?name=a.npy", content=scan(points=70)).status_code == 200


def test_what_a_file_unpacks_to_is_bounded_by_what_may_be_sent(adapted):
    file = io.BytesIO()
    np.savez_compressed(file, points=np.random.default_rng(0).integers(0, 2, (2 << 20, 3)).astype(np.uint8))
    assert len(file.getvalue()) < 2 << 20
    with TestClient(create_app(adapted, Limits(megabytes=2)), base_url=HOME) as client:
        said = client.post("/predict?name=a.npz", content=file.getvalue())
        assert said.status_code == 422
        assert "refused: it would unpack to 50331648 bytes, at most 16777216 are allowed" in said.json()["error"]


def test_a_full_disk_is_reported(adapted, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pointpeft.view.service.tempfile.TemporaryDirectory", full)
    with TestClient(create_app(adapted), base_url=HOME) as client:
        said = client.post("/predict?name=a.npy", content=scan())
        assert said.status_code == 503
        assert "No space left on device" in said.json()["error"]


def test_a_slow_request_ends_in_time(adapted, monkeypatch):
    monkeypatch.setattr("pointpeft.view.service._read", lambda *arguments: time.sleep(0.5))
    with TestClient(create_app(adapted, Limits(seconds=0.1)), base_url=HOME) as client:
        said = client.post("/predict?name=a.npy", content=scan())
        assert said.status_code == 504
        assert "0.1 seconds" in said.json()["error"]


def test_requests_that_come_together_share_a_pass(adapted):
    import asyncio

    import httpx

    app = create_app(adapted, Limits(wait=0.5, batch=4))

    async def ask():
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url=HOME) as client:
                posts = [client.post(f"/predict?name={i}.npy", content=scan(i)) for i in range(4)]
                answers = await asyncio.gather(*posts)
                return [answer.json() for answer in answers], (await client.get("/health")).json()

    answers, health = asyncio.run(ask())
    assert health["model_passes"] == 1
    assert health["requests_answered"] == 4
    with TestClient(create_app(adapted), base_url=HOME) as client:
        for i, answer in enumerate(answers):
            alone = client.post(f"/predict?name={i}.npy", content=scan(i)).json()
            assert alone["class"] == answer["class"]
            assert alone["probability"] == pytest.approx(answer["probability"], abs=1e-3)


def test_too_many_requests_are_turned_away(adapted, monkeypatch):
    import asyncio

    import httpx

    monkeypatch.setattr("pointpeft.view.service._read", lambda *arguments: time.sleep(0.3) or read_points)
    app = create_app(adapted, Limits(queue=1, seconds=0.2))

    async def ask():
        async with app.router.lifespan_context(app):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HOME) as client:
                posts = [client.post(f"/predict?name={i}.npy", content=scan(i)) for i in range(3)]
                return sorted(answer.status_code for answer in await asyncio.gather(*posts))

    assert asyncio.run(ask()) == [503, 503, 504]


def test_health_and_page(client):
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert health["classes"] == list(CLASSES)
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"(src=|href|@import|url\()", page.text)


def test_other_hosts_and_other_origins_are_refused(adapted):
    with TestClient(create_app(adapted), base_url="http://evil.example") as client:
        assert client.get("/health").status_code == 400
    with TestClient(create_app(adapted), base_url=HOME) as client:
        refused = client.post("/predict?name=a.npy", content=scan(), headers={"origin": "http://evil.example"})
        assert refused.status_code == 403
        own = client.post("/predict?name=a.npy", content=scan(), headers={"origin": HOME})
        assert own.status_code == 200
    with TestClient(create_app(adapted, hosts=("*",)), base_url="http://lab-machine:8000") as client:
        assert client.get("/health").status_code == 200


def test_what_is_no_classifier_is_refused():
    model = create_model("point_mae_tiny", "dapt", 4, task="semantic_segmentation", **SMALL).eval()
    with pytest.raises(ValueError, match="classifiers of clouds"):
        create_app(Adapted(model, CLASSES, 64, True))
    with pytest.raises(ValueError, match="megabytes must be greater than 0"):
        Limits(megabytes=0)
