"""The command for a GPU: its whole rehearsal on the CPU, and what it does where steps fail."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import models, outcomes, page, plan, sanitize
from benchmarks.gpu.runner import REFUSED, Run, Step
from tests.processes import outside_xdist

ROOT = Path(__file__).resolve().parents[2]


def python(code, **options):
    name = options.pop("name", "step")
    return Step(name, (sys.executable, "-c", code, "{output}"), options.pop("limit", 100), **options)


def run(tmp_path, *steps, seconds=60.0):
    code = Run(list(steps), tmp_path, seconds, {"rehearsal": True, "date": "today"}).run()
    return code, json.loads((tmp_path / "results.json").read_text())["steps"]


WRITES = "import sys; open(sys.argv[1], 'w').write('[1, 2]')"


def test_rehearsal_runs_every_step(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--minutes", "30", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=outside_xdist(), capture_output=True, text=True, check=False)
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{log[-8000:]}"
    results = json.loads((tmp_path / "results.json").read_text())
    names = [step.name for step in plan.plan(rehearse=True)]
    assert list(results["steps"]) == names
    assert all(state["status"] == "passed" and state["result"] for state in results["steps"].values())
    assert results["steps"]["agreement"]["result"]["cases"] == 12
    assert results["steps"]["paths"]["result"]["left_out"] == []
    assert {row["way"] for row in results["steps"]["models"]["result"]["rows"]} == set(models.WAYS)
    text = (tmp_path / "page.md").read_text()
    assert all(f"## {name}\n" in text for name in names if name != "build")
    assert len(list(tmp_path.iterdir())) == 3  # a lent machine may give few files back


def test_failing_step_is_noted_and_the_rest_goes_on(tmp_path):
    code, steps = run(
        tmp_path, python("raise SystemExit('it broke')", name="first"), python(WRITES, name="second"), seconds=60
    )
    assert code == 1
    assert steps["first"]["status"] == "failed"
    assert "it broke" in steps["first"]["output"]
    assert steps["second"] == {"status": "passed", "seconds": steps["second"]["seconds"], "result": [1, 2]}
    assert "it broke" in (tmp_path / "log.txt").read_text()


def test_refused_step_is_no_failure(tmp_path):
    code, steps = run(tmp_path, python(f"print('no such tool'); raise SystemExit({REFUSED})"))
    assert code == 0
    assert steps["step"]["status"] == "refused"
    assert "no such tool" in steps["step"]["output"]


def test_nothing_is_begun_after_a_needed_step_that_failed(tmp_path):
    code, steps = run(tmp_path, python("raise SystemExit(3)", name="build", needed=True), python(WRITES, name="tests"))
    assert code == 1
    assert steps["build"]["exit"] == 3
    assert steps["tests"]["status"] == "not begun"
    assert steps["tests"]["reason"] == "build did not pass"


def test_step_over_its_time_is_ended_with_its_children_and_keeps_what_it_wrote(tmp_path):
    child = "import subprocess, sys, time; open(sys.argv[1], 'w').write('7')\n"
    child += "p = subprocess.Popen(['sleep', '600']); print('child', p.pid, flush=True); time.sleep(600)"
    # Its share is a third of the time.
    code, steps = run(tmp_path, python(child, name="slow", limit=1), python(WRITES, name="rest", limit=2), seconds=30)
    assert code == 1
    assert steps["slow"]["status"] == "timed out"
    assert steps["slow"]["result"] == 7
    assert 9 <= steps["slow"]["seconds"] < 25
    assert steps["rest"]["status"] == "passed"
    pid = int((tmp_path / "log.txt").read_text().split("child ")[1].split()[0])
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_step_without_time_left_is_not_begun(tmp_path):
    code, steps = run(tmp_path, python(WRITES), seconds=0.5)
    assert code == 1
    assert steps["step"]["reason"] == "no time was left"


def test_program_that_is_missing_and_a_result_that_is_broken_are_noted(tmp_path):
    broken = "import sys; open(sys.argv[1], 'w').write('[1, ')"
    code, steps = run(tmp_path, Step("absent", ("no-such-program",), 10), python(broken, name="broken"))
    assert code == 1
    assert "no-such-program does not run" in steps["absent"]["output"]
    assert "JSONDecodeError" in steps["broken"]["unreadable"]


def test_every_benchmark_of_an_operation_is_in_the_plan():
    apart = {
        "dyt",
        "growth",
        "patch_embed_statistics",
        "training",
    }  # models, the CPU alone, or never on CUDA
    there = {path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").rglob("bench_*.py")}
    assert there - apart == set(plan.BENCHES)
    names = [step.name for step in plan.plan(rehearse=False)]
    assert names == [
        *("build", "machine", "tests", "agreement", "memcheck", "racecheck", "synccheck"),
        *("operations", "kernels", "models", "profile"),
    ]


SANITIZED = """========= COMPUTE-SANITIZER
fps held 400 float32
knn products k=5 float32
========= Invalid __global__ read of size 4 bytes
=========     at void nearest_kernel<float>+0x80
========= Error: process didn't terminate successfully
========= ERROR SUMMARY: 2 errors
"""


def test_report_of_the_sanitizer_is_read_with_the_path_it_belongs_to():
    report = sanitize.read_report(SANITIZED)
    assert report["errors"] == 2
    assert report["reports"][0] == {
        "path": "knn products k=5 float32",
        "report": "Invalid __global__ read of size 4 bytes",
    }
    assert report["refused"] == ""
    clean = sanitize.read_report("fps\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n")
    assert (clean["errors"], clean["reports"]) == (0, [])
    cannot = sanitize.read_report("========= Error: Device not supported. Please refer to the documentation\n")
    assert cannot["refused"] == "Error: Device not supported. Please refer to the documentation"
    assert cannot["errors"] is None


def test_missing_sanitizer_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: None)
    target = tmp_path / "memcheck.json"
    monkeypatch.setattr(sys, "argv", ["sanitize", "memcheck", "--output", str(target)])
    with pytest.raises(SystemExit) as ended:
        sanitize.main()
    assert ended.value.code == REFUSED
    assert "no compute-sanitizer" in json.loads(target.read_text())["refused"]


@pytest.mark.parametrize(("room", "expected"), [(1, 0), (5, 5), (700, 672), (1000, 992), (1024, 1024)])
def test_largest_batch_is_found_within_a_sixteenth(room, expected):
    tried = []

    def run_at(size):
        tried.append(size)
        if size > room:
            raise torch.OutOfMemoryError("made up")

    assert models.largest_batch(run_at, time.monotonic() + 600) == (expected, True)
    assert len(tried) < 20
    assert models.largest_batch(lambda size: None, time.monotonic() + 600, most=64) == (64, False)


def test_outcomes_of_tests_are_summed_up(tmp_path):
    lines = [
        {"test": "a", "outcome": "passed", "seconds": 2.0},
        {"test": "b", "outcome": "failed", "seconds": 1.0, "why": "assert 1 == 2"},
        {"test": "c", "outcome": "skipped", "seconds": 0.0, "why": "no such level"},
    ]
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"test": "cut sho')
    found = outcomes.summary(path)
    assert found["outcomes"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert found["failed"] == lines[1:2]
    assert found["skipped"] == {"no such level": 1}
    assert found["slowest"][0] == lines[0]


def test_page_gives_bytes_flops_and_the_ratio_to_the_limit():
    ours = {"graph_seconds": 1e-5, "eager_seconds": 9e-5}
    kernel = {"name": "adapter forward bfloat16", "bytes": 10_000_000, "flops": 1e9, "dtype": "torch.bfloat16"}
    kernel["contenders"] = {"pointpeft": ours, "eager": {"eager_seconds": 4e-5}, "torch.compile": {"failed": "it | is"}}
    limits = {"copy_gb_per_s": 4000.0, "matmul_gflop_per_s": 50_000.0, "matmul_bf16_gflop_per_s": 800_000.0}
    machine = {"gpu": "made up", "torch": "2", "nvcc": "13", "peers": {"cupy": None}, "limits": limits}
    steps = {
        "machine": {"status": "passed", "seconds": 1, "result": machine},
        "kernels": {"status": "failed", "seconds": 2, "output": "first\nlast", "result": {"rows": [kernel]}},
        "models": {"status": "not begun", "seconds": 0, "reason": "no time was left"},
    }
    text = "\n".join(page.lines_of({"rehearsal": False, "date": "today", "exit_code": 1, "steps": steps}))
    assert "| kernels | **failed** | 2 | last |" in text
    assert "| models | **not begun** | 0 | no time was left |" in text
    assert "| adapter forward bfloat16 | 0.01 | 0.04 | - | 4.00 | 10,000,000 | 1 | 25.0% |" in text
    assert "adapter forward bfloat16, torch.compile: it | is" in text


BUILDS_WITHOUT = """
import sys
for name in ("accelerate", "h5py", "safetensors", "torchmetrics", "tqdm", "tyro", "yaml", "matplotlib"):
    sys.modules[name] = None  # an import of it fails
import torch
from benchmarks.gpu import dapt
assert "safetensors" in dapt.STAND_INS
dapt.Dapt("cpu", "fp32", tiny=True).training_step(2)()
try:
    import safetensors.torch
    safetensors.torch.load_file("x")
except ImportError as error:
    assert "safetensors is not installed" in str(error), error
else:
    raise AssertionError("a stand-in was called")
"""


def test_models_are_built_where_readers_of_files_are_missing():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BUILDS_WITHOUT]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
