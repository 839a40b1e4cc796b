"""Pages that are written from the code and from files of results: what `conf.py` puts into docs/generated."""

import csv
import inspect
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from datetime import datetime
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
RESULTS, BENCHMARKS = DOCS / "results", DOCS.parent / "benchmarks"
FAMILIES = {
    "adapters": "Adapters: small networks beside or behind the frozen layers",
    "prompts": "Prompts: tokens, keys or values added to those of the cloud",
    "reparameterized": "Re-parameterised weights: updates of low rank, scales, rotations; most fold into the backbone",
    "selective": "A choice of the existing parameters",
}
CLASSES = 15  # of the head at which parameters are counted: those of ScanObjectNN


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A list table in reStructuredText; `right` names the columns of numbers, which are set to the right."""
    lines = [".. list-table::", "   :header-rows: 1", *(["   :class: numbers"] if right else []), ""]
    for row in (head, *rows):
        for i, cell in enumerate(row):
            lines.append(f"   {'* -' if i == 0 else '  -'} {cell}".rstrip())
    return "\n".join(lines) + "\n"


def section(title: str, mark: str) -> str:
    """A title with its underline."""
    return f"{title}\n{mark * len(title)}\n"


def code(text: str) -> str:
    """Single backquotes of our docstrings as literals of reStructuredText; bars and stars as they are."""
    text = re.sub(r"(?<![`:])`([^`]+)`(?!`)", r"``\1``", text)
    parts = text.split("``")
    parts[::2] = [re.sub(r"([|*\\]|_\b)", r"\\\1", part) for part in parts[::2]]
    return "``".join(parts)


# Methods


def paragraphs(kind: type) -> list[str]:
    """Paragraphs of a class's docstring before its first section, each in one line."""
    text = re.split(r"\n\s*(?:Attributes|Args|Source|Returns):", inspect.cleandoc(kind.__doc__ or ""))[0]
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def source(kind: type) -> str | None:
    """The publication that a docstring names."""
    found = re.search(r"Source: (.*?)(?:\n\s*\n|\Z)", inspect.cleandoc(kind.__doc__ or ""), re.S)
    return " ".join(found[1].split()) if found else None


def equations(kind: type) -> list[str]:
    """Sentences of the docstrings of a method's modules that hold an equation, the method's own first."""
    from torch import nn

    from pointpeft.methods import Method

    module = inspect.getmodule(kind)
    parts = [
        part
        for part in vars(module).values()
        if inspect.isclass(part)
        and issubclass(part, nn.Module)
        and not issubclass(part, Method)
        and part.__module__.startswith("pointpeft.methods.")
        and not part.__module__.endswith("hf_peft")
    ]
    parts.sort(key=lambda part: part.__module__ != kind.__module__)  # the method's own before those it borrows
    found: list[str] = []
    for part in (kind, *parts):
        for paragraph in paragraphs(part):
            if re.search(r"←| = |becomes \w \+", paragraph) and paragraph not in found:
                found.append(paragraph)
    return found


def options(kind: Any) -> list[tuple[str, str, str]]:
    """Name, default and meaning of each option of a method."""
    meanings: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        text = inspect.cleandoc(part.__doc__ or "")
        block = re.search(r"Attributes:\n((?:    .*\n?|\n)+)", text)
        if block:
            for name, said in re.findall(r"^    (\w+): ((?:.*\n?)(?:        .*\n?)*)", block[1], re.M):
                meanings[name] = " ".join(said.split())
    defaults = ((field.name, field.default) for field in fields(kind))
    return [(name, "" if value is MISSING else repr(value), meanings.get(name, "")) for name, value in defaults]


def family(kind: type) -> str:
    """The folder of a method's file."""
    return kind.__module__.split(".")[2]


def counts(names: Sequence[str]) -> dict[str, dict[str, tuple[int, int, int] | str]]:
    """By method and backbone: trained parameters, those without the head, and all; or why there are none."""
    from pointpeft import create_model

    counted: dict[str, dict[str, tuple[int, int, int] | str]] = {}
    for name in names:
        for backbone in backbones():
            try:
                model = create_model(backbone, name, CLASSES, device="meta")
            except (ImportError, ValueError) as error:
                counted.setdefault(name, {})[backbone] = str(error)
                continue
            total = sum(parameter.numel() for parameter in model.parameters())
            trained = model.trainable_parameters()
            counted.setdefault(name, {})[backbone] = (trained, model.trainable_parameters(head=False), total)
    return counted


