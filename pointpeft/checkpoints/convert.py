"""Published files to adapters and back, bit for bit."""

from pathlib import Path
from typing import Any

import torch

from pointpeft.checkpoints.adapter import load_adapter, save_adapter
from pointpeft.checkpoints.published import from_published, save_published
from pointpeft.checkpoints.yaml_files import load_yaml
from pointpeft.files import read_weights
from pointpeft.methods import method_class, method_names
from pointpeft.model import PointModel

PUBLISHED_SUFFIXES = (".pth", ".pt")


def convert(
    source: str | Path,
    output: str | Path,
    config: str | Path | None = None,
    family: str | None = None,
    beside: str | Path | None = None,
) -> PointModel:
    """Writes a published file as an adapter folder, or an adapter folder as a published file.

    Tensors are copied, never computed with, so that going there and back gives the same bits.

    Args:
        source: A .pth file, or a folder with an adapter.
        output: An adapter folder, or a .pth file; must not exist.
        config: For a .pth file: the YAML file whose `model:` section it was trained with.
        family: Of a .pth file, such as "dapt" or "point_mae+dapt"; None infers it.
        beside: A file with tensors that published files of the method lack, such as Point-PEFT's memory bank.

    Returns:
        The model that was read.

    Raises:
        ValueError: A source or output of the wrong kind, a missing configuration, or files that do not fit each other.
    """
    source, output = Path(source), Path(output)
    if output.exists():
        raise ValueError(f"output {output} exists already; give another name")
    if source.is_dir():
        if output.suffix not in PUBLISHED_SUFFIXES:
            raise ValueError(f"output must end in {' or '.join(PUBLISHED_SUFFIXES)} for an adapter, got {output}")
        if config is not None or family is not None or beside is not None:
            raise ValueError("config, family and beside are for reading a published file; an adapter knows its own")
        model = load_adapter(source)
        save_published(model, output)
        return model
    if output.suffix:
        raise ValueError(f"output must be a folder for a published file, got {output}")
    if config is None:
        raise ValueError(f"config must name the YAML file that {source} was trained with")
    state, _ = read_weights(source)
    model = from_published(read_model_section(config), state, family, **(_beside(beside) if beside else {}))
    save_adapter(model, output, {"converted from": source.name, "configuration": Path(config).name})
    return model


def read_model_section(path: str | Path) -> dict[str, Any]:
    """The `model:` section of a published YAML file.

    Raises:
        ValueError: No such file, not YAML, or without that section.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config names no file: {path}")
    try:
        content = load_yaml(path)
    except ValueError as error:  # such as a date in a 13th month
        raise ValueError(f"config {path} is not YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"config {path} has no section `model:`")
    return content["model"]


def _beside(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file under the names that a method knows; a bare tensor has the only name there is."""
    publications = [method_class(method).publication for method in method_names()]
    known = sorted({name for publication in publications for name in publication.separate_tensors})
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"beside {path} is not a readable PyTorch file of tensors: {error}") from error
    if isinstance(content, torch.Tensor) and len(known) == 1:
        content = {known[0]: content}
    if not isinstance(content, dict) or not content or set(content) - set(known):
        raise ValueError(f"beside {path} must hold tensors named {', '.join(known)}")
    return content
