"""The recipes that published repositories ship, by name; nothing heavy is imported here."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pointpeft.runs.config import FinetuneConfig, TaskAugmentation

# Where all presets leave the published procedure, and why.
DIFFERENCES = (
    "the epoch is selected on held-out training clouds; published on the test clouds: `--select test-best`",
    "the learning rate's cosine begins after the warm-up; published at epoch 0, with the first two epochs at its floor "
    "and one epoch more in all",
    "an epoch is cut into equal batches; published drops the last, incomplete one",
    "every point may become a centre; published none within 0.032 of the origin: `--set min_sq_norm=1e-3`",
    "the head answers the classes of the data; published few-shot heads keep 40",
)
# And by method; `--set quirks=published` repeats these.
SOUND = {
    "point_peft": "neighbours are gathered within a cloud; published from other clouds of the batch",
    "point_gst": "the graph's scale is a cloud's own; published one for the whole batch",
    "point_lora": "the selection loss has the sign of the text; published the opposite one",
}
SCANS = {"scanobjectnn_hardest": "pb_t50_rs", "scanobjectnn_objbg": "obj_bg", "scanobjectnn_objonly": "obj_only"}
OTHER_MODEL = "the model is the one of ScanObjectNN; the file's own is not among the released models"
NO_DROP_PATH = "the file's drop_path_rate is not used; published PointGPT has none when it classifies"
HARDEST = "scanobjectnn_hardest"


@dataclass(frozen=True)
class Preset:
    """A published recipe in our terms.

    Attributes:
        name: METHOD/DATA, or METHOD/BACKBONE/DATA where the backbone is not Point-MAE.
        published: Repository and file that it is read from.
        method: Our name of the method.
        augment: Augmentation of the training clouds, which published code sets, not its YAML file.
        data: "scanobjectnn", "modelnet40" or "few_shot".
        variant: Of ScanObjectNN.
        backbone: Our name of the backbone.
        backbone_options: Fields of the backbone that the file sets.
        method_options: Fields of the method that the file sets.
        num_points: N.
        batch_size: Clouds per step.
        accumulate: Batches per step.
        differences: Where this recipe leaves the file, beside `DIFFERENCES` and `SOUND`.
    """

    name: str
    published: str
    method: str
    augment: TaskAugmentation
    data: str
    variant: str | None = None
    backbone: str = "point_mae"
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    method_options: Mapping[str, Any] = field(default_factory=dict)
    num_points: int = 2048
    epochs: int = 300
    warmup_epochs: int = 10
    lr: float = 5e-4
    weight_decay: float = 0.05
    batch_size: int = 32
    accumulate: int = 1
    clip: float = 10.0
    differences: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Where this recipe leaves its publication, beside `DIFFERENCES`."""
        return (*((SOUND[self.method],) if self.method in SOUND else ()), *self.differences)

    def config(self, **changes: Any) -> FinetuneConfig:
        """The configuration of a run, which records where it comes from; `changes` overrule the recipe."""
        same = ("method", "augment", "backbone", "num_points", "epochs", "warmup_epochs", "lr", "weight_decay")
        values = {name: getattr(self, name) for name in (*same, "batch_size", "accumulate", "clip")}
        options = (*pairs(self.backbone_options), *pairs(self.method_options))
        known = self.name in PRESETS
        origin = {"preset": self.name if known else None, "config": None if known else Path(self.published)}
        chosen: dict[str, Any] = {**values, **origin, "set": options, **changes}
        return FinetuneConfig(**chosen)


