"""The base of adaptation methods: a frozen dataclass of options that attaches itself to a model, and a registry."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor, nn

from pointpeft.methods.token_map import CallReader, TokenMap
from pointpeft.weights.publication import Publication

if TYPE_CHECKING:
    from pointpeft.model import PointModel

# The tokens before the patches and their positions, which a pre-training may lack: what a method lists under `trains`.
PREFIX_TOKENS = r"^backbone\.\w+_(token|pos)$"


@dataclass(frozen=True)
class TrainingClouds:
    """Batches of training clouds, not augmented; iterating gives their points alone. [B, N, 3] each

    Attributes:
        labelled: Begins a pass over points [B, N, 3] and the class of each cloud, int64 [B]: of a part task its
            category, of scenes 0.
    """

    labelled: Callable[[], Iterable[tuple[Tensor, Tensor]]]

    def __iter__(self) -> Iterator[Tensor]:
        return (points for points, _ in self.labelled())


@dataclass(frozen=True)
class Method:
    """A way of adapting a frozen backbone.

    A method writes `build`: it replaces parts of `model.backbone`, and sets by `model.set_pooling` which tokens the
    classifier reads. What it creates trains; what it takes over stays frozen, except what `trains` names. The head
    always trains.

    Attributes:
        freeze_batchnorm: Keeps the statistics of the frozen tokenizer as pre-trained; published code lets them move
            while training, although their gains and biases are frozen.
    """

    freeze_batchnorm: bool = field(default=False, kw_only=True)

    # The registered name, set by the decorator.
    name: ClassVar[str]
    # Attributes that a backbone must have.
    needs: ClassVar[tuple[str, ...]] = ("blocks",)
    # Names (regular expressions) of the model's own parameters that train besides the new ones.
    trains: ClassVar[tuple[str, ...]] = ()
    # Optional Python packages that it needs, each also the name of the extra that installs it.
    packages: ClassVar[tuple[str, ...]] = ()
    # How its published classifier differs from the backbone's: arguments of `ClassificationHead`.
    head_options: ClassVar[Mapping[str, Any]] = {}
    # Further inputs of the model's call.
    inputs: ClassVar[tuple[str, ...]] = ()
    # Names of parameters that train by the publication but never get a gradient.
    dead: ClassVar[tuple[str, ...]] = ()
    # Whether `fold` is there.
    mergeable: ClassVar[bool] = False
    # Whether the head alone trains, so that a linear probe beside it would be the same run.
    is_probe: ClassVar[bool] = False
    # Whether `losses` runs the blocks again in another mode, which no recomputation in the backward pass can repeat.
    reruns_blocks: ClassVar[bool] = False
    # The files that its publication ships: names, keys, recipes, defects.
    publication: ClassVar[Publication] = Publication()
    # Maps that `pointpeft show` draws beside attention, and the similarity of a cloud to each entry of its memory, [M].
    token_maps: ClassVar[tuple[TokenMap, ...]] = ()
    recall: ClassVar[CallReader | None] = None

    @classmethod
    def yaml_options(cls, section: Mapping[str, Any]) -> dict[str, Any]:
        """Our options from the `model:` section of a published YAML file; by default those that are named there."""
        return {ours: section[theirs] for theirs, ours in cls.publication.options.items() if theirs in section}

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our options for published weights: those of the YAML file, and what repeats the published code."""
        return cls.yaml_options(config)

    def published_renames(self, model: "PointModel") -> tuple[tuple[str, str], ...]:
        """Substitutions that turn our names of tensors into published ones, after the backbone's own."""
        return self.publication.renames

    def attach(self, model: "PointModel") -> None:
        """Freezes the model, adds what the method trains, and marks what trains besides.

        Raises:
            ValueError: The backbone lacks a part that the method needs, or has been adapted already.
            ImportError: An optional package is not installed.
        """
        for package in self.packages:
            if find_spec(package) is None:
                raise ImportError(
                    f"method {self.name!r} needs the package {package}: pip install 'pointpeft[{package}]'"
                )
        missing = [attribute for attribute in self.needs if not hasattr(model.backbone, attribute)]
        if missing:
            raise ValueError(f"method {self.name!r} needs a backbone with {', '.join(missing)}")
        model.backbone.requires_grad_(False)
        self.build(model)
        for name, parameter in model.named_parameters():
            if any(re.search(pattern, name) for pattern in self.trains):
                parameter.requires_grad_(True)

    def build(self, model: "PointModel") -> None:
        """Puts the method's modules into the model; they train."""
        raise NotImplementedError

    def prepare(self, model: "PointModel", clouds: TrainingClouds) -> None:
        """Fills what the method takes from the training clouds before training; by default nothing.

        Args:
            model: On its device, with its pre-trained weights.
            clouds: Only iterated over where they are needed.
        """

    def after_step(self, model: "PointModel") -> None:
        """Called after every step of the optimizer, while the gradients are still there; by default nothing."""

    def after_load(self, model: "PointModel") -> None:
        """Called when a pre-training has been put into an attached model: copies of its weights are stale then."""

    def losses(
        self,
        model: "PointModel",
        xyz: Tensor,
        labels: Tensor,
        logits: Tensor,
        class_weights: Tensor | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of the method beside the task's, by name, after a forward in training.

        Args:
            model: The model that has just run.
            xyz: What it was given. [B, N, 3]
            labels: Classes, int64; of every point in a dense task. [B] or [B, N]
            logits: What it gave. [..., num_classes]
            class_weights: Of the classes in the task's cross-entropy; None where all weigh alike. [num_classes]
            inputs: What it was given beside xyz, by name.

        Returns:
            Scalars that are added to the task's loss; by default those its blocks left in `model.aux_losses()`.
        """
        return model.aux_losses()

    def merge(self, model: "PointModel") -> None:
        """Folds what can be folded into the frozen weights, in place: the same logits, fewer operations.

        Raises:
            ValueError: The method has nothing to fold.
        """
        if not self.mergeable:
            raise ValueError(f"method {self.name!r} has nothing that can be folded into the backbone")
        self.fold(model)

    def fold(self, model: "PointModel") -> None:
        """The implementation of `merge`, overridden by methods with `mergeable`."""
        raise NotImplementedError

    def is_dead(self, name: str) -> bool:
        """Whether a parameter counts as trainable in the publication but gets no gradient."""
        return any(re.search(pattern, name) for pattern in self.dead)

    def config(self) -> dict[str, Any]:
        """The options, ready for JSON."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


_METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register_method(cls: M) -> M:
    """Registers a `Method` under the `name` it sets, else under its class name in lower case."""
    name = cls.__dict__.get("name", cls.__name__.lower())
    if name in _METHODS:
        raise ValueError(f"a method named {name!r} is registered already")
    cls.name = name
    _METHODS[name] = cls
    return cls


def method_names() -> list[str]:
    """Names of all registered methods."""
    return sorted(_METHODS)


def method_class(name: str) -> type[Method]:
    """The dataclass of a method.

    Raises:
        ValueError: An unknown name; the message lists the known ones.
    """
    if name not in _METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(method_names())}")
    return _METHODS[name]


def create_method(name: str, **options: Any) -> Method:
    """A method with some options set; lists become tuples, as after JSON.

    Raises:
        ValueError: An unknown name or option.
    """
    cls = method_class(name)
    known = [f.name for f in fields(cls)]
    for key in options:
        if key not in known:
            raise ValueError(f"unknown option {key!r} of method {name!r}; known: {', '.join(known)}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return cls(**values)


def factory_kwargs(module: nn.Module) -> dict[str, Any]:
    """Device and dtype of a module's parameters, for the constructors of modules that are put beside it."""
    parameter = next(module.parameters())
    return {"device": parameter.device, "dtype": parameter.dtype}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
