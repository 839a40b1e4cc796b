"""Weight files: read without running code, written to a temporary name and renamed."""

import errno
import hashlib
import json
import os
import pickle
import re
import secrets
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# A .pth file that unpacks to more than so many times its size is made to fill the memory.
MOST_GROWTH = 20
_MAX_JSON = 8 << 20  # bytes of a file that describes a model or a run; lists of a byte or two each take fifty times it
_MAX_HEADER = 8 << 20  # bytes of the table of a .safetensors file, a hundred a tensor
# Where published files keep their tensors among optimiser state and metrics.
CONTAINERS = ("base_model", "state_dict", "model", "model_state_dict")


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a .safetensors file, or of a .pth file read without unpickling code, and the former's metadata.

    Raises:
        ValueError: No such file, not of that form, or a pickle that holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weight file at {path}")
    if path.suffix == ".safetensors":
        require_header(path)
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        size = _unpacked_size(path)
    except Exception as error:  # zipfile raises whatever a damaged table of contents leads it to
        raise ValueError(f"{path} is not a readable PyTorch file, or damaged: {error}") from error
    have = path.stat().st_size
    if size > MOST_GROWTH * have:  # torch does not compress
        raise ValueError(f"{path} is refused: it would unpack to {size} bytes, {size // have} times its size")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can ask for anything: IndexError, KeyError, ...
        lines = [line.strip() for line in str(error).splitlines()]
        blocked = [line for line in lines if "GLOBAL" in line]
        if not isinstance(error, pickle.UnpicklingError) or not blocked:
            line_of_error = next((line for line in lines if "Unsupported" in line), lines[0] if lines else "")
            reason = _first_sentence(line_of_error) or f"it ends early ({type(error).__name__})"
            raise ValueError(f"{path} is not a readable PyTorch file, or damaged: {reason}") from error
        raise ValueError(
            f"{path} is refused, because more than tensors and plain values would have to be unpickled, which can run "
            f"code: {_first_sentence(blocked[0])}. Where you trust it, keep only its tensors and save those."
        ) from error
    return tensors_of(content, str(path)), {}


def require_header(path: Path) -> None:
    """Refuses a .safetensors file whose header is longer than the file, or implausibly long.

    Raises:
        ValueError: Names the file.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(
            f"{path} is not a readable safetensors file: its header has {length} bytes, {max(0, size - 8)} are there"
        )
    if length > _MAX_HEADER:
        raise ValueError(f"{path} is refused: its header has {length} bytes, at most {_MAX_HEADER} are read")


def read_json(path: Path) -> Any:
    """The content of a JSON file of bounded size.

    Raises:
        ValueError: It is too large, not UTF-8, not JSON or nested deeper than Python follows; does not name the file.
    """
    size = path.stat().st_size
    if size > _MAX_JSON:
        raise ValueError(f"it has {size} bytes, at most {_MAX_JSON} are read")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unpacked_size(path: Path) -> int:
    """Unpacked size that a zip archive declares; 0 for another file."""
    if not zipfile.is_zipfile(path):
        return 0
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _first_sentence(text: str) -> str:
    """The first sentence of an error, without torch's advice to load the file regardless."""
    return text.removeprefix("WeightsUnpickler error: ").split(". ")[0].rstrip(".")


def tensors_of(content: Any, what: str) -> dict[str, Tensor]:
    """The state dict inside a published file's content, without the `module.` that data-parallel training leaves.

    Raises:
        ValueError: There is none.
    """
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise ValueError(f"{what} must hold a dict of tensors, got {type(content).__name__}")
    tensors = {re.sub(r"(^|\.)module\.", r"\1", str(key)): v for key, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(
            f"{what} holds no tensors under {', '.join(CONTAINERS)} or at the top, got {list(content)[:8]}"
        )
    return tensors


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary name beside `path`, makes it durable, renames it and makes that durable, too.

    The temporary file is a new one of a random name, so that no link can lead the write elsewhere.

    Raises:
        OSError: The disk is full, the folder cannot be written to, and the like; names `path`, which stays as it was.
    """
    temporary = None
    try:
        temporary, mode = _new_file_beside(path)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)  # safetensors puts a file in its place that others may not read
        os.replace(temporary, path)
        sync_folder(path.parent)
    except Exception as error:
        cause = _os_error(error)
        if cause is None:
            raise
        raise OSError(cause.errno, f"cannot be written, {cause.strerror}", str(path)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _new_file_beside(path: Path) -> tuple[Path, int]:
    """A new empty file, with the permissions that the user's mask gives."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except FileExistsError:
            continue
        try:
            return temporary, stat.S_IMODE(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes a folder's entries durable: a renamed file is there after a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without this call, which makes renames durable by itself
            raise
    finally:
        os.close(descriptor)


def save_tensors(tensors: dict[str, Tensor], path: Path, facts: dict[str, str]) -> None:
    """Writes a safetensors file whose bytes depend on its content alone: the library shuffles the facts.

    Args:
        tensors: Contiguous, on the CPU.
        path: The file.
        facts: Its metadata.
    """
    save_file(tensors, path, facts)
    with open(path, "rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) != size:
            raise RuntimeError(f"the header of {path} has {size} bytes, sorted {len(text)}")
        file.seek(8)
        file.write(text)


def _os_error(error: BaseException | None) -> OSError | None:
    """The system's error among those that led to `error`: a library may cover it with its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        if match := re.search(r"\(os error (\d+)\)", str(error)):  # as safetensors reports it
            return OSError(int(match[1]), os.strerror(int(match[1])))
        error = error.__cause__ or error.__context__
    return None


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON, atomically."""
    write_atomically(path, lambda p: p.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"))
