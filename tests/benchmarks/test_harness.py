"""The harness of the benchmarks: what it times, and what it refuses to time."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import conftest, timing
from tests.benchmarks.fake_cuda import FakeCuda


def row(**params):
    """A request for one row of a benchmark."""
    return SimpleNamespace(node=SimpleNamespace(name="bench_row", callspec=SimpleNamespace(params=params)))


def test_row_of_ours_on_the_reference_fails(monkeypatch):
    monkeypatch.setenv("POINTPEFT_BACKEND", "reference")
    with pytest.raises(pytest.fail.Exception, match="bench_row would run on plain PyTorch: POINTPEFT_BACKEND"):
        conftest.require_compiled(row(name="pointpeft", device="cpu"), "cpu")
    conftest.require_compiled(row(name="reference"), "cpu")


def test_row_of_ours_on_compiled_operations_is_timed():
    conftest.require_compiled(row(name="pointpeft"), "cpu")


def test_device_option_leaves_out_the_rows_of_the_other_device():
    rows = [SimpleNamespace(callspec=SimpleNamespace(params={"device": d})) for d in ("cpu", "cuda")]
    rows.append(SimpleNamespace())
    left_out = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    for device, expected in ((None, rows), ("cpu", rows[::2]), ("cuda", rows[1:2])):
        items = list(rows)
        conftest.pytest_collection_modifyitems(SimpleNamespace(getoption=lambda _, d=device: d, hook=hook), items)
        assert items == expected


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(timing, "cuda", fake)
    monkeypatch.setattr(torch.cuda, "synchronize", fake.synchronize)
    return fake


def test_a_short_kernel_is_timed_by_replays_and_not_by_its_launches(cuda):
    facts = timing.gpu_facts(lambda: cuda.launch(5e-6))
    assert facts["graph_seconds"] == pytest.approx(5e-6, rel=0.1)
    assert facts["eager_seconds"] > 2 * facts["graph_seconds"]
    assert facts["calls"] == timing.CALLS
    assert "graph_refused" not in facts


def test_a_slow_call_is_captured_once_and_replayed_few_times(cuda):
    facts = timing.gpu_facts(lambda: cuda.launch(0.2), slow=True)
    assert facts["graph_seconds"] == pytest.approx(0.2, rel=1e-3)
    assert facts["calls"] == 1
    assert len(cuda.launched) < 30


def test_rotated_inputs_fill_the_cache_twice_and_each_copy_is_captured(cuda):
    x, weight = torch.rand(16, 8, requires_grad=True), torch.rand(128)
    seen = []

    def run(x, weight):
        cuda.launch(5e-6, what=x.data_ptr())
        seen.append((x, weight))

    facts = timing.gpu_facts(run, (x, weight))
    assert facts["calls"] == 8  # of 1024 bytes, against a cache of 4096
    assert facts["rotated_bytes"] == 2 * cuda.L2
    assert facts["graph_seconds"] == pytest.approx(5e-6, rel=0.1)
    assert len(set(cuda.launched[-8:])) == 8
    assert all(a.equal(x) and a.requires_grad and b.equal(weight) and not b.requires_grad for a, b in seen)


def test_inputs_larger_than_the_cache_need_no_second_copy_than_what_fills_it(cuda):
    assert len(timing.copies_beyond_cache([torch.rand(4096)])) == 1
    assert len(timing.copies_beyond_cache([torch.rand(1)])) == timing.MAX_COPIES


def test_a_call_that_waits_for_the_device_is_timed_eagerly_with_the_reason(cuda):
    def run():
        cuda.launch(5e-6)
        cuda.item()

    facts = timing.gpu_facts(run)
    assert facts["graph_refused"] == "RuntimeError: called a synchronizing CUDA operation"
    assert facts["eager_seconds"] == pytest.approx(30e-6)
    assert "graph_seconds" not in facts
    assert cuda.mode == 0


def test_a_refused_capture_keeps_its_reason_and_gives_the_stream_back(cuda):
    before = cuda.current_stream()

    def run():
        cuda.launch(5e-6)
        cuda.allocate_outside()

    facts = timing.gpu_facts(run)
    assert facts["graph_refused"] == "RuntimeError: operation not permitted when stream is capturing"
    assert cuda.captured is None
    assert cuda.current is None or cuda.current is before


def timed_row(run, rows, **options):
    """A row on the made-up device, and what it says of itself."""
    stats = SimpleNamespace(stats=SimpleNamespace(median=1.0))

    def pedantic(timed, rounds):
        timed()

    benchmark = SimpleNamespace(extra_info={}, stats=stats, pedantic=pedantic, group=None)
    request = row(name="peer", device="cuda")
    request.config = SimpleNamespace(getoption=lambda name: rows)
    conftest.time_row(benchmark, request, {"cuda": {}}, "knn", run, lambda result: True, "cuda", **options)
    return benchmark


def test_row_on_cuda_keeps_the_time_of_its_graph_beside_the_eager_one(cuda, tmp_path):
    rows = tmp_path / "rows.jsonl"
    for _ in range(2):
        benchmark = timed_row(lambda: cuda.launch(8e-6), rows, bytes=12)
    facts = benchmark.extra_info
    assert facts["graph_seconds"] == pytest.approx(8e-6, rel=0.1)
    assert facts["eager_seconds"] > facts["graph_seconds"]
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(written) == 2
    assert written[0]["group"] == "knn [cuda]"
    assert written[0]["params"] == {"name": "peer", "device": "cuda"}
    assert written[0]["extra_info"]["bytes"] == 12


def test_row_on_cuda_with_a_wrong_result_is_not_timed(cuda):
    benchmark = SimpleNamespace(extra_info={})
    with pytest.raises(pytest.fail.Exception, match="wrong result: not timed"):
        conftest.time_row(benchmark, row(name="peer"), {}, "knn", lambda: 1, lambda result: False, "cuda")
    assert benchmark.extra_info == {}
