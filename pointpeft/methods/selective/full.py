"""Full fine-tuning: everything trains."""

from dataclasses import dataclass

from pointpeft.methods.base import Method, register_method
from pointpeft.model import PointModel


@register_method
@dataclass(frozen=True)
class Full(Method):
    """Trains every parameter: the baseline that the other methods are measured against."""

    trains = (r"^backbone\.",)
    published_names = ("PointTransformer",)

    def build(self, model: PointModel) -> None:
        """Nothing to add."""
