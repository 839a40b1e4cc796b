"""Tiny labelled clouds on disk, and the arguments that make a run of seconds."""

import h5py
import numpy as np

SHAPES = {"ball": (1.0, 1.0, 1.0), "disc": (1.0, 0.1, 1.0), "rod": (0.1, 1.0, 0.1)}
# A run small enough for a test: 1 or 2 steps per epoch on a model of 2 blocks.
TINY = {"epochs": 3, "num_points": 64, "batch_size": 8, "warmup_epochs": 1, "val_fraction": 0.25}
TINY_MODEL = ("width=32", "depth=2", "num_heads=2", "num_groups=8", "group_size=8", "rank=4")


def write_clouds(root, per_class=8, points=96, seed=0, shapes=SHAPES):
    """Ellipsoids of different proportions: train/ and test/ folders, one sub-folder per class."""
    random = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name, axes in shapes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                cloud = random.normal(size=(points, 3))
                cloud *= np.array(axes) / np.linalg.norm(cloud, axis=1, keepdims=True)
                np.save(folder / f"{i}.npy", cloud.astype(np.float32))
    return root


def write_parts(path, clouds=24, points=90, seed=0):
    """Ellipsoids of two kinds; the upper half is one part, the lower another."""
    random = np.random.default_rng(seed)
    category = np.arange(clouds) % 2
    xyz = random.normal(size=(clouds, points, 3))
    xyz /= np.linalg.norm(xyz, axis=-1, keepdims=True)
    xyz[category == 1] *= (1.0, 0.3, 1.0)
    parts = (xyz[..., 1] > 0).astype(int) + 2 * category[:, None]
    with h5py.File(path, "w") as file:
        file["xyz"], file["label"], file["category"] = xyz.astype(np.float32), parts, category
        file["classes"] = [b"ball", b"disc"]
        file["part_names"] = [b"ball/low", b"ball/high", b"disc/low", b"disc/high"]
    return path


class FakeDataset:
    """What `Clouds` needs of a data set."""

    def __init__(self, sizes, classes=("a", "b"), seed=0):
        import torch

        generator = torch.Generator().manual_seed(seed)
        self.clouds = [torch.randn(n, 3, generator=generator) for n in sizes]
        self.classes, self.up_axis, self.normalized, self.notes = classes, "y", True, ()
        self.names = [f"cloud {i}" for i in range(len(sizes))]

    def __len__(self):
        return len(self.clouds)

    def __getitem__(self, i):
        return self.clouds[i], i % len(self.classes)
