"""`pointpeft info`: versions, which backends are live, and why one is missing."""

import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

OPTIONAL = ("triton", "peft", "plyfile", "laspy", "tensorboard", "huggingface_hub", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Info:
    """Print versions, the live backends and their architectures, and what to do about a missing one."""

    json: bool = False
    """Print one JSON object instead of lines."""


def collect() -> dict[str, Any]:
    """Everything `pointpeft info` prints, as plain values."""
    import torch

    from pointpeft import __version__
    from pointpeft.ops.core import library

    facts: dict[str, Any] = {
        "pointpeft": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }
    try:
        from pointpeft import _C
    except ImportError as error:
        facts["build"] = {"missing": str(error)}
    else:
        facts["build"] = {
            "compiler": _C.compiler,
            "nvcc": _C.nvcc or None,
            "cuda_archs": [arch for arch in _C.cuda_archs.split(";") if arch],
            "oldest_torch": _C.torch_target,
            "cpu_level": _C.cpu_level(),
            "cpu_level_supported": _C.supported_cpu_level(),
        }
    facts["backends"] = {
        device: {"live": status.live, "reason": status.reason, "remedy": status.remedy}
        for device, status in ((device, library.status_of(device)) for device in library.LIBRARIES)
    }
    facts["operations_answer_with"] = {device: library.backend(device) for device in library.LIBRARIES}
    facts["environment"] = {
        name: os.environ[name] for name in sorted(os.environ) if name.startswith(("POINTPEFT_", "TORCH_CUDA_ARCH"))
    }
    facts["optional_packages"] = {name: _version(name) for name in OPTIONAL}
    return facts


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run(command: Info) -> int:
    """Prints the facts; 0 always: a missing backend is an answer, not a failure."""
    facts = collect()
    if command.json:
        print(json.dumps(facts, indent=2))
        return 0
    build = facts.pop("build")
    backends = facts.pop("backends")
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {entry if entry else '-'}" for key, entry in value.items()) or "-"
        print(f"{name.replace('_', ' '):24} {value if value is not None else '-'}")
    for name, value in build.items():
        value = " ".join(value) if isinstance(value, list) else value
        print(f"{'build: ' + name.replace('_', ' '):24} {value or '-'}")
    for device, status in backends.items():
        print(f"{'backend: ' + device:24} {'live' if status['live'] else 'missing'}: {status['reason']}")
        if status["remedy"]:
            print(f"{'':24} -> {status['remedy']}")
    return 0
