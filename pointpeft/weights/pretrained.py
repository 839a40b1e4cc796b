"""Pre-trained backbones: those the package ships, by name, and files."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pointpeft.files import read_weights, save_tensors, sha256, write_atomically
from pointpeft.weights.names import LoadReport, load, renamed, strip_prefixes

FOLDER = Path(__file__).parent / "shipped"


def pretrained_names() -> list[str]:
    """Names of the pre-trained backbones that the package ships."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def find(name: str | Path) -> Path:
    """The file of a pre-trained backbone.

    Args:
        name: A shipped name, or the path of a .safetensors, .pth or .pt file.

    Raises:
        ValueError: Neither; the message lists the shipped names.
    """
    if str(name) in pretrained_names():
        return FOLDER / f"{name}.safetensors"
    path = Path(name)
    if path.is_file():
        return path
    shipped = ", ".join(pretrained_names()) or "none"
    raise ValueError(f"checkpoint {str(name)!r} is neither a file nor a shipped pre-training; shipped: {shipped}")


def save_backbone(backbone: Any, path: str | Path, name: str, metadata: dict[str, Any] | None = None) -> None:
    """Writes a backbone's tensors under our names, with its configuration, for `load_backbone`.

    Args:
        backbone: A plain backbone, before a method is attached.
        path: A .safetensors file.
        name: Its registered name.
        metadata: Facts about its training, ready for JSON.
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in backbone.state_dict().items()}
    header = {"format": "pt", "backbone": name, "fields": json.dumps(asdict(backbone.config))}
    header["metadata"] = json.dumps(metadata or {})
    write_atomically(Path(path), lambda temporary: save_tensors(tensors, temporary, header))


def load_backbone(backbone: Any, checkpoint: str | Path) -> LoadReport:
    """Fills a plain backbone from a pre-training, ours or a published one.

    Args:
        backbone: Before a method is attached.
        checkpoint: See `find`.

    Returns:
        What was loaded and what the file lacked, in the backbone's own names.

    Raises:
        ValueError: No such file, or one that does not fit: the message lists what is missing, unexpected or of another
            shape.
    """
    path = find(checkpoint)
    state, _ = read_weights(path)
    names = {ours: ours for ours in backbone.state_dict()}
    if not any(ours in state for ours in names if ours.startswith("patch_embed.")):
        state = strip_prefixes(state, backbone.published_prefixes)
        names = {ours: renamed(f"backbone.{ours}", backbone.published_renames) for ours in names}
    report = load(
        backbone,
        state,
        names,
        optional=backbone.optional_keys,
        ignored=backbone.ignored_keys,
        what=f"checkpoint {path.name}",
    )
    return replace(report, sha256=sha256(path))
