"""Adaptation methods, by name: each is a frozen dataclass of its options that attaches itself to a model."""

from pointpeft.methods.adaptformer import AdaptFormer
from pointpeft.methods.base import Method, create_method, method_class, method_names, register_method
from pointpeft.methods.bitfit import BitFit
from pointpeft.methods.dapt import DAPT
from pointpeft.methods.full import Full
from pointpeft.methods.houlsby import Houlsby
from pointpeft.methods.idpt import IDPT
from pointpeft.methods.linear import Linear
from pointpeft.methods.ln_tuning import LNTuning
from pointpeft.methods.point_peft import PointPEFT, build_memory_bank, set_memory_bank
from pointpeft.methods.ssf import SSF

__all__ = [
    "DAPT",
    "IDPT",
    "SSF",
    "AdaptFormer",
    "BitFit",
    "Full",
    "Houlsby",
    "LNTuning",
    "Linear",
    "Method",
    "PointPEFT",
    "build_memory_bank",
    "create_method",
    "method_class",
    "method_names",
    "register_method",
    "set_memory_bank",
]
