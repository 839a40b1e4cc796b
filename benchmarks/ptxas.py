"""Registers, stack and shared memory of every CUDA kernel: `python -m benchmarks.ptxas` writes `results/ptxas.md`.

What ptxas decided for each kernel and architecture (the figures of its `-v`) stands in the compiled library, from where
cuobjdump reads it: no GPU is needed, and no second compilation. A spilled register lives on the stack: none there means
no spills.
"""

import argparse
import os
import re
import shutil
import subprocess
import sysconfig
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
LIBRARY = HERE.parent / "pointpeft" / "_cuda.so"
# The kernels that decide how long an operation takes, in the dtype that most use; the rest is summed up by name.
HOT = re.compile(r"furthest_point_sample (held|bucket)_kernel<float|knn nearest_kernel<float, \d, 3>")


class Usage(NamedTuple):
    """What one kernel takes on one architecture: registers a thread, the rest in bytes."""

    kernel: str
    arch: str
    registers: int
    stack: int
    local: int
    shared: int


def cuobjdump(library: Path) -> str:
    """What cuobjdump says of the kernels in a library."""
    places = [*Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin"), "/usr/local/cuda/bin", os.environ["PATH"]]
    tool = shutil.which("cuobjdump", path=os.pathsep.join(map(str, places)))
    if tool is None:
        raise FileNotFoundError("there is no cuobjdump; the test extra brings it: pip install 'pointpeft[test]'")
    said = subprocess.run([tool, "-res-usage", library], capture_output=True, text=True, check=True)
    return said.stdout + said.stderr


def parse(text: str) -> list[Usage]:
    """Reads what cuobjdump says: an entry for each kernel and architecture, names as compilers write them."""
    found, arch, kernel = [], "", ""
    for line in text.splitlines():
        if named := re.search(r"arch = (sm_\w+)", line):
            arch = named.group(1)
        elif named := re.search(r"Function (\S+):", line):
            kernel = named.group(1)
        elif used := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, used.groups())
            found.append(Usage(kernel, arch, registers, stack, local, shared))
    return found


def readable(names: list[str]) -> list[str]:
    """Source and kernel of mangled names, demangled by c++filt, without namespaces and parameters."""
    said = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    plain = []
    for mangled, line in zip(names, said.splitlines(), strict=True):
        source = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_", mangled)  # nvcc names a file's own namespace so
        name = re.sub(r"\(anonymous namespace\)::|pointpeft::(?:\w+::)?|torch::headeronly::|c10::|^void ", "", line)
        name = re.sub(r"\((?:unsigned )?(?:int|long|bool)\)", "", name)  # casts of constants, in older demanglers
        name = re.split(r">\(|(?<=kernel)\(", name)[0] + (">" if ">(" in name else "")
        plain.append(f"{source.group(1)} {name}" if source else name)
    return plain


def table(usages: list[Usage]) -> str:
    """The report in Markdown."""
    archs = sorted({usage.arch for usage in usages}, key=lambda arch: int(arch.removeprefix("sm_")))
    hot, all_of = (defaultdict(lambda: defaultdict(list)) for _ in range(2))
    for name, usage in zip(readable([usage.kernel for usage in usages]), usages, strict=True):
        all_of[name.partition("<")[0]][usage.arch].append(usage)
        if HOT.match(name):
            hot[name][usage.arch].append(usage)

    def row(name: str, of: dict[str, list[Usage]]) -> str:
        cells = []
        for arch in archs:
            stack = max((usage.stack + usage.local for usage in of[arch]), default=0)
            registers = max((usage.registers for usage in of[arch]), default="–")
            cells.append(f"{registers}, stack {stack}" if stack else str(registers))
        shared = max(usage.shared for some in of.values() for usage in some)
        return f"| {name} | {' | '.join(cells)} | {shared} |"

    head = f"| kernel | {' | '.join(archs)} | shared |\n|---|{'---:|' * (len(archs) + 1)}"
    return "\n".join(
        [
            "# What the compiled kernels use\n",
            "Written by `python -m benchmarks.ptxas`: registers a thread as ptxas allotted them; where a kernel has a "
            "stack, its bytes a thread (a spilled register lives there: none means no spills); static shared memory in "
            "bytes a block, of which CUDA keeps 1024 for itself from sm_90 on. The last parameter of the sampling "
            "kernels says whether they run in clusters; sm_80 has none, and nothing is compiled for it there.\n",
            "## Hot kernels, in float32\n",
            head,
            *(row(f"`{name}`", hot[name]) for name in sorted(hot)),
            "\n## All kernels, the most of any variant\n",
            head.replace("kernel", "kernel (variants)"),
            *(row(f"`{name}` ({max(map(len, of.values()))})", of) for name, of in sorted(all_of.items())),
            "",
        ]
    )


def main() -> None:
    """Writes the report."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--library", type=Path, default=LIBRARY, help="what nvcc compiled")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "ptxas.md")
    asked = parser.parse_args()
    part = asked.out.with_name(f"{asked.out.name}.part")
    part.write_text(table(parse(cuobjdump(asked.library))))
    part.replace(asked.out)
    print(asked.out)


if __name__ == "__main__":
    main()
