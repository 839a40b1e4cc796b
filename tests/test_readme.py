import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_ci_runs_the_test_command_of_the_readme():
    command = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert command.endswith("-m pytest")
    assert command in (ROOT / "README.md").read_text().splitlines()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_page_on_a_method_of_your_own_runs(tmp_path):
    (page,) = [block for block in blocks("python") if "register_method" in block]
    assert len(page.splitlines()) <= 40
    check = """
assert model.trainable_parameters(head=False) == 6 * 2 * 96
xyz, labels = torch.randn(4, 256, 3), torch.arange(4)
model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
losses = []
for _ in range(10):
    loss = nn.functional.cross_entropy(model(xyz), labels)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.8 * losses[0], losses
pointpeft.save_adapter(model.eval(), FOLDER)
assert torch.equal(pointpeft.load_adapter(FOLDER)(xyz), model(xyz))
"""
    code = page + check.replace("FOLDER", repr(str(tmp_path)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_command_of_the_readme_is_there():
    from pointpeft.cli.main import COMMANDS

    named = {match for block in blocks("bash") for match in re.findall(r"^pointpeft ([\w-]+)", block, re.MULTILINE)}
    assert named
    assert named <= set(COMMANDS)
