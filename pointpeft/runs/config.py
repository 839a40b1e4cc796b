"""Options of the commands: each field is an argument of the command line and an entry of `config.json`.

Nothing heavy is imported here, so that `--help` answers at once.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

Augmentation = Literal["scale_translate", "isotropic", "rotate", "none"]
TaskAugmentation = Literal["auto", "scale_translate", "isotropic", "rotate", "scale_rotate", "none"]
Selection = Literal["val-best", "cv", "last", "test-best"]
Precision = Literal["float32", "bf16"]
Classifier = Literal["auto", "mlp", "kernel"]
Task = Literal["classification", "part_segmentation", "semantic_segmentation"]
Track = Literal["none", "wandb", "trackio"]
CloudsIn = Literal["auto", "memory", "disk"]


def registered_backbones() -> list[str]:
    """Names of the registered backbones, read from their source files: an import of the models takes seconds."""
    files = sorted(Path(__file__).parent.parent.joinpath("backbones").glob("*.py"))
    return [name for file in files for name in re.findall(r"@register_backbone\ndef (\w+)", file.read_text("utf-8"))]


Backbone = Annotated[
    str, arg(metavar="NAME", help=f"Architecture; NAME_tiny are small ones: {', '.join(registered_backbones())}.")
]
Options = Annotated[tuple[str, ...], UseAppendAction, arg(metavar="NAME=VALUE")]


@dataclass(frozen=True)
class FinetuneConfig:
    """Adapt a frozen, pre-trained backbone to labelled clouds and report an honest test accuracy.

    Without arguments it adapts the shipped `point_mae_tiny` to the embedded furniture data set, in minutes on a CPU.
    DATA may be a folder with one sub-folder of clouds per class, optionally below `train/` and `test/`, or shards.
    The run folder receives the adapter (the parameters that were trained), the log, the plots and `result.json`.
    """

    data: Annotated[str, Positional, arg(metavar="DATA")] = "furniture"
    """Folder or file of labelled clouds; `furniture` is embedded; `modelnet40:PATH`, `scanobjectnn:PATH[:variant]`."""
    task: Task = "classification"
    """What is labelled: clouds, or their points (`part_segmentation`: ShapeNetPart, .h5 or .npz with a part per
    point; `semantic_segmentation`: scenes, as rooms of S3DIS, PATH or PATH:AREA; area 5 is tested by default)."""
    preset: Annotated[str | None, arg(metavar="NAME")] = None
    """Published recipe, such as `dapt/scanobjectnn_hardest`; other options overrule it. `pointpeft presets` lists them.
    The command line fills in its options; from Python: `pointpeft.recipes.find_preset(NAME).config(data=...)`."""
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """The same from a file: published YAML, YAML of these options (`epochs: 20`), or the `config.json` of a run."""
    backbone: Backbone = "point_mae_tiny"
    checkpoint: Annotated[str | None, arg(metavar="FILE|NAME")] = None
    """Pre-trained weights, .pth or .safetensors, or a shipped name. None: the one shipped for the backbone."""
    method: str = "dapt"
    """Adaptation method; `full` trains everything, `linear` the head alone. `pointpeft methods` lists all of them."""
    set: Options = ()
    """Option of the method or the backbone, NAME=VALUE, may be repeated: `--set rank=32 --set dropout=0.1`."""
    classifier: Classifier = "auto"
    """What classifies clouds: `mlp` is the published head, which is trained; `kernel` is solved in one step on features
    of three depths and on the shape: all of `linear`, and where other methods start. `auto` is `kernel` for `linear`,
    else `mlp`."""
    epochs: int = 60
    """Passes over the training clouds."""
    min_steps: int = 0
    """Fewest steps: few clouds get more epochs. The warm-up keeps its share."""
    batch_size: int = 32
    """Clouds per step, of all processes together, at most: an epoch is cut into equal batches."""
    accumulate: int = 1
    """Batches whose gradients are summed before a step."""
    lr: float = 5e-4
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.05
    """Decay of matrices; biases, norms and tokens have none."""
    warmup_epochs: int = 5
    """Epochs over which the learning rate rises linearly, before its cosine."""
    clip: float = 10.0
    """Largest norm of the gradient."""
    num_points: int = 1024
    """Points per cloud that the model sees. Evaluation uses the same number: accuracy falls when densities differ."""
    columns_per_epoch: int | None = None
    """Columns of scenes in a training epoch, for `semantic_segmentation`. None: enough to hold all points."""
    augment: TaskAugmentation = "auto"
    """Augmentation of training clouds. `auto` is the published recipe: `scale_translate`, for points `isotropic`.
    `rotate` turns about the up axis, for clouds whose heading is arbitrary; `scale_rotate` scales a little too."""
    up_axis: Literal["x", "y", "z"] | None = None
    """Axis that points up: classifiers turn clouds y up, as pre-trainings are. None: z for folders, as the data set
    says for others."""
    drop_non_finite: bool = False
    """Drop points that are not finite, as depth cameras mark missing measurements; the notes count them.
    Their labels go with them, where points have some."""
    clouds_in: CloudsIn = "auto"
    """Where training clouds are kept: in `memory`, or on `disk`, each read when a batch needs it. Results are the same.
    `auto` leaves them on disk when they would take more than half of the free memory."""
    workers: int = 0
    """Processes that read clouds on disk ahead of their use."""
    val_fraction: float = 0.15
    """Share of the training clouds held out to select the epoch, stratified; used by `--select val-best` alone."""
    select: Selection = "val-best"
    """Which epoch is kept. `cv`, for few clouds, holds out each half in turn, then adapts to all for as many epochs
    as were best, none where none helped. `test-best`, of published code, selects on the test set; results say so."""
    votes: Annotated[int, arg(aliases=["--vote"])] = 1
    """Passes per test cloud: 1 is a clean pass; more add augmented ones and average the logits."""
    probe: bool = True
    """Also measure baselines that take seconds, and train a linear probe, a head on the frozen features with the same
    budget, to compare the adapter with."""
    repeats: int = 1
    """Runs with seeds seed, seed+1, …: the result is their mean and standard deviation."""
    seed: int = 0
    """Seed of the split, the initial weights, the order and the augmentation."""
    device: Annotated[str, arg(metavar="cpu|cuda|cuda:N")] = "auto"
    """Where to compute; `auto` takes a GPU where there is one."""
    precision: Precision = "float32"
    """`bf16` computes the transformer in bfloat16; weights stay float32."""
    deterministic: bool = False
    """Use deterministic CUDA kernels only, at a cost in speed; an operation without one is an error. Runs on the CPU
    are always reproducible to the bit."""
    ema: Annotated[float | None, arg(metavar="DECAY")] = None
    """Measure and keep an exponential moving average of the trained weights, with this decay per step: `0.99`."""
    patience: Annotated[int | None, arg(metavar="EPOCHS")] = None
    """Stop after this many epochs without a better one; the learning rate still follows its cosine over all epochs."""
    checkpoint_blocks: bool = False
    """Recompute activations of blocks in the backward pass instead of storing them: less memory, more time."""
    compile: bool = False
    """Compile the training step by `torch.compile`: minutes at the start, and on a CPU no faster. Needs g++."""
    cuda_graph: bool = False
    """Compile it, and replay it as CUDA graphs: for small batches, where launches from Python dominate. CUDA only."""
    sync_batchnorm: bool = False
    """With several processes: BatchNorm uses statistics of the whole batch, as one process would, not of its share."""
    double_step: bool = False
    """Step twice per batch with one gradient, as published segmentation code does by mistake."""
    track: Track = "none"
    """Also send the log to a tracker, `wandb` or `trackio` (`pip install 'pointpeft[track]'`); `WANDB_MODE=offline`
    keeps it here. TensorBoard's file is in the run folder wherever TensorBoard is installed."""
    output: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Run folder; None: `runs/finetune-DATA-METHOD`, numbered if it exists."""
    resume: Annotated[Path | None, arg(metavar="RUN")] = None
    """Run folder of a stopped run: continues with its own options; one that its result depends on cannot be changed."""
    quiet: bool = False
    """No progress bar."""

    @staticmethod
    def upgraded(entries: dict[str, Any]) -> dict[str, Any]:
        """Entries of a file that an earlier version wrote, under the names of today."""
        entries = dict(entries)
        if entries.get("quirks") in ("none", "published") and "double_step" not in entries:
            entries["double_step"] = entries.pop("quirks") == "published"
        for earlier, name in (("vote", "votes"), ("blocks", "columns_per_epoch")):
            if earlier in entries and name not in entries:
                entries[name] = entries.pop(earlier)
        if "command" in entries:  # a run wrote it, maybe one that knew no other classifier; what a user wrote has none
            entries.setdefault("classifier", "mlp")
        return entries


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-train a backbone on clouds without labels, by rebuilding masked patches (masked autoencoder).

    Writes `backbone.safetensors`, which `pointpeft finetune --checkpoint` reads, and its card.
    """

    data: Annotated[str | None, Positional, arg(metavar="DATA")] = None
    """Folder or file of clouds; labels, if any, are not used. Needed but for `--resume`."""
    backbone: str = "point_mae_tiny"
    """Architecture: point_mae_tiny, point_mae_small, point_mae (published size)."""
    set: Options = ()
    """Option of the backbone, NAME=VALUE, may be repeated: `--set group_size=16`."""
    epochs: int = 300
    """Passes over the clouds, and the length of the learning rate's cosine."""
    time_limit_minutes: Annotated[float | None, arg(metavar="MINUTES")] = None
    """Finish within this time: the cosine follows the share of the time used where that is ahead of the epochs."""
    batch_size: int = 128
    """Clouds per step, of all processes together, at most."""
    accumulate: int = 1
    """Batches whose gradients are summed before a step."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.05
    """Decay of matrices; biases, norms and tokens have none."""
    warmup: float = 0.04
    """Share of the schedule over which the learning rate rises linearly."""
    clip: float = 10.0
    """Largest norm of the gradient."""
    num_points: int = 1024
    """Points per cloud that the model sees."""
    mask_ratio: float = 0.6
    """Share of the patches that is hidden and rebuilt."""
    augment: Augmentation = "scale_translate"
    """Augmentation of the clouds."""
    max_clouds: Annotated[int | None, arg(metavar="COUNT")] = None
    """Use this many clouds at most, drawn once; None for all."""
    drop_non_finite: bool = False
    """Drop points that are not finite, as depth cameras mark missing measurements; they are counted."""
    clouds_in: CloudsIn = "auto"
    """Where clouds are kept: in `memory`, or on `disk`, each read when a batch needs it. Results are the same.
    `auto` leaves them on disk when they would take more than half of the free memory."""
    workers: int = 0
    """Processes that read clouds on disk ahead of their use."""
    seed: int = 0
    """Seed of the initial weights, the order, the masks and the augmentation."""
    device: Annotated[str, arg(metavar="cpu|cuda|cuda:N")] = "auto"
    """Where to compute; `auto` takes a GPU where there is one."""
    precision: Precision = "float32"
    """`bf16` computes the transformer in bfloat16; weights stay float32."""
    deterministic: bool = False
    """Use deterministic CUDA kernels only, at a cost in speed; an operation without one is an error. Runs on the CPU
    are always reproducible to the bit."""
    track: Track = "none"
    """Also send the log to a tracker, `wandb` or `trackio` (`pip install 'pointpeft[track]'`); `WANDB_MODE=offline`
    keeps it here. TensorBoard's file is in the run folder wherever TensorBoard is installed."""
    output: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Run folder; None: `runs/pretrain-BACKBONE`, numbered if it exists."""
    resume: Annotated[Path | None, arg(metavar="RUN")] = None
    """Run folder of a stopped run: continues with its own options; one that its result depends on cannot be changed."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True)
