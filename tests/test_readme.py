"""What the README and the pages of docs tell to type: commands are parsed by the real command line, Python is run."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

import pointpeft
from pointpeft.cli.main import COMMANDS
from pointpeft.methods import method_class, method_names

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("**/*.rst")])


def blocks(page, language):
    """The blocks of one language of a page, in Markdown or reStructuredText."""
    text = page.read_text()
    if page.suffix == ".md":
        return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    found = re.findall(rf"\.\. code-block:: {language}\n\n((?:   .*\n|\n)+)", text)
    return ["\n".join(line[3:] for line in block.splitlines()) + "\n" for block in found]


def commands(page):
    """Command lines of pointpeft: those of bash blocks, and those between backquotes that have arguments."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    found = [line for line in lines if re.match(r"(accelerate launch -m |\S*python -m )?pointpeft \S", line)]
    found += [" ".join(line.split()) for line in re.findall(r"`(pointpeft [^`]+ [^`]+)`", page.read_text())]
    return [line for line in found if "COMMAND" not in line]


LINES = [pytest.param(line, id=f"{page.name}: {line[:60]}") for page in PAGES for line in commands(page)]
PYTHON = [
    pytest.param(page, id=page.name) for page in PAGES if any("import" in block for block in blocks(page, "python"))
]


def test_ci_runs_the_test_command_of_the_readme():
    command = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert command.endswith("-m pytest -n 2")
    assert command in (ROOT / "README.md").read_text().splitlines()


def test_every_command_is_shown():
    shown = {line.values[0].split("pointpeft ", 1)[1].split()[0] for line in LINES}
    shown |= set(re.findall(r"`pointpeft ([\w-]+)`", "".join(page.read_text() for page in PAGES)))
    assert shown == set(COMMANDS)


def test_the_readme_is_read_in_a_minute():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_the_readme_names_every_method_in_its_family():
    families = re.findall(r"^- .*: `([a-z_0-9 ]+)`$", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = [name for family in families for name in family.split()]
    assert sorted(named) == method_names()
    folders = [{method_class(name).__module__.split(".")[2] for name in family.split()} for family in families]
    assert all(len(folder) == 1 for folder in folders)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_picture_and_linked_file_is_there(page):
    text = page.read_text()
    named = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text) if page.suffix == ".md" else []
    named += re.findall(r"^\.\. (?:image|figure):: (\S+)", text, re.MULTILINE)
    missing = [name for name in named if not (page.parent / name).exists()]
    assert not missing


def test_pictures_are_small():
    pictures = sorted((ROOT / "docs" / "pictures").glob("*.png"))
    assert pictures
    assert {path.name: path.stat().st_size for path in pictures if path.stat().st_size > 300_000} == {}


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_is_understood(line):
    """Every option is there and takes the value; `…` stands for what the reader fills in."""
    from importlib import import_module

    words = shlex.split(line.replace("…", "linear"), comments=True)
    words = words[words.index("pointpeft") + 1 :]
    name, *arguments = [word for word in words if word != "linear" or len(words) > 2]
    module, kind = COMMANDS[name]
    command = tyro.cli(
        getattr(import_module(module), kind),
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
        prog=f"pointpeft {name}",
    )
    assert type(command).__name__ == kind


@pytest.mark.parametrize("page", PYTHON)
def test_python_runs(page, tmp_path):
    """All blocks of a page, one after another, in a folder with the files that they name."""
    from pointpeft.checkpoints.published import save_published

    save_published(pointpeft.create_model("point_mae", "full", 15), tmp_path / "pretrain.pth")
    shutil.copy(tmp_path / "pretrain.pth", tmp_path / "ckpt-best.pth")
    files = """
import torch, pointpeft
torch.manual_seed(0)
model = pointpeft.create_model("point_mae_tiny", "dapt", 15).eval()
pointpeft.save_adapter(model, "runs/finetune-scans-dapt/adapter")
xyz = torch.rand(2, 1024, 3)
"""
    code = files + "\n".join(blocks(page, "python"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_on_a_method_of_your_own_runs(tmp_path):
    (page,) = [block for block in blocks(ROOT / "README.md", "python") if "register_method" in block]
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
