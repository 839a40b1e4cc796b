"""BitFit: only the biases of the blocks train."""

from dataclasses import dataclass

from pointpeft.methods.base import PREFIX_TOKENS, Method, register_method
from pointpeft.model import PointModel


@register_method
@dataclass(frozen=True)
class BitFit(Method):
    """Trains every bias inside the blocks.

    Source: Ben Zaken et al., "BitFit", ACL 2022.
    """

    trains = (PREFIX_TOKENS, r"^backbone\.(global_)?blocks\.\d+\.(.*\.)?\w*bias$")

    def build(self, model: PointModel) -> None:
        """Nothing to add."""
