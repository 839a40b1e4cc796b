"""LN-tuning: only the layer norms of the blocks train."""

from dataclasses import dataclass

from pointpeft.methods.base import PREFIX_TOKENS, Method, register_method
from pointpeft.model import PointModel


@register_method
@dataclass(frozen=True)
class LNTuning(Method):
    """Trains gain and bias of both layer norms in every block.

    Source: Qi et al., "Parameter-efficient tuning on layer normalization for pre-trained language models", 2022.
    """

    name = "ln_tuning"
    trains = (PREFIX_TOKENS, r"^backbone\.(global_)?blocks\.\d+\.norm[12]\.(weight|bias)$")

    def build(self, model: PointModel) -> None:
        """Nothing to add."""