def backbones() -> list[str]:
    """The published size of each family of backbones."""
    from pointpeft.backbones.registry import backbone_families

    return sorted(backbone_families())


def methods() -> str:
    """All methods by family: equations, options, counts, published numbers."""
    from pointpeft.methods import method_class, method_names

    counted = counts(method_names())
    published = read_rows("published.csv")
    lines: list[str] = []
    for folder, title in FAMILIES.items():
        names = [name for name in method_names() if family(method_class(name)) == folder]
        lines += [section(title, "-"), summary(names, counted), ""]
        for name in names:
            lines += one_method(name, counted[name], [row for row in published if row["method"] == name])
    return "\n".join(lines)


def summary(names: Sequence[str], counted: dict[str, dict[str, Any]]) -> str:
    """A row per method: what it trains at the published size of Point-MAE."""
    from pointpeft.methods import method_class

    rows = []
    for name in names:
        numbers = counted[name]["point_mae"]
        cells = ["", "", ""] if isinstance(numbers, str) else [f"{numbers[0]:,}", f"{numbers[1]:,}"]
        if not isinstance(numbers, str):
            cells.append(f"{numbers[0] / numbers[2]:.1%}")
        merges = "yes" if method_class(name).mergeable else ""
        rows.append([f":ref:`{name} <method-{name}>`", *cells, merges, code(paragraphs(method_class(name))[0])])
    return table(["method", "trained", "without head", "of all", "merges", "what it is"], rows, right=(1, 2, 3))


def one_method(name: str, counted: dict[str, Any], published: Sequence[dict[str, str]]) -> Iterator[str]:
    """The section of one method."""
    from pointpeft.methods import method_class

    kind = method_class(name)
    yield f".. _method-{name}:\n"
    yield section(f"``{name}``", "~")
    found = equations(kind)
    for paragraph in paragraphs(kind):
        if paragraph not in found:
            yield code(paragraph) + "\n"
    if found:
        yield "Equations:\n"
        yield from (f"- {code(equation)}" for equation in found)
        yield ""
    if source(kind):
        yield f"Source: {code(source(kind) or '')}\n"
    rows = [
        [f"``{option}``", f"``{default}``" if default else "", code(said)] for option, default, said in options(kind)
    ]
    yield table(["option", "default", "meaning"], rows)
    refused = {backbone: why for backbone, why in counted.items() if isinstance(why, str)}
    cells = [
        [f"``{backbone}``", f"{numbers[0]:,}", f"{numbers[1]:,}", f"{numbers[0] / numbers[2]:.1%}"]
        for backbone, numbers in counted.items()
        if not isinstance(numbers, str)
    ]
    if cells:
        yield table(["backbone", "trained", "without head", "of all"], cells, right=(1, 2, 3))
    yield from (f"``{backbone}``: {code(why)}\n" for backbone, why in refused.items())
    if published:
        yield published_table(published)


def published_table(rows: Sequence[dict[str, str]]) -> str:
    """Published test accuracies; those of different augmentations are not comparable."""
    columns = ("OBJ_BG", "OBJ_ONLY", "PB_T50_RS", "ModelNet40")
    cells = [
        [f"``{row['backbone']}``", row["augmentation"], *(row[name] for name in columns), row["read in"]]
        for row in rows
    ]
    return "Published test accuracy, in percent, not measured here:\n\n" + table(
        ["backbone", "augmentation", *(name.replace("_", r"\_") for name in columns), "read in"], cells, (2, 3, 4, 5)
    )


# Results


def read_rows(name: str) -> list[dict[str, str]]:
    """Rows of a file of docs/results by column."""
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def all_methods() -> str:
    """The comparison of all methods on ten clouds of each class and on the furniture."""
    rows = []
    for row in read_rows("methods.csv"):
        accuracy = {
            data: f"{row[f'{data} mean (%)']} ± {row[f'{data} std (%)']} %"
            for data in ("ModelNet40", "PSB", "furniture")
        }
        rows.append(
            [
                f"``{row['method']}``",
                f"{int(row['trained']):,}",
                f"{row['share of all (%)']} %",
                accuracy["ModelNet40"],
                row["ModelNet40 p"] or "–",
                accuracy["PSB"],
                row["PSB p"] or "–",
                accuracy["furniture"],
                f"{row['ModelNet40 train loss']}, {row['PSB train loss']}",
                f"{row['memory (MiB)']} MiB",
                row["clouds/s"],
            ]
        )
    head = [
        "method",
        "trained",
        "of all",
        "ModelNet40",
        "p",
        "PSB",
        "p",
        "furniture",
        "train loss",
        "memory",
        "clouds/s",
    ]
    return table(head, rows, right=tuple(range(1, len(head))))