class SharedRecipe:
    """Options that all runs of a comparison share."""

    backbone: Backbone = "point_mae_tiny"
    checkpoint: Annotated[str | None, arg(metavar="FILE|NAME")] = None
    """Pre-trained weights of all runs. None: the one shipped for the backbone; `none`: random weights."""
    set: Options = ()
    """Option of the backbone, NAME=VALUE, may be repeated."""
    epochs: int = 60
    """Passes over the training clouds."""
    batch_size: int = 32
    """Clouds per step, at most."""
    lr: float = 5e-4
    """Peak learning rate of AdamW."""
    num_points: int = 1024
    """Points per cloud."""
    augment: TaskAugmentation = "auto"
    """Augmentation of training clouds."""
    drop_non_finite: bool = False
    """Drop points that are not finite, as depth cameras mark missing measurements; for classification."""
    select: Selection = "val-best"
    """Which epoch is kept."""
    seed: int = 0
    """The first seed."""
    device: Annotated[str, arg(metavar="cpu|cuda|cuda:N")] = "auto"
    """Where to compute."""
    precision: Precision = "float32"
    """`bf16` computes the transformer in bfloat16; weights stay float32."""


@dataclass(frozen=True)
class _Compared:
    """The first options of `CompareConfig`: a dataclass has those of its last base first."""

    data: Annotated[str, Positional, arg(metavar="DATA")] = "furniture"
    """Labelled clouds, as for `finetune`."""
    task: Task = "classification"
    """What is labelled, as for `finetune`."""
    methods: Annotated[tuple[str, ...], arg(metavar="METHOD[:NAME=VALUE,...]")] = ("linear", "dapt", "full")
    """Methods with their own options: `linear dapt dapt:rank=8,lr=1e-3 full:checkpoint=none`."""
    seeds: int = 3
    """Runs per method, with seeds seed, seed+1, …"""


