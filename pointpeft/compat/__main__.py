"""`python -m pointpeft.compat SCRIPT [ARGUMENT ...]`: runs a script with the drop-in modules in place."""

import runpy
import sys
from pathlib import Path

import torch

from pointpeft.compat import MODULES, install, is_installed, stay_on_cpu

USAGE = """usage: python -m pointpeft.compat [--replace] SCRIPT [ARGUMENT ...]
       python -m pointpeft.compat [--replace] -m MODULE [ARGUMENT ...]
       python -m pointpeft.compat --list

Runs a script or module with the names of `--list` provided; --replace also those of which a package is installed.
Where there is no CUDA device, `.cuda()` and the like stay on the CPU."""


def main() -> None:
    """Installs the modules and runs the script as `python SCRIPT` would."""
    arguments = sys.argv[1:]
    if arguments == ["--list"]:
        print("\n".join(_table()))
        return
    if arguments in (["-h"], ["--help"]):
        print(USAGE)
        return
    replace = arguments[:1] == ["--replace"]
    arguments = arguments[replace:]
    as_module = arguments[:1] == ["-m"]
    arguments = arguments[as_module:]
    if not arguments or arguments[0].startswith("-"):
        raise SystemExit(USAGE)
    if not as_module and not Path(arguments[0]).is_file():
        raise SystemExit(f"pointpeft.compat: there is no file {arguments[0]}")
    # As `python` itself: first the script's folder, or for a module the current one.
    sys.path[0] = str(Path.cwd() if as_module else Path(arguments[0]).resolve().parent)
    install(replace=replace)
    if not torch.cuda.is_available():
        print("pointpeft.compat: no CUDA device; what the script sends to one stays on the CPU", file=sys.stderr)
        stay_on_cpu()
    sys.argv = arguments
    if as_module:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(arguments[0], run_name="__main__")


def _table() -> list[str]:
    width = max(map(len, MODULES))
    notes = {name: "installed: stays unless --replace" if is_installed(name) else "provided" for name in MODULES}
    return [f"{name:{width}}  {note}" for name, note in notes.items()]


if __name__ == "__main__":
    main()
