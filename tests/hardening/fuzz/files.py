"""Small valid files of every kind that is read, and ways to damage them."""

import json
import pickle
import random
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.torch import save_file

from pointpeft.checkpoints.adapter import FORMAT
from pointpeft.training.run_folder import RunFolder
from tests.data.formats.test_pcd import write_pcd
from tests.data.formats.test_readers import CLOUDS, MESHES, cloud
from tests.data.sets.test_part_files import arrays as part_arrays
from tests.data.sets.test_part_files import write as write_part_file
from tests.data.sets.test_s3dis import write_rooms
from tests.data.sets.test_shapenetpart import write as write_shapenetpart

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x2D, 0x2E, 0x0A, 0x39)
BIG = (0, -1, 1, 255, 65535, 65536, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**40)


SEPARATORS = (b" ", b"\t", b",", b";", b"|", b", ", b"  ", b" ,", b".", b'"', b"\n", b"\0")
HEADERS = (
    *(
        b"x y z",
        b"x,y,z",
        b"z;y;x",
        b"X\tY\tZ",
        b'"x","y","z"',
        b"label x y z",
        b"time,id,x,y,z",
        b"# x y z",
        b"//X,Y,Z",
    ),
    *(b"x y", b"x y y", b"lat lon alt", b"easting northing height", b"0,1,2", b",0,1,2", b"12", b"-1", b"9" * 30),
    *(
        b"number of points: 3",
        b"ncols 4",
        b"1,5 2,5 3,5",
        b"1,5;2,5;3,5",
        b"nan nan nan",
        b"1.#IND 0 0",
        b"a b c",
        b"#" * 80,
    ),
    *(b"x" * 5000, b"\xef\xbb\xbfx y z", b"\xff\xfe", "größe;länge;höhe".encode("latin-1"), b"x (m),y (m),z (m)", b"'"),
)


def write_h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = np.random.default_rng(0).normal(size=(4, 16, 3)).astype(np.float32)
        file.create_dataset("label", data=np.arange(4)[:, None], compression="gzip")


def write_pickle(path: Path, protocol: int) -> None:
    random = np.random.default_rng(0)
    clouds = [random.normal(size=(9, 6)).astype(np.float32) for _ in range(3)]
    path.write_bytes(pickle.dumps([clouds, [np.array([i]) for i in range(3)]], protocol))


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"blocks.0.weight": (4, 6), "blocks.0.bias": (6,), "count": ()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_parts(path: Path) -> None:
    content = part_arrays(clouds=5, points=6)
    content["split"] = np.array([b"train"] * 3 + [b"test"] * 2)
    content["classes"] = np.array([b"cup", b"table"])
    write_part_file(path, content)


def write_fold(path: Path) -> None:
    random = np.random.default_rng(0)
    entries = [(random.normal(size=(9, 6)).astype(np.float32), i % 2, 10 + i % 2) for i in range(4)]
    path.write_bytes(pickle.dumps({"train": entries, "test": entries[:2]}, 2))


def write_rooms_of(path: Path) -> None:
    write_rooms(path.parent, (path.stem, "Area_1_hall_1"), points=20)


def write_checkpoint(path: Path) -> None:
    RunFolder(path.parent).save_checkpoint({"epoch": 3, "weights": tensors(), "history": [{"loss": 0.5}]})


CONFIG = """# as published
optimizer: {type: AdamW, kwargs: {lr: 0.0005, weight_decay: 0.05}}
model:
  NAME: PointTransformer
  trans_dim: 384
  drop_path_rate: 0.1
  group: &groups [128, 32]
  same: *groups
  since: 2024-02-29
total_bs: 32
"""
ADAPTER = {
    "peft_type": "POINTPEFT",
    "format": FORMAT,
    "backbone": {"name": "point_mae_tiny", "fields": {"depth": 2}},
    "method": {"name": "dapt", "fields": {"rank": 4}},
    "num_classes": 2,
    "base_model_name_or_path": None,
    "base_model_sha256": None,
    "weights_sha256": "0",
    "metadata": {"classes": ["a", "b"]},
}


def write_csv(path: Path) -> None:
    (path.parent / "clouds").mkdir(exist_ok=True)
    rows = ["path,label,split"]
    for i in range(6):
        np.save(path.parent / "clouds" / f"{i}.npy", cloud(seed=i))
        rows.append(f"clouds/{i}.npy,{'chair' if i % 2 else 'table'},{'train' if i < 4 else 'test'}")
    path.write_text("\n".join(rows) + "\n")


