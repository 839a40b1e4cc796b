"""A backbone, a method that adapts it and a head, as one module from points to logits."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pointpeft.data.dataset import require_axis
from pointpeft.data.transforms import turn_y_up
from pointpeft.heads import (
    ClassificationHead,
    DenseFeatures,
    DenseHead,
    KernelHead,
    LevelPool,
    Pool,
    UpsamplingHead,
    tapped_blocks,
)

if TYPE_CHECKING:
    from pointpeft.methods.base import Method
    from pointpeft.weights.names import LoadReport


TASKS = ("classification", "part_segmentation", "semantic_segmentation")
CLASSIFIERS = ("mlp", "kernel")


@dataclass(frozen=True)
class Origin:
    """Origin of the frozen weights.

    Attributes:
        checkpoint: Name or path, as it was given.
        sha256: Of the file.
        parameters: Names of the model's parameters that it holds.
    """

    checkpoint: str
    sha256: str
    parameters: frozenset[str]


class PointModel(nn.Module):
    """Clouds to logits, of the cloud or of each of its points; made by `create_model`.

    Attributes:
        backbone: Patches, tokens, blocks.
        pool: Tokens to features, None where points are classified.
        head: Features to logits.
        method: The adaptation method attached to it.
        num_classes: Number of logits.
        task: One of `TASKS`.
        num_categories: Kinds of clouds that part segmentation tells apart beforehand; 0 for none.
        classifier: What the head is, one of `CLASSIFIERS`: the published MLP, or a `KernelHead` that is solved.
        num_support: Clouds that a kernel head remembers; 0 for others.
        up_axis: The axis that points up in the clouds of a classifier, which turns them as its pre-training had them, y
            up; None leaves them as they are.
        merged: Whether `merge` has been called.
        origin: Where the frozen weights came from, None for fresh ones.
        load_report: What `from_published` loaded, None for other models.
        loaded: Checksum and metadata of the adapter that the model was loaded from, None for other models.
    """

    def __init__(
        self,
        backbone_name: str,
        backbone: Any,
        method: "Method",
        num_classes: int,
        task: str = "classification",
        num_categories: int = 0,
        classifier: str = "mlp",
        num_support: int = 0,
        up_axis: str | None = None,
    ):
        super().__init__()
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
        if num_categories < 0 or (num_categories and task != "part_segmentation"):
            raise ValueError(
                f"num_categories must be at least 0, and 0 but for part_segmentation, got {num_categories} for {task}"
            )
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes must be an int of at least 1, got {num_classes!r}")
        if classifier not in CLASSIFIERS or (classifier != "mlp" and task != "classification"):
            known = ", ".join(CLASSIFIERS)
            raise ValueError(f"classifier must be one of {known}, and mlp but for classification, got {classifier!r}")
        if (classifier == "kernel") != (num_support > 0):
            raise ValueError(f"num_support must be positive for a kernel head, and 0 for others, got {num_support}")
        if up_axis is not None and task != "classification":
            raise ValueError(f"up_axis must be None but for classification, got {up_axis!r}")
        self.classifier, self.num_support = classifier, num_support
        self.up_axis = None if up_axis is None else require_axis(up_axis)
        self.backbone_name = backbone_name
        self.backbone = backbone
        self.method = method
        self.num_classes = num_classes
        self.merged = False
        self.origin: Origin | None = None
        self.load_report: LoadReport | None = None
        self.loaded: tuple[str, dict[str, Any]] | None = None
        self._aux_losses: dict[str, Tensor] = {}
        self.task = task
        self.num_categories = num_categories
        self.pool: Any = None
        if self.dense:
            backbone.for_points()
        self.set_pooling(backbone.pooled)
        method.attach(self)
        parameter = next(backbone.parameters())
        factory = {"device": parameter.device, "dtype": parameter.dtype}
        self.head: ClassificationHead | KernelHead | DenseHead | UpsamplingHead
        width = backbone.config.width
        if classifier == "kernel":
            self.head = KernelHead(LevelPool(width).out_dim, num_classes, num_support, **factory)
        elif self.pool is not None:
            options = {**backbone.head_options, **method.head_options}
            self.head = ClassificationHead(self.pool.out_dim, num_classes, **options, **factory)
        elif backbone.dense_upsampling:
            min_sq_norm = backbone.config.min_sq_norm
            self.head = UpsamplingHead(width, num_classes, num_categories, min_sq_norm=min_sq_norm, **factory)
        else:
            options = {"whole": width * backbone.dense_whole, "hidden": backbone.dense_hidden}
            self.head = DenseHead(width, num_classes, num_categories, **options, **factory)

    @property
    def dense(self) -> bool:
        """Whether every point is classified, and not the cloud."""
        return self.task != "classification"

    @property
    def taps(self) -> tuple[int, ...]:
        """The blocks whose outputs a dense or a kernel head reads, three of them; none for the published classifier."""
        if self.classifier == "kernel":
            return tapped_blocks(len(self.backbone.blocks))
        if not self.dense:
            return ()
        return self.backbone.dense_blocks or tapped_blocks(len(self.backbone.blocks))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what the call takes beside xyz."""
        return (*self.method.inputs, *(("category",) if self.num_categories else ()))

    def set_pooling(self, parts: tuple[str, ...] | nn.Module) -> None:
        """Sets which tokens the published classifier reads; other heads read the patch tokens alone, and ignore it.

        Args:
            parts: Names of what is pooled and put side by side, see `Pool`, where the mean over the patches stands in
                for the class token of a backbone that has none; or a module with an `out_dim` that maps
                tokens and context to features, as `Pool` does.
        """
        if self.classifier == "kernel":
            self.pool = LevelPool(self.backbone.config.width)
        elif isinstance(parts, nn.Module):
            self.pool = None if self.dense else parts
        elif not self.dense:
            prefix: tuple[str, ...] = self.backbone.prefix
            names = parts if "cls" in prefix else tuple("patch_mean" if part == "cls" else part for part in parts)
            self.pool = Pool(names, self.backbone.config.width, prefix)

    def turned(self, xyz: Tensor) -> Tensor:
        """The clouds as the backbone gets them. [B, N, 3]"""
        return xyz if self.up_axis is None else turn_y_up(xyz, self.up_axis)

    def forward_features(self, xyz: Tensor, **inputs: Tensor) -> Any:
        """The input of the head, [B, F], or `DenseFeatures` where points are classified; arguments as in `forward`."""
        if not isinstance(xyz, Tensor) or xyz.dim() != 3 or xyz.shape[-1] != 3 or not xyz.is_floating_point():
            got = f"{xyz.dtype} {tuple(xyz.shape)}" if isinstance(xyz, Tensor) else type(xyz).__name__
            raise ValueError(f"xyz must be a floating tensor of shape (B, N, 3), got {got}")
        if set(inputs) != set(self.inputs):
            raise ValueError(
                f"method {self.method.name!r} for {self.task} takes the inputs {sorted(self.inputs)} beside xyz, "
                f"got {sorted(inputs)}"
            )
        config = self.backbone.config
        needed = max(config.num_groups, config.group_size)
        if xyz.shape[1] < needed:
            raise ValueError(
                f"xyz must have at least {needed} points per cloud (num_groups = {config.num_groups}, "
                f"group_size = {config.group_size}), got N = {xyz.shape[1]}"
            )
        taps = self.taps
        tokens, ctx = self.backbone(self.turned(xyz), inputs, taps)
        self._aux_losses = ctx.aux_losses
        if self.pool is not None and not taps:
            return self.pool(tokens, ctx)

        def normalised(tokens: dict[int, Tensor]) -> Tensor:
            """Those after each tapped block side by side. [B, T, C] each -> [B, T, 3C]"""
            return torch.cat([self.backbone.token_transform(self.backbone.norm(tokens[block])) for block in taps], -1)

        if self.pool is not None:
            return self.pool(normalised(ctx.hidden), ctx.xyz)
        pooled = None
        if ctx.pooled:
            first, second = ({block: pair[i] for block, pair in ctx.pooled.items()} for i in range(2))
            pooled = (normalised(first).squeeze(1), normalised(second).squeeze(1))
        return DenseFeatures(ctx.centers, normalised(ctx.hidden), ctx.whole, pooled, xyz)

    def forward(self, xyz: Tensor, *, query: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """Classifies clouds, or their points.

        Args:
            xyz: Coordinates. [B, N, 3]
            query: Other points of the same clouds to classify than those that the tokens are made of, in a dense task
                alone: a model of N points labels any number of them. [B, M, 3]
            inputs: Exactly those that `inputs` names. `category`: index of each cloud's, int64, [B].

        Returns:
            Logits, [B, num_classes]; in a dense task those of every point, [B, N or M, num_classes].

        Raises:
            ValueError: A wrong shape or dtype, too few points, or other inputs than the model takes.
        """
        features = self.forward_features(xyz, **inputs)
        if not self.dense:
            if query is not None:
                raise ValueError("query must be None for classification, which answers for whole clouds")
            return self.head(features)
        category = inputs.get("category")
        if self.num_categories:
            self._check_category(category, len(xyz))
        return self.head(xyz if query is None else query, features, category)

    def _check_category(self, category: Tensor | None, clouds: int) -> None:
        if not isinstance(category, Tensor) or category.dtype != torch.int64 or category.shape != (clouds,):
            got = f"{category.dtype} {tuple(category.shape)}" if isinstance(category, Tensor) else repr(category)
            raise ValueError(f"category must be int64 of shape ({clouds},), got {got}")

    def aux_losses(self) -> dict[str, Tensor]:
        """Losses that the method added in the last forward, by name, to be added to the task's."""
        return dict(self._aux_losses)

    def trainable_parameters(self, head: bool = True) -> int:
        """How many parameters train, with or without those of the head."""
        return sum(
            p.numel()
            for name, p in self.named_parameters()
            if p.requires_grad and (head or not name.startswith("head."))
        )

    def train(self, mode: bool = True) -> "PointModel":
        """As `nn.Module.train`; under `freeze_batchnorm`, frozen BatchNorms keep their statistics."""
        super().train(mode)
        if mode and self.method.freeze_batchnorm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(
                    p.requires_grad for p in module.parameters()
                ):
                    module.eval()
        return self

    def merge(self) -> "PointModel":
        """Folds what the method can fold into the backbone, in place; the model is for inference then.

        Returns:
            The model itself, frozen.

        Raises:
            ValueError: Merged already, or the method has nothing to fold.
        """
        if self.merged:
            raise ValueError("the model is merged already")
        self.method.merge(self)
        self.merged = True
        return self.requires_grad_(False)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration from which `create_from_config` rebuilds this model, ready for JSON, as `peft` reads it."""
        of_classifier = {
            **({} if self.classifier == "mlp" else {"classifier": self.classifier, "num_support": self.num_support}),
            **({} if self.up_axis is None else {"up_axis": self.up_axis}),
        }
        return {
            "backbone": {"name": self.backbone_name, "fields": asdict(self.backbone.config)},
            "method": {"name": self.method.name, "fields": self.method.config()},
            "num_classes": self.num_classes,
            "task": self.task,
            "num_categories": self.num_categories,
            **of_classifier,
        }
