"""The commands that read and add to the benchmarks, on made-up measurements and at the smallest sizes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import crossover, growth, report
from pointpeft.ops.core import library
from tests.processes import outside_xdist


def row(group, name, seconds, **facts):
    limits = {"copy_gb_per_s": 10.0, "matmul_gflop_per_s": 100.0}
    return {
        "group": group,
        "name": f"bench[{name}]",
        "params": {"name": name},
        "stats": {"median": seconds},
        "extra_info": {"device": "cpu", "limits": limits, **facts},
    }


def test_the_report_sets_ours_beside_the_fastest_peer_and_draws_the_growth(tmp_path):
    rows = [
        row("knn 1x8", "slow peer", 0.009, bytes=10_000_000),
        row("knn 1x8", "pointpeft", 0.002, bytes=10_000_000),
        row("knn 1x8", "peer", 0.005, bytes=10_000_000),
        row("knn 1x8", "reference", 0.02, bytes=10_000_000),
        *(row(f"knn 1x{n}", "pointpeft", 1e-6 * n * math.log(n), n=n) for n in (100, 1000, 10_000)),
    ]
    path = tmp_path / "made_up.json"
    machine = {"threads": 2, "gpu": None, "torch": "0", "processor": "made up"}
    path.write_text(json.dumps({"machine_info": machine, "benchmarks": rows}))
    report.write([path], tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| knn 1x8 | 2.000 | 5.000 (peer) | 2.50 | 20.000 | 10.00 |" in text
    assert "| pointpeft | 2.000 | 1.00 | 10,000,000 | - | 50.0% |" in text
    assert "| knn | pointpeft | 0.461 | 6.908 | 92.103 | 1.12 |" in text
    assert (tmp_path / "made_up.png").stat().st_size > 10_000
    assert not list(tmp_path.glob("*.tmp*"))


def test_the_report_says_how_a_row_on_cuda_was_timed(tmp_path):
    graph = {"graph_seconds": 1e-5, "eager_seconds": 4e-5, "calls": 10, "rotated_bytes": 100 * 2**20}
    refused = {"graph_refused": "RuntimeError: it | waits", "eager_seconds": 5e-5}
    rows = [
        row("gather 1x8 [cuda]", "pointpeft", 1.0, bytes=50_000, **graph),
        row("gather 1x8 [cuda]", "peer", 1.0, bytes=50_000, **refused),
        row("training step dapt [cuda]", "pointpeft", 1.0, clouds=32, **graph | {"calls": 1}),
    ]
    rows[0]["extra_info"]["limits"]["matmul_bf16_gflop_per_s"] = 500.0
    for each in rows:
        each["extra_info"]["device"] = "cuda"
    path = tmp_path / "made_up.json"
    machine = {"threads": 2, "gpu": "made up", "torch": "0", "processor": "made up"}
    path.write_text(json.dumps({"machine_info": machine, "benchmarks": rows}))
    report.write([path], tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| of the limit | eager ms | timed as |" in text
    assert "| pointpeft | 0.010 | 1.00 | 50,000 | - | 50.0% | 0.040 | graph of 10, inputs of 100 MiB in turn |" in text
    assert "| peer | 0.050 | 5.00 | 50,000 | - | 10.0% | 0.050 | eager: RuntimeError: it / waits |" in text
    assert "| gather 1x8 [cuda] | 0.010 | 0.050 (peer) | 5.00 | - | - |" in text
    assert "| pointpeft | 0.01 | 1.00 | 3200000.0 | - | - | 0.040 | graph of 1, inputs" in text


def test_the_power_of_n_is_that_of_the_last_two_sizes():
    assert growth.exponent([(10, 1.0), (100, 7.0), (1000, 700.0)]) == pytest.approx(2)


def test_one_size_alone_is_no_growth(tmp_path):
    alone = [growth.Point("knn", "pointpeft", 1000, 1.0)]
    assert growth.table(alone) == []
    assert not growth.plot(alone, tmp_path / "none.png")


@pytest.mark.skipif(not library.compiled(), reason="the CPU library was not built")
def test_the_crossover_times_every_way_and_leaves_the_threads_as_they_were(monkeypatch, capsys):
    threads = torch.get_num_threads()
    tables = {
        "sampling": lambda: crossover.sampling([(2, 50, 5)], ("alone", "together", "tree")),
        "neighbours": lambda: crossover.neighbours([(1, 5, 50, 3, 2)], ("rows", "tree", "product")),
    }
    monkeypatch.setattr(crossover, "TABLES", tables)
    crossover.main(["--seconds", "0", "--threads", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert lines[0] == "| size | alone | together | tree | operation | fastest |"
    assert lines[1].startswith("| 2 x 5 of 50 | ")
    assert lines[3].startswith("| 1 x 2 nearest of 50 to 5, C = 3 | ")
    assert all(float(cell) > 0 for cell in lines[1].split(" | ")[1:-1])
    assert torch.get_num_threads() == threads


def test_a_row_of_ours_that_plain_pytorch_answers_fails():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks/points/bench_gather.py"]
    command += ["--benchmark-only", "--benchmark-max-time=0.001", "-k", "cpu and pointpeft"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=outside_xdist() | {"POINTPEFT_BACKEND": "reference"},
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "would run on plain PyTorch: POINTPEFT_BACKEND asks for the reference" in done.stdout
    assert " passed" not in done.stdout