@dataclass(frozen=True)
class CompareConfig(SharedRecipe, _Compared):
    """Adapt with several methods and seeds under one recipe, and print one table: mean ± std on the test clouds.

    Each run has a process and a folder of its own. The same command again completes a comparison that was stopped.
    """

    output: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder of the comparison; None: `runs/compare-DATA`."""
    ray: Annotated[str | None, arg(metavar="local|auto|ADDRESS")] = None
    """Runs side by side by Ray: on the cores or GPUs of this machine (`local`), or on a running cluster, whose machines
    see the same folders. Needs `pip install 'pointpeft[ray]'`."""
    ray_cpus: Annotated[int, arg(metavar="CORES")] = 1
    """Cores of each run, with `--ray`."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True)
class MemoryBankConfig:
    """Build the memory bank of Point-PEFT: one feature per training cloud by the pre-trained backbone.

    `pointpeft finetune --method point_peft` builds the bank of its own training clouds by itself; this command is for
    another data set's: `--set bank=FILE`.
    """

    data: Annotated[str, Positional, arg(metavar="DATA")] = "furniture"
    """Clouds, as for `finetune`; its training split goes into the bank, labels are not used."""
    output: Annotated[Path, arg(metavar="FILE")] = Path("memory_bank.safetensors")
    """File for the bank."""
    backbone: Backbone = "point_mae_tiny"
    checkpoint: Annotated[str | None, arg(metavar="FILE|NAME")] = None
    """Pre-trained weights, .pth or .safetensors, or a shipped name. None: the one shipped for the backbone."""
    set: Options = ()
    """Option of the backbone, NAME=VALUE, may be repeated: `--set group_size=16`."""
    num_points: int = 1024
    """Points per cloud."""
    drop_non_finite: bool = False
    """Drop points that are not finite, as depth cameras mark missing measurements; they are counted."""
    batch_size: int = 64
    """Clouds per step."""
    device: Annotated[str, arg(metavar="cpu|cuda|cuda:N")] = "auto"
    """Where to compute; `auto` takes a GPU where there is one."""