def valid_files(folder: Path) -> dict[str, Path]:
    """Writes one of each into its own folder; gives them by name."""
    points = cloud(n=12)
    writers: dict[str, Callable[[Path], object]] = {
        **{name: (lambda path, write=write: write(path, points)) for name, write in CLOUDS.items()},
        **{f"mesh_{name}": write for name, write in MESHES.items()},
        **{f"{kind}.pcd": (lambda path, kind=kind: write_pcd(path, points, kind)) for kind in PCD_KINDS},
        "clouds.h5": write_h5,
        "protocol2.dat": lambda path: write_pickle(path, 2),
        "protocol5.dat": lambda path: write_pickle(path, 5),
        "new.pth": lambda path: torch.save({"model": tensors()}, path),
        "old.pth": lambda path: torch.save(tensors(), path, _use_new_zipfile_serialization=False),
        "weights.safetensors": lambda path: save_file(tensors(), path),
        "list.csv": write_csv,
        "few_shot/2way2shot/0.pkl": write_fold,
        "parts/clouds.h5": write_parts,
        "parts/clouds.npz": write_parts,
        "rooms/Area_5_office_1.npy": write_rooms_of,
        **{f"shapenetpart/{name}": partial(write_shapenetpart_of, name) for name in SHAPENETPART},
        "config.yaml": lambda path: path.write_text(CONFIG),
        "adapter/adapter_config.json": lambda path: path.write_text(json.dumps(ADAPTER)),
        "run/checkpoint.pt": write_checkpoint,
    }
    files = {}
    for name, write in writers.items():
        path = folder / re.sub(r"[./]", "_", name) / name
        path.parent.mkdir(parents=True)
        write(path)
        files[name] = path
    return files


SHAPENETPART = (
    "02691156/train0.txt",
    "synsetoffset2category.txt",
    "train_test_split/shuffled_train_file_list.json",
)


def write_shapenetpart_of(name: str, path: Path) -> None:
    """The whole data set, of which one file is `path`."""
    root = path.parents[name.count("/")]
    shutil.rmtree(root)
    write_shapenetpart(root, per_split=1, points=6)


PCD_KINDS = ("ascii", "binary", "binary_compressed")


def damage(content: bytes, choice: random.Random, others: list[bytes]) -> bytes:
    """Flips bits, overwrites, cuts, repeats, removes or splices bytes, or changes separators, headers and encodings."""
    data = bytearray(content)
    for _ in range(choice.choice([1, 1, 1, 2, 3])):
        _damage(data, choice, others)
    return bytes(data)


def _damage(data: bytearray, choice: random.Random, others: list[bytes]) -> None:
    # Half of the damage hits the first bytes, where headers are.
    reach = len(data) if choice.random() < 0.5 else min(len(data), 160)
    at = choice.randrange(reach + 1) if reach else 0
    size = choice.choice([1, 1, 2, 4, 8, 30])
    kind = choice.randrange(12)
    if kind == 0:
        for _ in range(choice.choice([1, 1, 2, 8])):
            if data:
                data[choice.randrange(max(1, reach))] ^= 1 << choice.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        del data[at : at + size]
    elif kind == 3:
        data[at:at] = data[at : at + size] * choice.choice([1, 2, 100])
    elif kind == 4:
        other = choice.choice(others)
        start = choice.randrange(len(other) + 1)
        data[at : at + choice.choice([0, size, 100])] = other[start : start + choice.choice([4, 30, 300])]
    elif kind == 5:
        data[at : at + size] = bytes(choice.choice(INTERESTING) for _ in range(size))
    elif kind == 6:  # a number of the machine
        width = choice.choice([2, 4, 8])
        number = choice.choice(BIG) % (1 << 8 * width)
        data[at : at + width] = number.to_bytes(width, choice.choice(["little", "big"]))
    elif kind == 7:  # a number in text
        digits = [i for i in range(reach) if data[i : i + 1].isdigit()]
        if digits:
            start = choice.choice(digits)
            data[start : start + 1] = choice.choice(
                [str(choice.choice(BIG)), "1e400", "nan", "-inf", "", "-", "1" * 400, "0x10", "1_0", "٣"]
            ).encode()
    elif kind == 8:
        data[at:at] = bytes(choice.randrange(256) for _ in range(size))
    elif kind == 9:  # the separators of a text
        old, new = choice.choice(SEPARATORS), choice.choice(SEPARATORS)
        data[:reach] = data[:reach].replace(old, new, choice.choice([-1, -1, 1, 3]))
    elif kind == 10:  # a line before the points, or between them
        starts = [0, *(i + 1 for i in range(reach) if data[i : i + 1] == b"\n")]
        start = choice.choice(starts)
        data[start:start] = choice.choice(HEADERS) + choice.choice([b"\n", b"\r\n", b"\r", b""])
    else:  # the whole text in another encoding, or with other ends of lines
        text = bytes(data).decode("latin-1")
        encoding = choice.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
        data[:] = choice.choice(
            [
                text.encode(encoding),
                text.replace("\n", "\r").encode("latin-1"),
                text.replace(".", ",").encode("latin-1"),
            ]
        )
