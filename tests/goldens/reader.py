"""Reads golden files and redraws their weights, which are not stored: numpy's PCG64 gives them in the files' order."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

FOLDER = Path(__file__).parent
PATHS = {path.stem: path for path in sorted(FOLDER.glob("*/*.safetensors"))}
NAMES = sorted(PATHS)


def read(name):
    """The header (config, seed, state, trainable, grad_norm) and the tensors of one golden."""
    with safe_open(PATHS[name], "pt") as file:
        return json.loads(file.metadata()["meta"]), {key: file.get_tensor(key) for key in file.keys()}


def state_dict(meta):
    """The weights under their published names."""
    rng = np.random.default_rng(meta["seed"])
    return {key: _draw(rng, shape, kind) for key, shape, kind in meta["state"]}


def _draw(rng, shape, kind):
    if kind == "matrix":
        value = rng.standard_normal(shape) * (0.5 / max(1, int(np.prod(shape[1:]))) ** 0.5)
    elif kind == "gain":
        value = 1 + 0.1 * rng.standard_normal(shape)
    elif kind == "shift":
        value = 0.1 * rng.standard_normal(shape)
    elif kind == "mean":
        value = 0.2 * (rng.random(shape) - 0.5)
    elif kind == "var":
        value = 0.5 + rng.random(shape)
    else:
        raise ValueError(f"unknown kind {kind!r}")
    return torch.from_numpy(np.asarray(value, dtype=np.float32).reshape(shape))
