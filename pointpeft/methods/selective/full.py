"""Full fine-tuning: everything trains."""

from dataclasses import dataclass

from pointpeft.methods.base import Method, register_method
from pointpeft.model import PointModel
from pointpeft.weights.publication import Publication, YamlModel


@register_method
@dataclass(frozen=True)
class Full(Method):
    """Trains every parameter: the baseline that the other methods are measured against."""

    trains = (r"^backbone\.",)
    # IDPT's name for Point-MAE's model; under their own names backbones declare theirs.
    publication = Publication(
        models=(YamlModel("PointTransformerRaw", augment="rotate"),),
        optimizer_parts=("all",),
    )

    def build(self, model: PointModel) -> None:
        """Nothing to add."""
