"""Few labels: what simple classifiers make of a few clouds per class, beside `pointpeft finetune`.

python -m benchmarks.few_labels furniture 'few_shot:DATA:16way10shot:0@{seed}' --methods dapt --from-linear --csv FILE

`{seed}` in a source is replaced by each seed. It needs scikit-learn: pip install 'pointpeft[bench]'. All see the same
clouds, 1024 points each, turned y up; the embedding is what the published classifier reads of the frozen backbone.
"""

import argparse
import csv
import io
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pointpeft import create_model
from pointpeft.data import load_dataset
from pointpeft.heads.shape_descriptors import shape_descriptors
from pointpeft.runs.baselines import kernel_outputs, measure_baselines
from pointpeft.runs.config import FinetuneConfig
from pointpeft.runs.finetune import finetune
from pointpeft.tasks.batches import Clouds
from pointpeft.tasks.inference import forward_all
from pointpeft.training.run_folder import write_text

BACKBONE, POINTS, BATCH = "point_mae_tiny", 1024, 64
CPU = torch.device("cpu")
OURS = "pointpeft "
FROM_LINEAR: dict[str, Any] = {
    "classifier": "kernel",
    "select": "cv",
    "batch_size": 16,
    "epochs": 8,
    "warmup_epochs": 1,
    "min_steps": 160,
}
Split = tuple[np.ndarray, np.ndarray]


def simple(seed: int) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Name -> what it reads, and how it is made."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    def svm() -> Any:
        return make_pipeline(StandardScaler(), SVC(C=10))

    def forest() -> Any:
        return RandomForestClassifier(300, random_state=seed)

    return {
        "logistic regression, embedding": (
            "embedding",
            lambda: make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)),
        ),
        "SVM, embedding": ("embedding", svm),
        "forest, shape": ("shape", forest),
        "SVM, shape": ("shape", svm),
        "forest, embedding and shape": ("both", forest),
        "SVM, embedding and shape": ("both", svm),
    }


def measure(source: str, seed: int, methods: list[str], from_linear: bool = False) -> Iterator[tuple[str, float]]:
    """The accuracy on the test clouds of everything on one source."""
    train, test = (Clouds(load_dataset(source, split), POINTS) for split in ("train", "test"))
    outputs: dict[str, Any] = {"num_classes": len(train.classes), "up_axis": train.up_axis}
    embedding = create_model(BACKBONE, "linear", checkpoint=BACKBONE, **outputs).eval()
    frozen = create_model(BACKBONE, "linear", checkpoint=BACKBONE, **outputs, **kernel_outputs([train]))
    features: dict[str, list[np.ndarray]] = {"embedding": [], "shape": []}
    for clouds in (train, test):
        fixed = clouds.fixed()
        features["embedding"].append(forward_all(embedding.forward_features, fixed, BATCH, CPU).numpy())
        features["shape"].append(
            forward_all(lambda x: shape_descriptors(embedding.turned(x)), fixed, BATCH, CPU).numpy()
        )
    features["both"] = [np.concatenate(pair, 1) for pair in zip(features["embedding"], features["shape"], strict=True)]
    labels = [clouds.labels.numpy() for clouds in (train, test)]
    for name, (reads, make) in simple(seed).items():
        fitted = make().fit(features[reads][0], labels[0])
        yield name, float((fitted.predict(features[reads][1]) == labels[1]).mean())
    for name, accuracy in measure_baselines(frozen, [train], test, BATCH, CPU).summary().items():
        yield {"frozen": f"{OURS}linear"}.get(name, name.replace("_", " ")), accuracy
    options = FROM_LINEAR if from_linear else {}
    for method in methods:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "run"
            config = FinetuneConfig(source, method=method, seed=seed, probe=False, quiet=True, output=output, **options)
            yield (
                OURS + method + (", from linear" if from_linear else ""),
                float(finetune(config).test["overall_accuracy"]),
            )


def table(rows: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over seeds by source, and the mean over sources, the best first."""
    sources = list(dict.fromkeys(row["source"] for row in rows))
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row["what"], {}).setdefault(row["source"], []).append(100 * float(row["accuracy"]))
    means = {what: statistics.fmean(map(statistics.fmean, cells.values())) for what, cells in found.items()}
    lines = ["| | " + " | ".join(sources) + " | mean |", "|---|" + "---:|" * (len(sources) + 1)]
    for what in sorted(found, key=lambda what: -means[what]):
        cells = [_cell(found[what].get(source, [])) for source in sources]
        mean = f"{means[what]:.1f}" if len(found[what]) == len(sources) else "-"
        lines.append(f"| {what} | " + " | ".join([*cells, mean]) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints a table, and writes a row for every accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE[=NAME]", help="labelled clouds, as for pointpeft finetune"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=[], help="adapted with default options; minutes each")
    parser.add_argument(
        "--from-linear", action="store_true", help="adapt from the classifier that linear solves, cross-validated"
    )
    parser.add_argument("--csv", type=Path, help="receives a row for every accuracy")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for given in options.sources:
        source, _, name = given.partition("=")
        for seed in range(options.seeds):
            for what, accuracy in measure(source.format(seed=seed), seed, options.methods, options.from_linear):
                rows.append({"source": name or source, "seed": seed, "what": what, "accuracy": round(accuracy, 4)})
    if options.csv is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.csv, text.getvalue())
    print(table(rows))


if __name__ == "__main__":
    main()
