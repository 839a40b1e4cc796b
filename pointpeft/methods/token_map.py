"""Maps of a method that `pointpeft show` draws: values recorded from calls during one forward pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class CallReader:
    """Reads values off the calls of one class of modules.

    Attributes:
        module: The class; all its instances in the model are watched.
        call: Name of the watched method of the instances, such as "forward".
        values: From the instance, the arguments and the result of a call to the values.
    """

    module: type[nn.Module]
    call: str
    values: Callable[[Any, tuple[Any, ...], Any], Tensor]


@dataclass(frozen=True)
class TokenMap(CallReader):
    """One value for each token of the cloud, [T]; of several calls the mean is drawn.

    Attributes:
        name: Of the layer on the page.
        meaning: What the page says of it.
    """

    name: str
    meaning: str
