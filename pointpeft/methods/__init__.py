"""Adaptation methods, by name: each is a frozen dataclass of its options that attaches itself to a model."""

from pointpeft.methods.base import Method, create_method, method_class, method_names, register_method
from pointpeft.methods.dapt import DAPT
from pointpeft.methods.full import Full
from pointpeft.methods.idpt import IDPT
from pointpeft.methods.linear import Linear

__all__ = [
    "DAPT",
    "IDPT",
    "Full",
    "Linear",
    "Method",
    "create_method",
    "method_class",
    "method_names",
    "register_method",
]
