"""Adaptation methods, by name: each is a frozen dataclass of its options that attaches itself to a model."""

from pointpeft.methods.adalora import AdaLoRA
from pointpeft.methods.adapter_x import AdapterX
from pointpeft.methods.adaptformer import AdaptFormer
from pointpeft.methods.base import (
    Method,
    TrainingClouds,
    create_method,
    method_class,
    method_names,
    register_method,
)
from pointpeft.methods.bi_adaptformer import BiAdaptFormer
from pointpeft.methods.bitfit import BitFit
from pointpeft.methods.dapt import DAPT
from pointpeft.methods.dyt import DyT
from pointpeft.methods.fact import FacT
from pointpeft.methods.full import Full
from pointpeft.methods.hf_peft import HRA, OFT, DoRA, LoHa, LoKr, LoRA, RsLoRA, VeRA
from pointpeft.methods.houlsby import Houlsby
from pointpeft.methods.ia3 import IA3
from pointpeft.methods.iconformer import IConFormer
from pointpeft.methods.idpt import IDPT
from pointpeft.methods.linear import Linear
from pointpeft.methods.ln_tuning import LNTuning
from pointpeft.methods.memory_bank import build_memory_bank, load_memory_bank, set_memory_bank
from pointpeft.methods.peterrec import PeterRec
from pointpeft.methods.point_gst import PointGST
from pointpeft.methods.point_lora import PointLoRA
from pointpeft.methods.point_peft import PointPEFT
from pointpeft.methods.prefix import Prefix
from pointpeft.methods.sct import SCT
from pointpeft.methods.ssf import SSF
from pointpeft.methods.stag import STAG
from pointpeft.methods.unipelt import UniPELT
from pointpeft.methods.vpt import VPT

__all__ = [
    "DAPT",
    "HRA",
    "IA3",
    "IDPT",
    "OFT",
    "SCT",
    "SSF",
    "STAG",
    "VPT",
    "AdaLoRA",
    "AdaptFormer",
    "AdapterX",
    "BiAdaptFormer",
    "BitFit",
    "DoRA",
    "DyT",
    "FacT",
    "Full",
    "Houlsby",
    "IConFormer",
    "LNTuning",
    "Linear",
    "LoHa",
    "LoKr",
    "LoRA",
    "Method",
    "PeterRec",
    "PointGST",
    "PointLoRA",
    "PointPEFT",
    "Prefix",
    "RsLoRA",
    "TrainingClouds",
    "UniPELT",
    "VeRA",
    "build_memory_bank",
    "create_method",
    "load_memory_bank",
    "method_class",
    "method_names",
    "register_method",
    "set_memory_bank",
]