def pairs(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Options as the command line takes them: NAME=VALUE each."""
    return tuple(
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in options.items()
    )


def _scans(method: str, published: str, augment: TaskAugmentation, **common: Any) -> list[Preset]:
    """Presets for the variants of ScanObjectNN; `{}` in `published` stands for one as files name it.

    `common` may hold `by_data`, what differs by variant, and `which`, the variants there are files for.
    """
    by_data, which = common.pop("by_data", {}), common.pop("which", SCANS)
    under = common.pop("under", method)
    found = []
    for data in which:
        own = {**common, **by_data.get(data, {})}
        backbone_options = {"num_groups": 128, "drop_path": 0.1, **own.pop("backbone_options", {})}
        found.append(
            Preset(
                name=f"{under}/{data}",
                published=published.format(data.replace("scanobjectnn", "scan")),
                method=method,
                augment=augment,
                data="scanobjectnn",
                variant=SCANS[data],
                backbone_options=backbone_options,
                **own,
            )
        )
    return found


def _objects(method: str, data: str, published: str, **own: Any) -> Preset:
    """A preset for ModelNet40 or few clouds of it: 1024 points in 64 groups, scaled and shifted."""
    under = own.pop("under", method)
    kind = "few_shot" if data == "fewshot" else "modelnet40"
    backbone_options = {"num_groups": 64, "drop_path": 0.1, **own.pop("backbone_options", {})}
    own = {"augment": "scale_translate", "num_points": 1024, "epochs": 150 if data == "fewshot" else 300, **own}
    return Preset(f"{under}/{data}", published, method, data=kind, backbone_options=backbone_options, **own)


_DAPT, _IDPT, _MAE = "LMD0311/DAPT cfgs/", "zyh16143998882/ICCV23-IDPT cfgs/", "Pang-Yatian/Point-MAE cfgs/"
_PEFT, _GST = "Ivan-Tang-3D/Point-PEFT MAE/cfgs/", "jerryfeng2003/PointGST cfgs/"
_RECON = "qizekun/ReCon cfgs/full/"
_HEAD = ("cls", "prompt_mean", "patch_max")
_EDGES = {"prompt_layer": 11, "generator": "dgcnn", "head": "all"}


def _point_gst(backbone: str, folder: str, augment: TaskAugmentation) -> list[Preset]:
    common: dict[str, Any] = {
        "under": "point_gst" if backbone == "point_mae" else f"point_gst/{backbone}",
        "backbone": backbone,
        "method_options": {"rank": 36, "local": 32},
    }
    return [
        *_scans("point_gst", f"{_GST}{folder}/finetune_{{}}_pgst.yaml", augment, **common),
        _objects("point_gst", "modelnet", f"{_GST}{folder}/finetune_modelnet_pgst.yaml", **common),
    ]


_ALL = [
    *_scans(
        "dapt",
        _DAPT + "finetune_{}_dapt.yaml",
        "scale_translate",
        by_data={
            "scanobjectnn_hardest": {
                "backbone_options": {"drop_path": 0.3},
                "method_options": {"parts": _HEAD, "rank": 64, "dropout": 0.2},
            },
            "scanobjectnn_objbg": {
                "backbone_options": {"drop_path": 0.3},
                "method_options": {"parts": _HEAD, "rank": 64, "dropout": 0.5},
            },
            "scanobjectnn_objonly": {"method_options": {"parts": _HEAD[:2], "rank": 64, "dropout": 0}},
        },
    ),
    _objects(
        "dapt",
        "modelnet",
        _DAPT + "finetune_modelnet_dapt.yaml",
        method_options={"parts": ("cls", "patch_max"), "rank": 72, "dropout": 0},
    ),
    *_scans(
        "idpt",
        _IDPT + "finetune_{}_idpt.yaml",
        "rotate",
        by_data={
            "scanobjectnn_hardest": {"method_options": _EDGES},
            "scanobjectnn_objbg": {"method_options": _EDGES | {"head": "promptonly"}},
            "scanobjectnn_objonly": {"method_options": _EDGES | {"prompt_layer": 6}},
        },
    ),
    _objects("idpt", "modelnet", _IDPT + "finetune_modelnet_idpt.yaml", method_options=_EDGES),
    _objects("idpt", "fewshot", _IDPT + "fewshot_idpt.yaml", method_options=_EDGES),
    *_scans("vpt", _IDPT + "finetune_{}_vpt.yaml", "rotate", method_options={"num_prompts": 10}),
    _objects("vpt", "modelnet", _IDPT + "finetune_modelnet_vpt.yaml", method_options={"num_prompts": 10}),
    _objects("vpt", "fewshot", _IDPT + "fewshot_vpt.yaml", method_options={"num_prompts": 20}),
    # Of the repository's files for ScanObjectNN only this one names the adapted model; the others tune it in full.
    *_scans(
        "point_peft",
        _PEFT + "finetune_{}.yaml",
        "scale_rotate",
        which=(HARDEST,),
        method_options={"rank": 16, "dropout": 0.1},
    ),
    _objects(
        "point_peft",
        "modelnet",
        _PEFT + "finetune_modelnet.yaml",
        method_options={"rank": 16, "dropout": 0.1},
        differences=(OTHER_MODEL,),
    ),
    *_point_gst("point_mae", "mae", "scale_translate"),
    *_point_gst("act", "act", "rotate"),
    *_point_gst("recon_plain", "recon", "rotate"),
    *_scans(
        "point_lora",
        "songw-zju/PointLoRA cfgs/finetune_{}_pointlora.yaml",
        "scale_translate",
        which=(HARDEST,),
        backbone_options={"drop_path": 0.3},
    ),
    *_scans("full", _MAE + "finetune_{}.yaml", "scale_translate"),
    _objects("full", "modelnet", _MAE + "finetune_modelnet.yaml"),
    _objects(
        "full",
        "modelnet_8k",
        _MAE + "finetune_modelnet_8k.yaml",
        backbone_options={"num_groups": 512},
        num_points=8192,
    ),
    _objects("full", "fewshot", _MAE + "fewshot.yaml"),
    *_scans(
        "full",
        _RECON + "finetune_{}.yaml",
        "rotate",
        under="full/recon",
        backbone="recon",
        backbone_options={"drop_path": 0.2},
        lr=2e-5,
    ),
    _objects(
        "full",
        "modelnet",
        _RECON + "finetune_modelnet.yaml",
        under="full/recon",
        backbone="recon",
        backbone_options={"drop_path": 0.2},
        lr=1e-5,
    ),
]
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


def find_preset(name: str) -> Preset:
    """A preset by its name.

    Raises:
        ValueError: An unknown name; names the nearest ones.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=4, cutoff=0.4) or list(PRESETS)
        raise ValueError(f"unknown preset {name!r}; near it: {', '.join(near)}; `pointpeft presets` prints all")
    return PRESETS[name]
