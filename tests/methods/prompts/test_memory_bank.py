"""Point-PEFT's bank as training makes it, and as a file."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from pointpeft import create_model, from_published, load_adapter
from pointpeft.checkpoints import to_published
from pointpeft.cli.main import main
from pointpeft.methods import build_memory_bank, load_memory_bank
from pointpeft.runs.comparison.compare import compare
from pointpeft.runs.config import CompareConfig, FinetuneConfig
from pointpeft.runs.finetune import finetune
from tests.clouds import TINY, TINY_MODEL
from tests.data.sets.test_s3dis import write_rooms
from tests.methods.tools import cloud, make

SIZES = tuple(pair for pair in TINY_MODEL if not pair.startswith("rank"))
QUICK = {"checkpoint": "none", "device": "cpu", "quiet": True, "probe": False}
PEFT = (*SIZES, "attention_rank=4", "prompt_blocks=1")


def bank_of(folder):
    return load_adapter(folder / "adapter").backbone.prior.memory_bank


def test_training_fills_the_bank_with_the_training_clouds(clouds_folder, tmp_path):
    config = FinetuneConfig(
        data=str(clouds_folder), method="point_peft", set=PEFT, output=tmp_path / "run", **QUICK, **TINY
    )
    result = finetune(config)
    bank = bank_of(result.folder)
    assert bank.shape == (32, result.clouds["train"]) == (32, 18)  # none of the clouds held out
    torch.testing.assert_close(bank.norm(dim=0), torch.ones(18))
    assert result.model["method"]["fields"]["bank_size"] == 18


def test_an_empty_bank_is_an_error(clouds_folder, tmp_path):
    config = FinetuneConfig(
        data=str(clouds_folder), method="point_peft", set=(*PEFT, "bank=none"), output=tmp_path / "run", **QUICK, **TINY
    )
    assert bank_of(finetune(config).folder).shape == (32, 0)


def test_a_stopped_run_goes_on_with_its_bank(clouds_folder, tmp_path, monkeypatch):
    import pointpeft.runs.finetune as finetuning

    config = FinetuneConfig(
        data=str(clouds_folder), method="point_peft", set=PEFT, output=tmp_path / "whole", **QUICK, **TINY
    )
    whole = load_file(finetune(config).folder / "adapter" / "adapter_model.safetensors")

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(finetuning, "save_adapter", stop)
    stopped = FinetuneConfig(**{**vars(config), "output": tmp_path / "stopped"})
    with pytest.raises(KeyboardInterrupt):
        finetune(stopped)
    monkeypatch.undo()
    resumed = finetune(FinetuneConfig(resume=tmp_path / "stopped", device="cpu", quiet=True))
    again = load_file(resumed.folder / "adapter" / "adapter_model.safetensors")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_compare_fills_the_bank(clouds_folder, tmp_path):
    entry = "point_peft:attention_rank=4,prompt_blocks=1"
    config = CompareConfig(
        data=str(clouds_folder), methods=(entry,), seeds=1, epochs=1, batch_size=8, num_points=64, set=SIZES,
        checkpoint="none", device="cpu", quiet=True, output=tmp_path / "compare",
    )  # fmt: skip
    facts = compare(config)
    assert not facts.failures
    (folder,) = (tmp_path / "compare").glob("*/seed-0")
    assert bank_of(folder).shape[1] == json.loads((folder / "result.json").read_text())["clouds"]["train"] > 0


def test_a_bank_in_a_file_is_taken(clouds_folder, tmp_path, capsys):
    file = tmp_path / "banks" / "bank.safetensors"
    sizes = [f"--set={pair}" for pair in SIZES]
    attention = ["--set=attention_rank=4"]
    arguments = ["memory-bank", str(clouds_folder), f"--output={file}", "--checkpoint=none", "--num-points=64"]
    assert main([*arguments, *sizes, *attention]) == 0
    assert f"--set bank={file}" in capsys.readouterr().out
    bank = load_file(file)["memory_bank"]
    assert bank.shape == (32, 24)
    config = FinetuneConfig(
        data=str(clouds_folder), method="point_peft", set=(*PEFT, f"bank={file}"), output=tmp_path / "run",
        **QUICK, **TINY,
    )  # fmt: skip
    assert torch.equal(bank_of(finetune(config).folder), bank)


def test_a_bank_of_another_pre_training_is_refused(tmp_path):
    model, file = make("point_peft"), tmp_path / "bank.safetensors"
    with pytest.raises(ValueError, match=r"no memory bank .*; make one with: pointpeft memory-bank DATA"):
        load_memory_bank(file, model)
    save_file({"memory_bank": torch.ones(96, 3)}, file, {"base_model_sha256": "0" * 64})
    with pytest.raises(ValueError, match="was made with another pre-training"):
        load_memory_bank(file, model)
    save_file({"bank": torch.ones(96, 3)}, file)
    with pytest.raises(ValueError, match="has no tensor memory_bank"):
        load_memory_bank(file, model)
    file.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load_memory_bank(file, model)


def test_a_published_pre_training_is_what_the_bank_is_built_with():
    torch.manual_seed(0)
    config = {
        "NAME": "PointTransformer", "trans_dim": 48, "depth": 2, "cls_dim": 3, "num_heads": 6, "group_size": 8,
        "num_group": 16, "encoder_dims": 48,
    }  # fmt: skip
    sizes = {"width": 48, "depth": 2, "num_heads": 6, "num_groups": 16, "group_size": 8, "min_sq_norm": 1e-3}
    trained = create_model("point_mae", "full", 3, **sizes).eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # biases that are not zero
    state = {key: value for key, value in to_published(trained).items() if not key.startswith("cls_")}
    empty = torch.zeros(48, 0)
    model = from_published(config, state, "point_peft", quirks="none", memory_bank=empty).eval()
    xyz = cloud(5)
    bank = build_memory_bank(model, [xyz])
    backbone = trained.backbone
    patches, centers = backbone.group(xyz)
    x, pos = backbone.patch_embed(patches), backbone.pos_embed(centers)
    with torch.no_grad():
        for block in backbone.blocks:
            x = x + pos
            x = x + block.attn(block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        expected = F.normalize(backbone.norm(x).amax(1), dim=-1).T
    torch.testing.assert_close(bank, expected, rtol=1e-4, atol=1e-5)


def test_rooms_fill_the_bank_too(tmp_path):
    config = FinetuneConfig(
        data=str(write_rooms(tmp_path / "rooms")), task="semantic_segmentation", method="point_peft", set=PEFT,
        output=tmp_path / "run", columns_per_epoch=16, **QUICK,
        **{**TINY, "epochs": 1, "num_points": 128, "val_fraction": 0.4},
    )  # fmt: skip
    assert bank_of(finetune(config).folder).shape[1] > 0
