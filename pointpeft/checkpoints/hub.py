"""Adapters on the Hugging Face hub, pushed through the mixin of its client.

`PointModel` does not inherit that mixin: its saving removes a `config.json` of the folder, which may be a run's, and
its loading asks the service for one, which fails offline.
"""

from pathlib import Path
from typing import Any

from pointpeft.checkpoints.adapter import CONFIG, WEIGHTS, load_adapter, save_adapter
from pointpeft.model import PointModel

REMEDY = "the hub needs its client, which is not installed: pip install 'pointpeft[hub]'"


def from_pretrained(
    name: str | Path,
    checkpoint: str | Path | None = None,
    *,
    device: Any = None,
    dtype: Any = None,
    **options: Any,
) -> PointModel:
    """The model of an adapter in a folder or on the hub, in evaluation mode.

    Args:
        name: A folder that `save_adapter` wrote, or "owner/name" on the hub.
        checkpoint: The backbone's pre-training, where the adapter names one that is not found.
        device: Where the weights live.
        dtype: Of the weights.
        options: Of the hub's client: revision, token, cache_dir, force_download, local_files_only.

    Raises:
        ValueError: No adapter there, or one that does not fit its pre-training.
        ImportError: The name is not a folder, and the hub's client is not installed.
    """
    options = {"checkpoint": checkpoint, "device": device, "dtype": dtype}
    if Path(name).is_dir():
        return load_adapter(Path(name), **options)
    if str(name).count("/") != 1 or str(name).startswith((".", "/")):
        raise ValueError(f"name must be a folder or 'owner/name' on the hub, got {str(name)!r}, which is neither")
    folder = _hub().snapshot_download(str(name), allow_patterns=[WEIGHTS, CONFIG], **options)
    return load_adapter(folder, **options)


def push_to_hub(model: PointModel, repo_id: str, metadata: dict[str, Any] | None = None, **options: Any) -> Any:
    """Uploads the adapter, with its model card.

    Args:
        model: Not merged.
        repo_id: "owner/name"; made if there is none.
        metadata: As in `save_adapter`.
        options: Of the hub's client: private, token, branch, create_pr, commit_message ...

    Returns:
        What the client tells of the commit.

    Raises:
        ValueError: The model is merged.
        ImportError: The hub's client is not installed.
    """
    if model.merged:
        raise ValueError("a merged model cannot be pushed as an adapter; push it before merge(), which can be repeated")

    class Client(_hub().ModelHubMixin, library_name="pointpeft"):  # pyrefly: ignore[invalid-inheritance]: an extra
        def _save_pretrained(self, save_directory: Path) -> None:
            save_adapter(model, save_directory, metadata)

    return Client().push_to_hub(repo_id, **options)


def _hub() -> Any:
    """The hub's client, imported when needed, since it is an extra."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(REMEDY) from error
    return huggingface_hub
