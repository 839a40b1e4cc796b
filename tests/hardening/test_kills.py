import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("POINTPEFT_HARDENING_KILLS", "4"))


def test_a_run_killed_again_and_again_resumes_to_the_same_bits(tmp_path):
    command = [
        sys.executable,
        "-m",
        "tests.hardening.kills",
        f"--kills={KILLS}",
        f"--output={tmp_path / 'report.json'}",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failures"] == []
    assert report["outcomes"]["kill"] == KILLS
    assert report["outcomes"]["same bits"] == 1
