"""Adaptation methods, by name: each is a frozen dataclass of its options that attaches itself to a model."""

from pointpeft.methods.adapters.adapter_x import AdapterX
from pointpeft.methods.adapters.adaptformer import AdaptFormer
from pointpeft.methods.adapters.bi_adaptformer import BiAdaptFormer
from pointpeft.methods.adapters.dapt import DAPT
from pointpeft.methods.adapters.dyt import DyT
from pointpeft.methods.adapters.houlsby import Houlsby
from pointpeft.methods.adapters.iconformer import IConFormer
from pointpeft.methods.adapters.peterrec import PeterRec
from pointpeft.methods.adapters.point_gst import PointGST
from pointpeft.methods.adapters.sct import SCT
from pointpeft.methods.adapters.stag import STAG
from pointpeft.methods.adapters.unipelt import UniPELT
from pointpeft.methods.base import (
    Method,
    TrainingClouds,
    create_method,
    method_class,
    method_names,
    register_method,
)
from pointpeft.methods.prompts.idpt import IDPT
from pointpeft.methods.prompts.memory_bank import build_memory_bank, load_memory_bank, set_memory_bank
from pointpeft.methods.prompts.point_peft import PointPEFT
from pointpeft.methods.prompts.prefix import Prefix
from pointpeft.methods.prompts.vpt import VPT
from pointpeft.methods.reparameterized.adalora import AdaLoRA
from pointpeft.methods.reparameterized.fact import FacT
from pointpeft.methods.reparameterized.hf_peft import HRA, OFT, DoRA, LoHa, LoKr, LoRA, RsLoRA, VeRA
from pointpeft.methods.reparameterized.ia3 import IA3
from pointpeft.methods.reparameterized.point_lora import PointLoRA
from pointpeft.methods.reparameterized.ssf import SSF
from pointpeft.methods.selective.bitfit import BitFit
from pointpeft.methods.selective.full import Full
from pointpeft.methods.selective.linear import Linear
from pointpeft.methods.selective.ln_tuning import LNTuning

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
