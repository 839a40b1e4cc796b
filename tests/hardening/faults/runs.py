"""Training runs in processes that can be hurt, forked from one that has everything imported: a run is a second."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from pointpeft.cli.main import main as command_line
from tests.clouds import TINY, TINY_MODEL

EPOCHS = 8
OPTIONS = [
    *(f"--set={pair}" for pair in TINY_MODEL),
    *(f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "epochs": EPOCHS}.items()),
    *("--checkpoint=none", "--device=cpu", "--no-probe", "--quiet"),
]


class Child:
    """`pointpeft ARGUMENTS` in a forked process.

    Args:
        arguments: Of the command line.
        prepare: Called in the child before the command: limits, another user, sabotage.
    """

    def __init__(self, arguments: list[str], prepare: Callable[[], None] = lambda: None) -> None:
        self.said, says = os.pipe()  # no file: its size would be limited too
        os.set_blocking(self.said, False)
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                os.dup2(says, 1)
                os.dup2(says, 2)
                # Under pytest these are files of its own, which are not read and which limits on files would affect.
                sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
                prepare()
                code = command_line(arguments)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 71
            except BaseException as error:
                os.write(2, f"escaped: {type(error).__name__}: {error}\n".encode())
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        os.close(says)

    def wait(self, seconds: float = 240.0) -> int:
        """Its exit code, or minus the signal that ended it.

        Raises:
            TimeoutError: It does not end.
        """
        until = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"a run did not end: {self.output()[-2000:]}")
            time.sleep(0.002)

    def ends(self, seconds: float) -> bool:
        """Whether it ends within so many seconds; its exit code is still there for `wait`."""
        until = time.monotonic() + seconds
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > until:
                return False
            time.sleep(0.002)
        return True

    def kill(self, number: int) -> None:
        """Sends a signal, where the process still is."""
        os.kill(self.pid, number)

    def output(self) -> str:
        """What it wrote to standard output and standard error, and was not yet asked for."""
        parts = []
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.said, 1 << 16):
                parts.append(part)
        return b"".join(parts).decode(errors="replace")

    def close(self) -> None:
        os.close(self.said)


def run(arguments: list[str], prepare: Callable[[], None] = lambda: None) -> tuple[int, str, float]:
    """Runs to the end; gives the exit code, the output and the seconds."""
    child = Child(arguments, prepare)
    code, said = child.wait(), child.output()
    child.close()
    return code, said, time.monotonic() - child.started


def together(arguments: list[str], processes: int, prepare: Callable[[int], None] = lambda rank: None) -> list[Child]:
    """Processes that train as one, each `pointpeft ARGUMENTS`, as torch.distributed.run starts them.

    Args:
        arguments: Of the command line.
        processes: How many.
        prepare: Called in each before the command, with its number.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def start(rank: int) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in {**names, "MASTER_PORT": port}.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        AcceleratorState._reset_state(reset_partial_state=True)
        prepare(rank)

    return [Child(arguments, partial(start, rank)) for rank in range(processes)]


def end(children: list[Child]) -> list[int]:
    """The exit codes of processes, or minus the signals that ended them."""
    codes = [child.wait() for child in children]
    for child in children:
        child.close()
    return codes


def interrupt_imports(arguments: list[str], moment: float) -> tuple[int, str]:
    """`pointpeft ARGUMENTS` in a process of its own, interrupted so many seconds after PyTorch begins to load.

    Gives its exit code and its output.
    """
    command = [sys.executable, "-m", "pointpeft", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so would a child of ours.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    maps = Path(f"/proc/{process.pid}/maps")
    until = time.monotonic() + 120
    while "libtorch_cpu" not in maps.read_text() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    try:
        said, _ = process.communicate(timeout=240)
    finally:
        process.kill()  # where it has ended, nothing
    return process.returncode, said


def sound(folder: Path) -> list[str]:
    """What is wrong with a run folder that was left at any moment; every file is whole or not there."""
    wrong = []
    for name in ("config.json", "result.json", "adapter/adapter_config.json"):
        path = folder / name
        if path.exists():
            try:
                json.loads(path.read_text())
            except ValueError as error:
                wrong.append(f"{name}: {error}")
    log = folder / "log.csv"
    if log.exists():
        rows = log.read_text().splitlines()
        if len({row.count(",") for row in rows}) != 1 or not log.read_text().endswith("\n"):
            wrong.append("log.csv is cut off")
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        try:
            torch.load(checkpoint, weights_only=True)
        except Exception as error:
            wrong.append(f"checkpoint.pt: {error}")
    weights = folder / "adapter" / "adapter_model.safetensors"
    if weights.exists():
        try:
            load_file(weights)
        except Exception as error:
            wrong.append(f"adapter: {error}")
    return wrong


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], object]:
    """The trained weights and the result of a finished run."""
    facts = json.loads((folder / "result.json").read_text())
    return load_file(folder / "adapter" / "adapter_model.safetensors"), [facts[name] for name in ("test", "selection")]


def same(first: Path, second: Path) -> str | None:
    """How two finished runs differ, to the bit."""
    (a, facts_a), (b, facts_b) = outcome(first), outcome(second)
    if a.keys() != b.keys():
        return f"other tensors: {sorted(a.keys() ^ b.keys())}"
    for name in a:
        if not torch.equal(a[name], b[name]):
            return f"{name} differs"
    return None if facts_a == facts_b else f"other results: {facts_a} and {facts_b}"


def lost_with_partner(whole: Path, folder: Path) -> list[str]:
    """What is missing from a pair's run of which one process ended well and the other was killed.

    That is well after the last epoch alone, behind which the first process writes by itself. A process that went on
    without its partner would have logged as many epochs, from half of the clouds: what was trained, and any result,
    must be that of `whole`, a pair that was left alone, to the bit.
    """
    try:
        expected, found = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (whole, folder))
    except FileNotFoundError:
        return ["ended well without its partner before the first epoch had ended"]
    if found["epoch"] != expected["epoch"]:
        return [f"ended well without its partner after {found['epoch']} epochs"]
    wrong = [
        f"{name} differs" for name, value in expected["model"].items() if not torch.equal(value, found["model"][name])
    ]
    if (folder / "result.json").exists() and (difference := same(whole, folder)):
        wrong.append(difference)
    return [f"went on without its partner: {one}" for one in wrong]


def quietly(function: Callable[[], object]) -> None:
    """Calls a function, its output unheard: what is imported and compiled in the parent is there in every child."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        function()
