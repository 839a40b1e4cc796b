"""Memory of this process: allocator settings, free memory, peak memory."""

import ctypes
import platform
from pathlib import Path

import psutil
import torch

# From malloc.h of glibc.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**30


def keep_freed_memory() -> bool:
    """Tells glibc to keep large blocks for the next step instead of giving them back to the system.

    A training step allocates the same blocks over and over; by default each one above 32 MiB comes fresh from the
    system, page by page. That costs more than the arithmetic of a small model. Other C libraries are left as they are.

    Returns:
        Whether this C library supports it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_THRESHOLD, _LARGEST) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def free_memory() -> int:
    """Bytes that can be taken without swapping, and without breaking the limit of a container."""
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        free = min(free, int(text) - int(used.read_text()))
    return max(0, free)


def peak_memory(device: torch.device) -> int:
    """Largest bytes in use so far: allocated on the GPU, or resident in this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
