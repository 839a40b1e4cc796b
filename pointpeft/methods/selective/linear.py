"""Linear probing: the backbone as it is, only the head trains."""

from dataclasses import dataclass

from torch import nn

from pointpeft.methods.base import Method, register_method
from pointpeft.model import PointModel


@register_method
@dataclass(frozen=True)
class Linear(Method):
    """Trains the head on the features of the frozen backbone.

    Attributes:
        tokens: Also trains the backbone's prefix tokens and their positions, which a pre-training may lack.
    """

    tokens: bool = True

    is_probe = True

    def build(self, model: PointModel) -> None:
        """Nothing to add."""
        if self.tokens:
            for name in model.backbone.prefix:
                for parameter_name in (f"{name}_token", f"{name}_pos"):
                    parameter = getattr(model.backbone, parameter_name, None)
                    if isinstance(parameter, nn.Parameter):
                        parameter.requires_grad_(True)
