"""The published repositories' own code on our operations, and our models with their weights.

POINTPEFT_CHECKOUT=Point-MAE:DAPT:ICCV23-IDPT:Point-PEFT/MAE:PointGST pytest tests/compat/test_published.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pointpeft import from_published
from pointpeft.methods import method_class, method_names

CHECKOUTS = [Path(path) for path in os.environ.get("POINTPEFT_CHECKOUT", "").split(os.pathsep) if path]
CONFIGS = (
    "cfgs/finetune_scan_hardest.yaml",  # Point-PEFT's for ModelNet names a class that its code does not register
    "cfgs/finetune_scan_hardest_dapt.yaml",
    "cfgs/finetune_scan_hardest_idpt.yaml",
    "cfgs/finetune_scan_hardest_vpt.yaml",
    "cfgs/mae/finetune_scan_hardest_pgst.yaml",
    "cfgs/act/finetune_scan_hardest_pgst.yaml",
    "cfgs/recon/finetune_scan_hardest_pgst.yaml",
    "cfgs/pointgpt/finetune_scan_hardest_pgst.yaml",
)
CASES = [
    pytest.param(checkout, config, id=f"{checkout.name}-{Path(config).parent.name}-{Path(config).stem}")
    for checkout in CHECKOUTS
    for config in CONFIGS
    if (checkout / config).is_file()
]
# Methods whose weight files are read, and what whole backbones are called; Raw is IDPT's name for Point-MAE's.
READ = [method_class(name).publication for name in method_names() if method_class(name).publication.markers]
KNOWN = {"PointTransformer", "PointTransformerRaw"} | {model.name for known in READ for model in known.models}

pytestmark = pytest.mark.skipif(not CHECKOUTS, reason="POINTPEFT_CHECKOUT names no checkout of a published repository")


@pytest.mark.parametrize(("checkout", "config"), CASES)
def test_their_code_runs_on_our_operations_and_our_model_agrees(checkout, config, tmp_path):
    for module in ("easydict", "termcolor"):
        pytest.importorskip(module)
    driver, output = Path(__file__).with_name("drive_published.py"), tmp_path / "out.pt"
    command = [sys.executable, "-m", "pointpeft.compat", str(driver), str(checkout), config, str(output)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    runs = {}
    for backend in ("reference", "auto"):  # plain PyTorch, then our operations: the same step, the same logits
        said = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment | {"POINTPEFT_BACKEND": backend}
        )
        assert said.returncode == 0, said.stderr
        runs[backend] = torch.load(output, weights_only=True)
    theirs, plain = runs["auto"], runs["reference"]
    assert (theirs["logits"] - plain["logits"]).abs().max() <= 1e-4 * plain["logits"].abs().max()
    assert theirs["trained"] > 0
    assert theirs["loss"] == pytest.approx(2.7, abs=2.5)
    assert torch.isfinite(theirs["logits"]).all()
    if theirs["config"]["NAME"] not in KNOWN:
        pytest.skip(f"ran, loss {theirs['loss']:.3f}; this package has no {theirs['config']['NAME']} to compare with")
    beside = {"memory_bank": theirs["memory_bank"]} if "memory_bank" in theirs else {}
    ours = from_published(theirs["config"], theirs["state"], **beside).eval()
    with torch.no_grad():
        logits = ours(theirs["points"], **{name: theirs[name] for name in ours.method.inputs})
    assert (logits - theirs["logits"]).abs().max() <= 1e-4 * theirs["logits"].abs().max()
