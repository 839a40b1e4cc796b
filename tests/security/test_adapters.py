"""Adapters from elsewhere: what their files describe is bounded before memory is taken for it, and named."""

import json
import re
import struct

import pytest
import torch
from safetensors.torch import save_file

from pointpeft import create_model
from pointpeft.checkpoints import load_adapter, read_weights, save_adapter
from pointpeft.checkpoints.adapter import CONFIG, WEIGHTS, read_config
from pointpeft.files import sha256
from pointpeft.methods.prompts.memory_bank import load_memory_bank
from pointpeft.training.run_folder import read_json
from tests.security.test_sizes import MEBIBYTE, memory

SMALL = {"depth": 2, "num_groups": 16, "group_size": 8}


@pytest.fixture
def folder(tmp_path):
    save_adapter(create_model("point_mae_tiny", "dapt", 4, **SMALL), tmp_path / "adapter")
    load_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder, path, value):
    config = json.loads((folder / CONFIG).read_text())
    *parents, last = path.split(".")
    entry = config
    for parent in parents:
        entry = entry[parent]
    entry[last] = value
    (folder / CONFIG).write_text(json.dumps(config))


def refused(folder, words, most=256 * MEBIBYTE):
    with memory(most), pytest.raises(ValueError, match=rf"{re.escape(CONFIG)}.*{words}"):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("num_classes", 10**9, "num_classes must be an int from 1 to 10000, got 1000000000"),
        ("num_classes", True, "num_classes"),
        ("num_classes", [4], "num_classes"),
        ("num_categories", 10**9, "num_categories must be an int from 0 to 10000"),
        ("backbone.fields.width", 10**9, r"backbone\.fields\.width must be at most 1048576, got 1000000000"),
        ("backbone.fields.width", 6 * 10**5, "describes a model of at least"),
        ("backbone.fields.depth", 10**9, r"backbone\.fields\.depth must be at most 1048576"),
        ("backbone.fields.depth", 10**6, "describes a model of"),
        ("backbone.fields.embed_width", 10**6, "describes a model of at least"),
        ("method.fields.rank", 10**6, "describes a model of at least"),
        ("method.fields.rank", 10**400, r"method\.fields\.rank must be at most 1048576, got a number of 1329 bits"),
        ("method.fields.dropout", float("nan"), r"method\.fields\.dropout must be finite"),
        ("method.fields", [], r"method\.fields must be options by name"),
        ("method", 3, "method must have a name and fields, got 3"),
        ("backbone", {}, "backbone must have a name and fields"),
        ("weights_sha256", 7, "weights_sha256 must be a text or null, got 7"),
        ("base_model_sha256", [], "base_model_sha256 must be a text"),
        ("metadata", [1], "metadata must be facts by name"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_what_a_configuration_describes_is_bounded(path, value, words, folder):
    change(folder, path, value)
    refused(folder, words)


@pytest.mark.parametrize("method", ["prefix", "vpt", "point_peft", "linear", "adapter_x"])
def test_no_option_of_a_method_takes_memory(method, tmp_path):
    save_adapter(create_model("point_mae_tiny", method, 4, **SMALL), tmp_path / "adapter")
    fields = json.loads((tmp_path / "adapter" / CONFIG).read_text())["method"]["fields"]
    large = {name: 10**6 for name, value in fields.items() if type(value) is int and name in ("rank", "num_prompts")}
    change(tmp_path / "adapter", "method.fields", fields | large)
    change(tmp_path / "adapter", "backbone.fields.depth", 10**5)
    refused(tmp_path / "adapter", "describe")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" + b"[]," * (4 * MEBIBYTE) + b"[]]", "it has 12582916 bytes, at most 8388608 are read"),
        (b"[" * MEBIBYTE, "it is nested too deeply"),
        (b'{"a":' * MEBIBYTE, "it is nested too deeply"),
    ],
)
def test_large_and_deep_json_is_refused(content, words, tmp_path):
    for name, read in ((CONFIG, read_config), ("config.json", lambda folder: read_json(folder / "config.json", ""))):
        (tmp_path / name).write_bytes(content)
        with memory(128 * MEBIBYTE), pytest.raises(ValueError, match=f"{name} is not.*{words}"):
            read(tmp_path)


def header_of(length, have):
    return struct.pack("<Q", length) + b'{"a":' * (have // 5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a readable safetensors file: its header has 0 bytes, 0 are there"),
        (header_of(2**62, 100), "its header has 4611686018427387904 bytes, 100 are there"),
        (
            header_of(20 * MEBIBYTE, 21 * MEBIBYTE),
            "is refused: its header has 20971520 bytes, at most 8388608",
        ),
    ],
)
def test_a_header_of_weights_is_bounded(content, words, folder):
    path = folder / WEIGHTS
    path.write_bytes(content)
    change(folder, "weights_sha256", sha256(path))
    model = create_model("point_mae_tiny", "point_peft", 4, **SMALL)
    for read in (lambda: load_adapter(folder), lambda: read_weights(path), lambda: load_memory_bank(path, model)):
        with memory(32 * MEBIBYTE), pytest.raises(ValueError, match=f"{WEIGHTS} .*{words}"):
            read()


def test_many_names_fit_into_a_header(tmp_path):
    save_file({f"{i:0200}": torch.zeros(1) for i in range(5000)}, tmp_path / "a.safetensors")
    assert len(read_weights(tmp_path / "a.safetensors")[0]) == 5000
