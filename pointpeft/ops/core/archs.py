"""Which GPUs compiled CUDA code runs on."""

import re


def has_code_for(archs: str, capability: tuple[int, int]) -> bool:
    """Whether code for `archs` runs on a GPU.

    Machine code runs on GPUs of its major version whose minor version is at least its own. PTX, which the driver
    compiles, runs on every GPU of at least its version. Code for an `a` target runs on that very version alone, for an
    `f` target on its family, which is its major version.

    Args:
        archs: Targets in the form of TORCH_CUDA_ARCH_LIST, such as "8.0;9.0+PTX".
        capability: Major and minor version of the GPU, as `torch.cuda.get_device_capability` gives them.
    """
    return any(_runs(entry, capability) for entry in re.split(r"[;\s]+", archs.strip()) if entry)


def _runs(entry: str, capability: tuple[int, int]) -> bool:
    match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
    if match is None:
        raise ValueError(f"archs must hold versions like 9.0 or 12.0+PTX, got {entry!r}")
    version = int(match[1]), int(match[2])
    if match[3] == "a":
        return version == capability
    same_major = version[0] == capability[0] and version[1] <= capability[1]
    return same_major or (match[4] is not None and not match[3] and version <= capability)
