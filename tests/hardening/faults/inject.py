"""Injects faults into training runs: `python -m tests.hardening.faults.inject --kills 50 --seed 0`.

Kinds: a kill at a random moment; a kill inside a write, before or after it is made durable, half-way or behind the
rename; Ctrl-C, also in the imports; one of two processes that train together is killed; no memory for a step; a full
disk; a limit on file sizes; a folder that cannot be written to; bits flipped in, and ends cut off, what a run left.
After a kill, Ctrl-C or an end of memory the run goes on to the same bits as one that was left alone; all others end
with a message that names the file.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

torch.set_num_threads(1)  # a fork keeps one thread only

from pointpeft import files  # noqa: E402
from tests.clouds import write_clouds  # noqa: E402
from tests.hardening.faults.runs import (  # noqa: E402
    EPOCHS,
    OPTIONS,
    Child,
    end,
    interrupt_imports,
    lost_with_partner,
    quietly,
    run,
    same,
    sound,
    together,
)
from tests.hardening.fuzz.driver import write  # noqa: E402

MOST_RESTARTS = 6
STEPS = 2 * EPOCHS  # of a run: its 11 training clouds are two batches
NOBODY = 65534


class Injector:
    """A data set, an undisturbed run to compare with, and the counts."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.data = write_clouds(root / "scans", per_class=5)
        self.counts: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self.number = 0
        self.whole = root / "whole"
        code, said, _ = run(self.fresh(self.whole))
        if code:
            raise SystemExit(f"the undisturbed run ended with {code}: {said}")
        # A second one knows how long: the first also warms up caches of files.
        _, _, self.seconds = run(self.fresh(self.folder()))
        self.pair = root / "pair"

    def fresh(self, folder: Path) -> list[str]:
        return ["finetune", str(self.data), *OPTIONS, f"--output={folder}"]

    def folder(self) -> Path:
        self.number += 1
        return self.root / f"run-{self.number}"

    def check(self, kind: str, what: str | None, **facts: Any) -> None:
        """Counts a fault, and keeps what went wrong."""
        self.counts[kind] += 1
        if what:
            self.failures.append({"kind": kind, "why": what, **facts})
            print(json.dumps(self.failures[-1]), file=sys.stderr, flush=True)

    # ---- killed and interrupted runs ----

    def killed(self, kind: str) -> None:
        """One run, hurt again and again until it ends by itself."""
        folder = self.folder()
        for restart in range(MOST_RESTARTS):
            arguments = (
                ["finetune", "--resume", str(folder)] if (folder / "config.json").exists() else self.fresh(folder)
            )
            last = restart == MOST_RESTARTS - 1
            moment = self.random.uniform(0, 1.1 * self.seconds)
            prepare = self.sabotage() if kind == "kill in a write" and not last else (lambda: None)
            child = Child(arguments, prepare)
            if kind != "kill in a write" and not last:
                time.sleep(moment)
                child.kill(signal.SIGINT if kind == "Ctrl-C" else signal.SIGKILL)
            code, said = child.wait(), child.output()
            child.close()
            if code == 0:
                break
            expected = 130 if kind == "Ctrl-C" else -signal.SIGKILL
            wrong = sound(folder) if folder.exists() else []
            if code != expected:
                wrong.append(f"ended with {code}, needs {expected}: {said[-1500:]}")
            if kind == "Ctrl-C" and "stopped; a run goes on" not in said:
                wrong.append(f"does not say how to go on: {said[-500:]}")
            self.check(kind, "; ".join(wrong) or None, moment=round(moment, 3))
        else:
            self.check("resumed", f"the run did not end: {code}: {said[-1500:]}")
            return
        rest = [str(path) for path in folder.rglob(".*.tmp")]
        self.check("resumed", same(self.whole, folder) or (f"left behind: {rest}" if rest else None), after=kind)
        shutil.rmtree(folder)

    def sabotage(self) -> Callable[[], None]:
        """Kills the process inside one of its writes."""
        which, when = self.random.randrange(1, 48), self.random.choice(["before", "half", "durable", "renamed"])

        def prepare() -> None:
            count, real_sync, real_replace = 0, os.fsync, os.replace

            def end() -> None:
                os.kill(os.getpid(), signal.SIGKILL)

            def fsync(descriptor: int) -> None:
                nonlocal count
                count += 1
                if count == which and when == "before":
                    end()
                if count == which and when == "half" and stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                    end()
                real_sync(descriptor)
                if count == which and when == "durable":
                    end()

            def replace(source: Any, target: Any) -> None:
                real_replace(source, target)
                if count == which and when == "renamed":
                    end()

            files.os.fsync, files.os.replace = fsync, replace

        return prepare

    def interrupted_early(self) -> None:
        """Ctrl-C in the first seconds of a real process, while its libraries are imported."""
        folder = self.folder()
        moment = self.random.uniform(0, 2)
        code, said = interrupt_imports([*self.fresh(folder), "--epochs=100000"], moment)  # it cannot end before
        wrong = sound(folder) if folder.exists() else []
        if code != 130 or not said.strip().splitlines()[-1].startswith("pointpeft: stopped"):
            wrong.append(f"ended with {code}, needs 130 and the message: {said[-1500:]}")
        self.check("Ctrl-C in the imports", "; ".join(wrong) or None, moment=round(moment, 3))

    def partner_dies(self) -> None:
        """One of two processes that train together is killed: the run goes on, in one process, to its end.

        The other one ends, too: by itself with an error, or by the launcher.
        """
        if not self.pair.exists():
            codes = end(together(self.fresh(self.pair), 2))
            if any(codes):
                raise SystemExit(f"the undisturbed pair ended with {codes}")
        folder = self.folder()
        pair = together(self.fresh(folder), 2)
        time.sleep(self.random.uniform(0.2, 1) * self.seconds)
        victim = self.random.randrange(2)
        pair[victim].kill(signal.SIGKILL)
        patience = self.random.choice([0, 20])
        if not pair[1 - victim].ends(patience):  # it waits for a partner that had not yet come
            pair[1 - victim].kill(signal.SIGTERM)  # as the launcher does at once
        codes = end(pair)
        wrong = sound(folder) if folder.exists() else []
        if 0 in codes and any(codes):
            wrong += lost_with_partner(self.pair, folder)
        if codes[0] == 0 and not (folder / "result.json").exists():
            wrong.append("ended well without a result")
        self.check("a process of two dies", "; ".join(wrong) or None, victim=victim, patience=patience, codes=codes)
        if (folder / "config.json").exists() and any(codes):
            code, said, _ = run(["finetune", "--resume", str(folder)])
            done = None if code == 0 and (folder / "result.json").exists() else f"ended with {code}: {said[-1500:]}"
            self.check("resumed", done, after="a process of two dies")

    def out_of_memory(self) -> None:
        """The device has no room for a step, at a random one."""
        folder, step = self.folder(), self.random.randint(1, STEPS)

        def prepare() -> None:
            count, real = 0, Accelerator.backward

            def backward(*arguments: Any, **options: Any) -> None:
                nonlocal count
                count += 1
                if count == step:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
                real(*arguments, **options)

            Accelerator.backward = backward

        code, said, _ = run(self.fresh(folder), prepare)
        message = said.strip().splitlines()[-1] if said.strip() else ""
        clear = code == 1 and message.startswith("pointpeft: error: out of memory with batch size ")
        wrong = [] if clear and "method dapt" in message else [f"ended with {code}: {said[-1500:]}"]
        wrong += sound(folder)
        self.check("out of memory", "; ".join(wrong) or None, step=step)
        code, said, _ = run(["finetune", "--resume", str(folder)])
        self.check(
            "resumed", f"ended with {code}: {said[-1500:]}" if code else same(self.whole, folder), after="memory"
        )

    # ---- disks ----

    def limited(self) -> None:
        """No file may grow beyond a few hundred bytes to a few thousand: as a full disk, file by file."""
        folder = self.folder()
        most = self.random.choice([100, 3000, 20_000, 60_000])

        def prepare() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        self.out_of_room("limit on file sizes", folder, prepare, f"{most} bytes")

    def full(self) -> None:
        """A file system of the size that the run's own files nearly fill."""
        place = self.folder()
        place.mkdir()
        size = self.random.choice([8, 40, 80, 120])
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", place], capture_output=True, check=False
        )
        if mounted.returncode:
            self.counts["full disk: skipped, no right to mount"] += 1
            return
        try:
            self.out_of_room("full disk", place / "run", lambda: None, f"{size} KiB")
        finally:
            subprocess.run(["umount", place], check=True)

    def out_of_room(self, kind: str, folder: Path, prepare: Callable[[], None], room: str) -> None:
        code, said, _ = run(self.fresh(folder), prepare)
        wrong = sound(folder) if folder.exists() else []
        message = said.strip().splitlines()[-1] if said.strip() else ""
        if code == 0:
            wrong += [] if same(self.whole, folder) is None else ["says that it is done, with another result"]
        elif code != 1 or not message.startswith("pointpeft: error: ") or str(folder) not in message:
            wrong.append(f"ended with {code} and no clear message: {said[-1500:]}")
        elif folder.exists() and list(folder.rglob(".*.tmp")):
            wrong.append(f"left behind: {list(folder.rglob('.*.tmp'))}")
        self.check(kind, "; ".join(wrong) or None, room=room)
        if code and kind == "limit on file sizes" and (folder / "config.json").exists():
            code, said, _ = run(["finetune", "--resume", str(folder)])
            self.check(
                "resumed", f"ended with {code}: {said[-1500:]}" if code else same(self.whole, folder), after=kind
            )

    def read_only(self) -> None:
        """A folder of somebody else."""
        place = self.folder()
        place.mkdir(mode=0o555)

        def prepare() -> None:
            if os.getuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)

        code, said, _ = run(self.fresh(place / "run"), prepare)
        clear = code == 1 and "pointpeft: error: " in said and "Permission denied" in said and str(place) in said
        self.check("read-only folder", None if clear else f"ended with {code}: {said[-1500:]}")

    # ---- damaged files ----

    def damaged(self) -> None:
        """A bit flips, or an end is lost, in a checkpoint, an adapter or a cloud."""
        target = self.random.choice(["checkpoint.pt", "adapter/adapter_model.safetensors", "config.json", "cloud"])
        if target == "cloud":
            data = self.folder()
            shutil.copytree(self.data, data)
            path = self.random.choice(sorted(data.rglob("*.npy")))
            arguments = ["finetune", str(data), *OPTIONS, f"--output={self.folder()}"]
            how = "cut"  # a flipped bit makes another number, which no cloud can tell
        else:
            folder = self.folder()
            shutil.copytree(self.whole, folder)
            path = folder / target
            how = "cut" if target == "config.json" else self.random.choice(["cut", "flip"])
            if target.startswith("adapter"):
                cloud = sorted(self.data.rglob("*.npy"))[0]
                arguments = ["predict", str(folder), str(cloud)]
            else:
                (folder / "result.json").unlink()
                arguments = ["finetune", "--resume", str(folder)]
        content = bytearray(path.read_bytes())
        at = self.random.randrange(len(content))
        if how == "cut":
            del content[at:]
        else:
            content[at] ^= 1 << self.random.randrange(8)
        path.write_bytes(content)
        code, said, _ = run(arguments)
        message = said.strip().splitlines()[-1] if said.strip() else ""
        clear = code == 1 and message.startswith("pointpeft: error: ") and str(path) in message
        self.check(
            f"{'bit flipped' if how == 'flip' else 'cut off'}: {target}",
            None if clear else f"ended with {code}: {said[-1500:]}",
            at=at,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hardening.faults.inject", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="runs killed, a third each: any time, in a write, Ctrl-C")
    parser.add_argument("--others", type=int, default=None, help="of each other kind; default: a third of --kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the counts here, as JSON")
    given = parser.parse_args()
    others = given.kills // 3 if given.others is None else given.others
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # for the run of somebody else
        root = Path(folder)
        quietly(lambda: preload(root))
        injector = Injector(root, given.seed)
        kinds = ["kill", "kill in a write", "Ctrl-C"]
        for i in range(given.kills):
            injector.killed(kinds[i % 3])
        for _ in range(others):
            for fault in (
                injector.limited,
                injector.full,
                injector.read_only,
                injector.damaged,
                injector.damaged,
                injector.out_of_memory,
                injector.partner_dies,
                injector.interrupted_early,
            ):
                fault()
    report = {
        "what": "tests.hardening.faults.inject",
        "seed": given.seed,
        "cases": sum(injector.counts.values()),
        "seconds": round(time.monotonic() - started, 1),
        "outcomes": dict(sorted(injector.counts.items())),
        "failures": injector.failures,
        "failed": len(injector.failures),
    }
    if given.output:
        write(given.output, report)
    print(json.dumps(report, indent=2))
    sys.exit(1 if injector.failures else 0)


def preload(root: Path) -> None:
    """Imports all that a run needs, without starting a thread."""
    import matplotlib.figure  # noqa: F401

    import pointpeft.cli.commands.finetune
    import pointpeft.cli.commands.predict
    import pointpeft.runs.finetune  # noqa: F401


if __name__ == "__main__":
    main()
