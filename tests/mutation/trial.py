"""Runs the tests of an operation on a copy of the tree with one fault in it."""

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache, partial
from pathlib import Path

from tests.mutation.sites import ROOT, Site, included

# Of the benchmarks a test asks whether each operation has one.
TREE = ("benchmarks", "csrc", "pointpeft", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")
REGRESSIONS = "tests/fuzz/test_ops_regressions.py"
FUZZ_SECONDS = 10
TEST_SECONDS = 900  # of processor time
SAID = 6000  # characters of a failure that are kept
MEMORY = 8 << 30  # of address space; a fault may ask for any amount
KILLED, SURVIVED, TIMED_OUT, NOT_COMPILED = "killed", "survived", "timed out", "does not compile"
NOT_JUDGED = "not judged"


class NotJudged(Exception):
    """Tests that failed with a fault fail without it too: they say nothing about it."""


@cache
def tests_of(file: str) -> tuple[str, ...]:
    """The tests of an operation; of what several operations share its own ones, then theirs."""
    path = ROOT / file
    if path.suffix == ".py":
        stems = [path.stem]
        if path.stem.startswith("_"):
            uses = re.compile(
                rf"^from pointpeft\.ops(\.{path.stem})? import .*\b{path.stem}\b|ops\.{path.stem} import", re.M
            )
            modules = sorted(path.parent.glob("[a-z]*.py"))
            stems += [one.stem for one in modules if uses.search(one.read_text(encoding="utf-8"))]
    elif path.suffix == ".cpp":
        stems = [path.stem]
    else:
        stems = [source.stem for source in sorted(path.parent.glob("*.cpp")) if path in included(source)]
    names = [f"tests/ops/test_{stem.removeprefix('_')}.py" for stem in stems]
    if path.suffix == ".py" and "_triton.kernel(" in path.read_text(encoding="utf-8"):
        names.append("tests/ops/test_triton.py")  # what autotuning tries is looked at there
    found = tuple(dict.fromkeys(name for name in names if (ROOT / name).is_file()))
    return found or tuple(f"tests/ops/{one.name}" for one in sorted((ROOT / "tests/ops").glob("test_*.py")))


class Trial:
    """A copy of the tree, in which one file at a time is changed and put back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in TREE:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_cuda.so"))
            else:
                shutil.copy2(ROOT / name, folder / name)
        # No bytecode: a file of the same size, changed within the same second, would not be read again.
        path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        path = os.pathsep.join([str(folder), *(one for one in path if one and Path(one).resolve() != ROOT)])
        names = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "POINTPEFT_CUDA": "0"}
        self.environment = os.environ | names | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.output = tempfile.TemporaryFile()
        self.built: Path | None = None
        self.sound: set[tuple[object, ...]] = set()
        code = "import pointpeft; print(pointpeft.__file__)"
        said = subprocess.run([sys.executable, "-c", code], cwd=folder, env=self.environment, capture_output=True)
        if Path(said.stdout.decode().strip()) != folder / "pointpeft/__init__.py":
            raise RuntimeError(f"the copy in {folder} is not what is imported: {said}")

    def outcome(self, site: Site) -> str:
        """Killed, survived, timed out, or does not compile.

        Raises:
            NotJudged: The tests that would have killed it fail without it too; with what they wrote.
        """
        compiled = not site.file.endswith(".py")
        if compiled and self.built is None:
            self._build_all()
        path = self.folder / site.file
        before, facts = path.read_text(encoding="utf-8"), path.stat()
        try:
            path.write_text(site.put(before), encoding="utf-8")
            if compiled and not self._build():
                return NOT_COMPILED
            # The interpreter is slow, and the fuzzer's cases are smaller than those of the tests.
            tries = self._tries(site.file, fuzz_first="_triton" in before)
            code, last = next(((code, run) for run in tries if (code := run()) != 0), (0, None))
        finally:
            path.write_text(before, encoding="utf-8")
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
            if compiled:
                self._put_back()
        if last is not None and last.func == self._test and last.args not in self.sound:
            if (alone := last()) != 0:
                names = " ".join(last.args[0])
                raise NotJudged(f"tests end with {alone} without any fault too: {names}\n{self._said()}")
            self.sound.add(last.args)
        return SURVIVED if code == 0 else TIMED_OUT if code is None else KILLED

    def _tries(self, file: str, fuzz_first: bool) -> list[partial[int | None]]:
        """What may kill a fault, each giving an exit status."""

        def fuzz(name: str) -> int | None:
            return self._run([f"tests.fuzz.{name}", "--seconds", str(FUZZ_SECONDS)], FUZZ_SECONDS + 150)

        tests = (*tests_of(file), REGRESSIONS)
        tries = [partial(self._test, tests), partial(fuzz, "ops")]
        return [partial(fuzz, "cuda_path"), *tries] if fuzz_first else tries

    def _test(self, tests: tuple[str, ...]) -> int | None:
        code = self._run(["pytest", "-x", "-q", "-p", "no:cacheprovider", *tests], TEST_SECONDS)
        if code in (4, 5):
            raise RuntimeError(f"pytest ended with {code}: no tests in {tests}")
        return code

    def _run(self, command: list[str], limit: float) -> int | None:
        """The exit status of a module, None where it worked for more than so many seconds.

        Its own time counts, not the clock's: a busy machine is no endless loop. One that sleeps has four times as long.
        """

        def bounded() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))

        self.output.seek(0)
        self.output.truncate()
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.environment,
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,
            preexec_fn=bounded,
        )
        try:
            code = process.wait(4 * limit)
            return None if code == -signal.SIGXCPU else code
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # processes that it started, too
            process.wait()

    def _said(self) -> str:
        """The end of what the last module wrote."""
        self.output.seek(max(0, self.output.seek(0, os.SEEK_END) - SAID))
        return self.output.read().decode(errors="replace")

    # ---- C++: what was compiled without a fault is kept, so that a fault costs its own objects and one link ----

    def _build(self) -> bool:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True).returncode == 0

    def _build_all(self) -> None:
        if not self._build():
            raise RuntimeError("csrc does not compile without any fault")
        self.built = self.folder / "built"
        self.built.mkdir()
        for path in self._products():
            shutil.copy2(path, self.built / path.name)

    def _products(self) -> list[Path]:
        return [*(self.folder / "build/ninja").glob("*.o"), *(self.folder / "pointpeft").glob("*.so")]

    def _put_back(self) -> None:
        """The objects and libraries with their times, older than any file that is changed next."""
        if self.built is None:
            raise RuntimeError("nothing was built")
        for kept in self.built.iterdir():  # also what a compiler or linker that failed has removed
            path = self.folder / ("build/ninja" if kept.suffix == ".o" else "pointpeft") / kept.name
            if not path.exists() or path.stat().st_mtime_ns != kept.stat().st_mtime_ns:
                path.unlink(missing_ok=True)
                shutil.copy2(kept, path)
