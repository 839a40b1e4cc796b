"""The linear probe beside a result: the head alone, trained on the features of the untouched backbone."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pointpeft.data.on_demand import OnDemand
from pointpeft.model import PointModel
from pointpeft.tasks.batches import Clouds
from pointpeft.tasks.classification.metrics import Metrics, measure
from pointpeft.tasks.inference import Voting, forward_all, forward_shared
from pointpeft.training.loop import Recipe, train
from pointpeft.training.processes import deal, rank_and_world, require_clouds, share
from pointpeft.training.run_folder import RunFolder
from pointpeft.training.seeds import derive_seed
from pointpeft.training.selection import Selector

# The backbone is frozen and in evaluation mode, so its features of a cloud are computed once per augmented view; epochs
# take the views in turn.
VIEWS = 8


class FeatureBatches:
    """One epoch of (features [B, C], labels [B]), cut as `Clouds.batches` cuts clouds."""

    def __init__(self, features: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator) -> None:
        order = torch.randperm(len(labels), generator=generator)
        chunks = torch.tensor_split(order, -(-len(order) // batch_size))
        self.sizes = [len(chunk) for chunk in chunks]
        rank, world = rank_and_world()
        require_clouds(min(self.sizes), world)
        self.chunks = [chunk[share(len(chunk), rank, world)] for chunk in chunks]
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in self.chunks:
            yield self.features[chunk], self.labels[chunk]


def probe(
    accelerator: Accelerator,
    model: PointModel,
    recipe: Recipe,
    batch_size: int,
    parts: dict[str, Clouds],
    select: str,
    augment: Any,
    voting: Voting,
    folder: RunFolder,
    title: str | None,
) -> Metrics:
    """Trains the head of `model` on cached features with the recipe of the run it stands beside.

    Args:
        model: A model whose backbone is frozen and pre-trained; its head is trained in place.
        parts: "train", "test" and, where the run has one, "val".
        select: The run's rule.
        augment: The run's augmentation, of training features.
        voting: The run's, of test clouds.

    Returns:
        Metrics on the test clouds.
    """
    device, seed, training, head = accelerator.device, recipe.seed, parts["train"], model.head
    model.to(device).eval()

    def features(points: Tensor | OnDemand) -> Tensor:
        return forward_shared(model.forward_features, points, batch_size, device, title)

    @torch.no_grad()
    def features_and_labels(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return model.forward_features(batch[0].to(device)).float().cpu(), batch[1]

    cached = []
    for view in range(min(VIEWS, recipe.epochs)):
        generator = torch.Generator().manual_seed(derive_seed(seed, "probe", view))
        batches_of_view = training.batches(batch_size, generator)
        # One after another: of clouds on disk there is never more than a batch in memory.
        augmented = ((augment(points, generator), labels) for points, labels in batches_of_view)
        answers = deal(augmented, features_and_labels, title, "batch")
        cached.append(tuple(map(torch.cat, zip(*answers, strict=True))))
    held = {
        name: [features(points) for points in (voting if name == "test" else Voting()).views(part)]
        for name, part in parts.items()
        if name != "train"
    }

    def batches(epoch: int) -> FeatureBatches:
        inputs, labels = cached[epoch % len(cached)]
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch, "probe batches"))
        return FeatureBatches(inputs, labels, batch_size, generator)

    def loss_of(module: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(module(inputs), labels)}

    def test(name: str) -> Metrics:
        head.eval()
        logits: Any = sum(forward_all(head, one, batch_size, device) for one in held[name]) / len(held[name])
        return measure(logits, parts[name].labels)

    selector = Selector(select, test)
    unsaved = RunFolder(folder.path / "probe", main=False)  # quick enough to be repeated after a kill
    state = train(accelerator, head, recipe, batches, loss_of, unsaved, selector.after_epoch)
    selector.restore(head, state)
    return test("test")
