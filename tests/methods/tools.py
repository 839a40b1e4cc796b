"""What the tests of single methods share: a small model away from its initial values, and one block's input."""

from importlib.util import find_spec

import pytest
import torch

from pointpeft import create_model
from pointpeft.backbones.context import Context
from pointpeft.methods import method_class, method_names

SMALL = {"num_groups": 16, "group_size": 8, "drop_path": 0.0}


def every_method(mergeable=None):
    """Names of all methods, or of those that can or cannot be merged; skipped where a package is missing."""
    names = [name for name in method_names() if mergeable is None or method_class(name).mergeable == mergeable]
    return [pytest.param(name, marks=packages(name)) for name in names]


def packages(name):
    """The mark of a test that needs a method's optional packages."""
    missing = [package for package in method_class(name).packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def cloud(batch=2, points=128, seed=1):
    return torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(seed))


def make(name, seed=0, **options):
    """As created, in evaluation."""
    torch.manual_seed(seed)
    return create_model("point_mae_tiny", name, 4, **SMALL, **options).eval()


def stirred(name, seed=0, noise=0.3, **options):
    """Every trainable parameter moved by noise, so that nothing is zero or one."""
    model = make(name, seed, **options)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return model


def block_input(model, batch=2, seed=2):
    """Tokens and a context as the first block gets them."""
    generator = torch.Generator().manual_seed(seed)
    width = model.backbone.config.width
    x, pos = torch.randn(2, batch, 17, width, generator=generator)
    xyz = cloud(batch)
    return x, Context(xyz, xyz[:, :16], prefix=("cls",), pos=pos)


def same_at_start(name, **options):
    """Largest difference of the features from those of the plain backbone with the same weights, over their size."""
    model, plain = make(name, **options), make("linear")
    theirs = plain.state_dict()
    state = model.state_dict()
    for key in state:
        if key in theirs:
            state[key] = theirs[key]
    model.load_state_dict(state)
    with torch.no_grad():
        ours, theirs = model.forward_features(cloud()), plain.forward_features(cloud())
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
