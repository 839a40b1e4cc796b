import subprocess
import sys
import textwrap

import pytest
import torch

from pointpeft.compat import stay_on_cpu

# What training scripts of the published repositories do with a GPU, gathered from their main files and runners.
SCRIPT = """
import torch
from torch import nn

torch.save({"w": torch.ones(3)}, FILE)
torch.cuda.set_device(0)
torch.cuda.manual_seed_all(1)
model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).cuda()
model = nn.DataParallel(model).cuda().to(0).to("cuda:0")
model.to(device="cuda", dtype=torch.float32)
x = torch.rand(5, 3).cuda(non_blocking=True).to("cuda").to(torch.device("cuda", 0)).to(0)
x = x.to(torch.float32)
y = torch.zeros(5, device="cuda").long() + torch.arange(5, device=x.device) % 4
loss = nn.CrossEntropyLoss().cuda()(model(x), y)
loss.backward()
torch.optim.SGD(model.parameters(), lr=0.1).step()
kept = [torch.load(FILE, map_location=m)["w"] for m in (None, "cuda:0", {"cuda:0": "cuda:1"}, torch.device("cuda"))]
kept += [x, y, loss, torch.cuda.FloatTensor([1.0]), torch.full((2,), 1.0, device=0), *model.parameters()]
torch.cuda.synchronize()
torch.cuda.empty_cache()
assert not torch.cuda.is_available()
print({t.device.type for t in kept}, torch.cuda.max_memory_allocated())
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_script_for_cuda_runs_on_the_cpu(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(f"FILE = {str(tmp_path / 'w.pth')!r}\n" + textwrap.dedent(SCRIPT))
    command = [sys.executable, "-m", "pointpeft.compat", str(script)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout == "{'cpu'} 0\n"
    assert "no CUDA device; what the script sends to one stays on the CPU" in said.stderr


def test_with_a_cuda_device_nothing_is_kept_from_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="this one has a CUDA device"):
        stay_on_cpu()
