"""Runs the model of a published repository, from its own code and YAML file: build, train one step, evaluate.

    python -m pointpeft.compat tests/compat/drive_published.py CHECKOUT CONFIG.yaml OUTPUT.pt

Writes configuration, weights, points and logits for the comparison with ours. The code is left as it is, its `.cuda()`
calls too; of the packages that it wants, `timm` (two functions) and the debugger `ipdb` are replaced where missing.
"""

import importlib.util
import inspect
import os
import sys
import tempfile
import types
from pathlib import Path

import torch
from torch import nn

POINTS, CLOUDS, BANK = 1024, 3, 40


class DropPath(nn.Module):
    """Drops whole samples of a residual branch."""

    def __init__(self, drop_prob=0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        """[B, ...] -> [B, ...]"""
        if not self.training or not self.drop_prob:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1)) >= self.drop_prob
        return x * keep / (1 - self.drop_prob)


def provide_missing():
    """Modules that the code imports for little."""
    if importlib.util.find_spec("timm") is None:
        layers = types.ModuleType("timm.models.layers")
        layers.DropPath, layers.trunc_normal_ = DropPath, nn.init.trunc_normal_
        for name in ("timm", "timm.models"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["timm.models.layers"] = layers
    if importlib.util.find_spec("ipdb") is None:
        sys.modules["ipdb"] = types.ModuleType("ipdb")


def plain(config):
    """EasyDict to dict."""
    return {key: plain(value) if isinstance(value, dict) else value for key, value in config.items()}


def main(checkout, config_file, output):
    """Builds, trains one step, evaluates, writes."""
    checkout, output = Path(checkout).resolve(), Path(output).resolve()
    sys.path.insert(0, str(checkout))
    os.chdir(checkout)  # the YAML files name their bases from here
    provide_missing()
    torch.manual_seed(5)
    from utils.config import cfg_from_yaml_file

    config = cfg_from_yaml_file(config_file).model
    config.setdefault("tsne", False)  # PointGST's main sets it from its arguments
    bank = nn.functional.normalize(torch.randn(config.trans_dim, BANK), dim=0)
    scratch = Path(tempfile.mkdtemp())
    (scratch / "ckpts").mkdir()
    torch.save(bank, scratch / "ckpts" / "train_f_pos_shape_scan.pt")  # where Point-PEFT looks for its memory bank
    os.chdir(scratch)

    from models import build_model_from_cfg

    model = build_model_from_cfg(config).cuda()
    with torch.no_grad():
        for parameter in model.parameters():  # so that what starts at zero matters too
            parameter += 0.02 * torch.randn_like(parameter)
    points = (torch.rand(CLOUDS, POINTS, 3) * 2 - 1).cuda()
    labels = torch.arange(CLOUDS).cuda() % config.cls_dim
    extra = {}
    if "cp_feat" in inspect.signature(model.forward).parameters:
        shares = {"if_maxmean": False, "propagate_cof": 0.3, "center_cof": 0.3, "ad_cof": 0.7}
        extra = {"cp_feat": torch.randn(CLOUDS, config.trans_dim), "args": types.SimpleNamespace(**shares)}

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    loss, _ = model.get_loss_acc(model(points, **extra), labels)
    loss.backward()
    optimizer.step()
    trained = sum(p.grad is not None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        logits = model(points, **extra)
    beside = {"memory_bank": bank, "pooled_feature": extra["cp_feat"]} if extra else {}
    result = {"config": plain(config), "state": model.state_dict(), "points": points, "logits": logits, **beside}
    torch.save(result | {"loss": loss.item(), "trained": trained}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
