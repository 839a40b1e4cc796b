"""Adapters on disk: what adaptation changed, and how to find the rest again."""

import reprlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pointpeft import __version__
from pointpeft.checkpoints.card import model_card
from pointpeft.checkpoints.earlier_names import upgraded_metadata
from pointpeft.checkpoints.size_limits import MAX_CLASSES, bounded_by_files, require_small_numbers
from pointpeft.create import create_from_config
from pointpeft.files import read_json, require_header, sha256, write_atomically, write_json
from pointpeft.model import PointModel
from pointpeft.weights.pretrained import find

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
FORMAT = 1


def adapter_state(model: PointModel) -> dict[str, Tensor]:
    """All of the model that its backbone's checkpoint does not give back.

    That is: what trains; what was fresh and does not train; and every buffer, since the statistics of the frozen
    tokenizer's BatchNorms move while training.
    """
    pretrained = model.origin.parameters if model.origin is not None else frozenset()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad and name in pretrained}
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in frozen}


def save_adapter(model: PointModel, folder: str | Path, metadata: dict[str, Any] | None = None) -> None:
    """Writes an adapter: adapter_model.safetensors, adapter_config.json and README.md.

    Args:
        model: Not merged.
        folder: Made if missing. Each file is written to a temporary name and renamed; the configuration comes last and
            holds the checksum of the weights, so a half-written folder is recognised.
        metadata: Facts about the training, ready for JSON; None for those of the adapter that the model was loaded
            from, as long as its weights are what they were then.

    Raises:
        ValueError: The model is merged.
    """
    if model.merged:
        raise ValueError("a merged model cannot be saved as an adapter; save it before merge(), which can be repeated")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter_state(model).items()}
    write_atomically(folder / WEIGHTS, lambda path: save_file(tensors, path, {"format": "pt"}))
    digest = sha256(folder / WEIGHTS)
    if metadata is None and model.loaded is not None and model.loaded[0] == digest:
        metadata = model.loaded[1]
    origin = model.origin
    config = {
        "peft_type": "POINTPEFT",
        "format": FORMAT,
        "pointpeft_version": __version__,
        "base_model_name_or_path": None if origin is None else origin.checkpoint,
        "base_model_sha256": None if origin is None else origin.sha256,
        "weights_sha256": digest,
        **model.config,
        "metadata": metadata or {},
    }
    write_atomically(folder / CARD, lambda path: path.write_text(model_card(model, config), encoding="utf-8"))
    write_json(folder / CONFIG, config)


def load_adapter(
    folder: str | Path, checkpoint: str | Path | None = None, *, device: Any = None, dtype: torch.dtype | None = None
) -> PointModel:
    """The model that `save_adapter` wrote, in evaluation mode.

    Args:
        folder: The adapter.
        checkpoint: The backbone's pre-training, where it has moved; None for what the adapter names.
        device: Where the weights live.
        dtype: Of the weights.

    Raises:
        ValueError: Not an adapter, a broken or half-written one, or another pre-training than the adapter was made on.
    """
    folder = Path(folder)
    config = read_config(folder)
    origin = checkpoint if checkpoint is not None else config["base_model_name_or_path"]
    if config["base_model_sha256"] is None:
        if checkpoint is not None:
            raise ValueError(f"the adapter in {folder} holds its backbone itself; give no checkpoint")
    else:
        try:
            path = find(origin)
        except ValueError as error:
            raise ValueError(f"the adapter in {folder} needs its backbone's pre-training: {error}") from error
        actual, expected_sum = sha256(path), config["base_model_sha256"]
        if actual != expected_sum:
            raise ValueError(
                f"checkpoint {path} is not the one that the adapter in {folder} was made on: "
                f"sha256 {actual[:16]}..., needs {expected_sum[:16]}..."
            )
    weights = folder / WEIGHTS
    if not weights.is_file() or sha256(weights) != config["weights_sha256"]:
        raise ValueError(f"{weights} is missing or not the file that {CONFIG} was written with")
    require_header(weights)
    try:
        state = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"{weights} is not a readable safetensors file: {error}") from error
    stored = weights.stat().st_size + (0 if config["base_model_sha256"] is None else find(origin).stat().st_size)
    try:
        with bounded_by_files(stored):
            model = create_from_config(config, origin, device=device, dtype=dtype)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} does not describe a model: {error}") from error
    _train_the_same(model, set(state))
    expected = set(adapter_state(model))
    if set(state) != expected:
        missing, unexpected = sorted(expected - set(state)), sorted(set(state) - expected)
        raise ValueError(
            f"{weights} does not fit its configuration: missing {missing[:8]}, unexpected {unexpected[:8]}"
        )
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit its configuration: {error}") from error
    model.loaded = (config["weights_sha256"], config["metadata"])
    return model.eval()


def _train_the_same(model: PointModel, saved: set[str]) -> None:
    """Freezes and unfreezes pre-trained parameters as they were in the saved model."""
    pretrained = model.origin.parameters if model.origin is not None else frozenset()
    for name, parameter in model.named_parameters():
        if name in pretrained:
            parameter.requires_grad_(name in saved)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of an adapter: backbone, method, number of classes, checksums, metadata.

    Raises:
        ValueError: There is none, or it is of another format.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(f"no adapter in {folder}: {CONFIG} is missing")
    try:
        config = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "POINTPEFT" or config.get("format") != FORMAT:
        raise ValueError(f"{path} must be a pointpeft adapter of format {FORMAT}")
    try:
        _require_entries(config)
    except ValueError as error:
        raise ValueError(f"{path} is refused: {error}") from error
    return config | {"metadata": upgraded_metadata(config["metadata"])}


def _require_entries(config: dict[str, Any]) -> None:
    for name in ("method", "backbone"):
        entry = config.get(name)
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ValueError(f"{name} must have a name and fields, got {reprlib.repr(entry)}")
        if not isinstance(entry.get("fields"), dict):
            raise ValueError(f"{name}.fields must be options by name, got {reprlib.repr(entry.get('fields'))}")
        require_small_numbers(entry["fields"], f"{name}.fields")
    for name, bound in (("num_classes", 1), ("num_categories", 0), ("num_support", 0)):
        count = config.get(name, bound)
        if isinstance(count, bool) or not isinstance(count, int) or not bound <= count <= MAX_CLASSES:
            raise ValueError(f"{name} must be an int from {bound} to {MAX_CLASSES}, got {reprlib.repr(count)}")
    for name in ("base_model_name_or_path", "base_model_sha256", "weights_sha256"):
        if name not in config or not isinstance(config[name], str | None):
            raise ValueError(f"{name} must be a text or null, got {reprlib.repr(config.get(name, 'nothing'))}")
    if not isinstance(config.get("metadata"), dict):
        raise ValueError(f"metadata must be facts by name, got {reprlib.repr(config.get('metadata'))}")
