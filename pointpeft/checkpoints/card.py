"""The model card of an adapter: how it was trained, what it reached, and how that was measured."""

from pathlib import Path
from typing import Any

import yaml

from pointpeft.escapes import markdown_text, one_line
from pointpeft.model import PointModel
from pointpeft.tasks.base import heading, task_class
from pointpeft.tasks.classification.task import Classification

SCORES = (
    ("overall_accuracy", "accuracy"),
    ("mean_class_accuracy", "balanced_accuracy"),
    ("instance_miou", "mean_iou"),
    ("class_miou", "mean_iou"),
    ("miou", "mean_iou"),
    ("point_accuracy", "accuracy"),
)
PROBE = "test clouds, linear probe of the backbone"
SPLITS = {"test": "test clouds", "validation": "validation clouds", "linear_probe": PROBE}
# Entries of the metadata that have a sentence or a table of their own; the others are rows of the first table.
WITH_SECTIONS = ("selection", "votes", "seeds", "augmentation", *SPLITS)


def model_card(model: PointModel, config: dict[str, Any]) -> str:
    """Markdown with the hub's YAML header.

    Args:
        model: The adapted model.
        config: What `adapter_config.json` will hold; its `metadata` are the facts that a run gives.
    """
    facts = config["metadata"]
    title = f"{model.method.name} on {model.backbone_name}"
    trained, total = model.trainable_parameters(), sum(p.numel() for p in model.parameters())
    rows = {
        "trainable parameters": f"{trained:,} of {total:,} ({100 * trained / total:.2f} %)",
        "without the head": f"{model.trainable_parameters(head=False):,}",
        "classes": model.num_classes,
        "pre-training": config["base_model_name_or_path"] or "none: the weights are all in this folder",
    }
    plain = {key: value for key, value in facts.items() if not isinstance(value, (dict, list))}
    rows |= {key.replace("_", " "): value for key, value in plain.items() if key not in WITH_SECTIONS}
    sections = [
        "---\n" + yaml.safe_dump(_header(title, facts), sort_keys=False) + "---",
        f"# {markdown_text(title)}",
        _table(("", ""), rows.items()),
        *_results(facts),
        *_protocol(facts),
        *([f"Classes: {', '.join(map(markdown_text, facts['classes']))}."] if facts.get("classes") else []),
        '```python\nfrom pointpeft.checkpoints import load_adapter\n\nmodel = load_adapter("this folder")\n```',
    ]
    return "\n\n".join(sections) + "\n"


def _header(title: str, facts: dict[str, Any]) -> dict[str, Any]:
    header: dict[str, Any] = {
        "library_name": "pointpeft",
        "tags": ["point-cloud", _task(facts), "parameter-efficient-fine-tuning"],
    }
    test = facts.get("test")
    if isinstance(test, dict):
        data = one_line(facts.get("data", "unnamed clouds"))
        metrics = [
            {"type": metric, "name": f"test {heading(name)}", "value": test[name]}
            for name, metric in SCORES
            if name in test
        ]
        task = {"type": _task(facts), "name": _task(facts).replace("cloud-", "cloud ")}
        result = {"task": task, "dataset": {"type": Path(data).name, "name": data}, "metrics": metrics}
        header["model-index"] = [{"name": title, "results": [result]}]
    return header


def _task(facts: dict[str, Any]) -> str:
    return task_class(facts.get("task", Classification.name)).hub_tag


def _results(facts: dict[str, Any]) -> list[str]:
    measured = {split: facts[split] for split in SPLITS if isinstance(facts.get(split), dict)}
    if not measured:
        return []
    names = [name for name, _ in SCORES if any(name in entry for entry in measured.values())]
    rows = [
        (SPLITS[split], entry.get("clouds", "-"), *(_percent(entry.get(name)) for name in names))
        for split, entry in measured.items()
    ]
    return ["## Results", _table(("on", "clouds", *map(heading, names)), rows)]


def _protocol(facts: dict[str, Any]) -> list[str]:
    lines = []
    if isinstance(facts.get("selection"), dict):
        epoch, meaning = facts["selection"]["epoch"], facts["selection"]["meaning"]
        lines.append(f"- Weights of epoch {epoch}: {markdown_text(meaning)}.")
    if "seeds" in facts:
        lines.append(f"- Seeds: {', '.join(map(markdown_text, facts['seeds']))}.")
    if "augmentation" in facts:
        lines.append(f"- Augmentation in training: {markdown_text(facts['augmentation'])}.")
    if "votes" in facts:
        lines.append(
            "- No vote: one pass per cloud." if facts["votes"] == 1 else f"- Vote over {facts['votes']} passes."
        )
    return ["## How this was measured", "\n".join(lines)] if lines else []


def _percent(value: Any) -> str:
    return "-" if value is None else f"{value:.2%}"


def _table(head: tuple[Any, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(markdown_text(cell) for cell in line)} |" for line in lines)