def full_training_sets() -> str:
    """DAPT, its linear probe and training from random weights on whole training sets."""
    rows = [
        [
            row["data"],
            f"``{row['method']}``" if row["method"].startswith("-") else row["method"],
            *list(row.values())[2:],
        ]
        for row in read_rows("full_training_sets.csv")
    ]
    return table(
        ["data", "method", "trained", "seeds", "test accuracy", "mean class accuracy"], rows, right=(2, 3, 4, 5)
    )


def few_labels() -> str:
    """Simple classifiers beside ours on ten clouds of each class: means over seeds, the best first."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in read_rows("few_labels.csv"):
        found.setdefault(row["what"], {}).setdefault(row["source"], []).append(100 * float(row["accuracy"]))
    sources = list(dict.fromkeys(source for cells in found.values() for source in cells))
    means = {what: statistics.fmean(map(statistics.fmean, cells.values())) for what, cells in found.items()}
    rows = []
    for what in sorted(found, key=lambda what: -means[what]):
        cells = [found[what].get(source, []) for source in sources]
        shown = [f"{statistics.fmean(cell):.1f} ± {statistics.stdev(cell):.1f} %" if cell else "–" for cell in cells]
        rows.append([what, *shown, f"{means[what]:.1f} %" if all(cells) else "–"])
    return table(["", *sources, "mean"], rows, right=tuple(range(1, len(sources) + 2)))


# Benchmarks


def benchmarks() -> str:
    """The overview and the tables of methods of benchmarks/RESULTS.md, and where each file of results comes from."""
    lines = [provenance(), ""]
    for title, body in re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", (BENCHMARKS / "RESULTS.md").read_text(), re.S | re.M):
        intro, *parts = re.split(r"^### ", body, flags=re.M)
        lines += [section(f"``{title}``", "-"), code(intro.strip()), ""]
        for part in parts:
            name, _, rest = part.partition("\n")
            if name in ("Overview", "Growth") or " of every method" in name:
                lines += [section(name, "~"), from_markdown(rest), ""]
    return "\n".join(lines)


def provenance() -> str:
    """Commit, date and machine of each file of benchmark results."""
    rows = []
    for path in sorted((BENCHMARKS / "results").glob("*.json")):
        report = json.loads(path.read_text())
        if "benchmarks" not in report:
            continue
        machine, commit = report["machine_info"], report.get("commit_info", {})
        processor = machine.get("cpu", {}).get("brand_raw", "unknown")
        day = datetime.fromisoformat(report["datetime"]).date()
        device = f"{processor}, {machine.get('threads', '?')} threads" + (
            f", {machine['gpu']}" if machine.get("gpu") else ""
        )
        rows.append([f"``{path.name}``", f"{day}", f"``{commit.get('id', 'unknown')[:9]}``", code(device)])
    return table(["file", "measured on", "commit", "machine"], rows)


def from_markdown(text: str) -> str:
    """The Markdown tables of a text as list tables, the rest as it is."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if not lines[0].startswith("|"):
            out.append(code(block) + "\n")
            continue
        rows = [[code(cell.strip()) for cell in line.strip().strip("|").split("|")] for line in lines]
        out.append(table(rows[0], rows[2:], right=(1,)))
    return "\n".join(out)


def reliability() -> str:
    """The table of the last long runs."""
    text = (DOCS.parent / "tests" / "hardening" / "RELIABILITY.md").read_text(encoding="utf-8")
    return from_markdown(text[text.index("| command |") :].split("\n\n")[0])


PAGES = {
    "methods": methods,
    "all_methods": all_methods,
    "few_labels": few_labels,
    "full_training_sets": full_training_sets,
    "benchmarks": benchmarks,
    "reliability": reliability,
}


def write(folder: Path) -> None:
    """Writes the parts of pages that `.. include::` names; a file that would not change is left alone."""
    folder.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        path, text = folder / f"{name}.inc", page()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