@dataclass(frozen=True)
class _Folds:
    """The first options of `FewShotConfig`."""

    data: Annotated[str, Positional, arg(metavar="DATA")] = "furniture"
    """Published folds, or labelled clouds as for `finetune`."""
    ways: int = 5
    """W, classes per fold."""
    shots: int = 10
    """S, training clouds per class; 20 clouds of each class, where it has them, are tested."""
    folds: int = 10
    """How many folds, numbered from 0."""
    methods: Annotated[tuple[str, ...], arg(metavar="METHOD[:NAME=VALUE,...]")] = ("linear", "dapt")
    """Methods with their own options, as for `compare`."""


@dataclass(frozen=True)
class FewShotConfig(SharedRecipe, _Folds):
    """Adapt to few clouds: W classes with S training clouds each, over several folds; mean ± std of the test accuracy.

    DATA is a folder of published folds (`5way_10shot/0.pkl` or `5way10shot/0.pkl`), or any data set, from which folds
    are drawn with a seed. The same command again completes folds and methods that are missing.
    """

    epochs: int = 60
    """Passes over the training clouds of a fold."""
    select: Selection = "last"
    """Which epoch is kept. `test-best`, common in published tables, selects on the test clouds, and results say so."""
    seed: int = 0
    """Seed of drawn folds, of initial weights and augmentation."""
    output: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder of the runs; None: `runs/few-shot-DATA-5way10shot`."""
    quiet: bool = False
    """No progress bars."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Test the adapter of a run: overall and per-class accuracy, confusion matrix, a page of the misclassified clouds;
    for segmentation the mean IoU and a picture of the predicted parts.

    Without DATA the test clouds of the run's own data set are used, prepared as the run prepared them.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """Run folder of `pointpeft finetune`."""
    data: Annotated[str | None, Positional, arg(metavar="DATA")] = None
    """Labelled clouds; their class names must be among the run's. None: the test split of the run's own data."""
    votes: Annotated[int, arg(aliases=["--vote"])] = 1
    """Passes per cloud: 1 is a clean pass; more add augmented ones and average the logits."""
    test_augment: TaskAugmentation = "auto"
    """Test-time augmentation, of the passes beyond the first. `auto`: `scale_translate`; for parts `isotropic`; for
    scenes `none`, whose passes differ in which points are classified together."""
    densities: Annotated[tuple[int, ...], arg(metavar="POINTS")] = ()
    """Also test with fewer points per cloud, drawn at random, as of a sparser sensor: `--densities 1024 512 256`."""
    drop_non_finite: bool = False
    """Drop points that are not finite, as depth cameras mark missing measurements; the notes count them.
    Their labels go with them, where points have some."""
    clouds_in: CloudsIn = "auto"
    """Where clouds are kept: in `memory`, or on `disk`, each read when a batch needs it. Results are the same.
    `auto` leaves them on disk when they would take more than half of the free memory."""
    batch_size: int = 64
    """Clouds per step."""
    seed: int = 0
    """Seed of the voting passes."""
    device: Annotated[str, arg(metavar="cpu|cuda|cuda:N")] = "auto"
    """Where to compute; `auto` takes a GPU where there is one."""
    output: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder for the report; None: `evaluation` inside the run folder."""
    quiet: bool = False
    """No progress bar."""
