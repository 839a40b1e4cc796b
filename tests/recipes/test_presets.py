"""Presets hold what the published files hold, and the files themselves are read to the same configurations."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from pointpeft import create_model
from pointpeft.cli.main import main
from pointpeft.data.transforms import named
from pointpeft.methods import method_class
from pointpeft.recipes import find_preset, read_recipe
from pointpeft.recipes.presets import presets
from pointpeft.runs.config import FinetuneConfig
from pointpeft.runs.finetune import finetune
from pointpeft.runs.plan import plan_finetune
from pointpeft.weights.publication import SCANOBJECTNN_VARIANTS as SCANS

PRESETS = presets()

# As read from the published files: preset -> class name of the model, epochs, warm-up, lr, batch, points, groups,
# drop path, and what else the model's section holds.
DAPT_HEAD = {"class_token": "use", "prompt_token": "mean", "patch_token": "max"}
IDPT = {"prompt_layer": 11, "prompt_module": "dgcnn", "cls_type": "all"}
PEFT = {"if_half": False, "adapter_config": {"adapter_dim": 16, "adapter_drop_path_rate": 0.1}}
GST = {"rank": 36, "local": 32}
GAPROMPT = PEFT | {
    "point_number": 5,
    "scale": 0.01,
    "factor": 5,
    "perturbation": 0.80,
    "point_prompt": True,
    "shift_net": True,
    "prompt_depth": 6,
    "scaler": False,
    "num_tokens": 10,
    "propagation_type": "permutation_after_attention",
}
GFT = {
    "k": 20,
    "in_dim": 384,
    "feat_dims": [64, 64, 64, 64],
    "emb_dim": 256,
    "cross_idx": [0, 3, 6, 9],
    "cross_attn_heads": 1,
    "cross_attn_dim": 32,
    "alpha": 1.0,
    "cross_attn_drop_rate": 0.0,
    "prompt_len": 50,
}
PPT = {"prompt_num_group": 128, "prompt_group_size": 32, "type": "pos"}
SCAN, NET, FEW = (300, 10, 5e-4, 32, 2048, 128), (300, 10, 5e-4, 32, 1024, 64), (150, 10, 5e-4, 32, 1024, 64)
PUBLISHED = {
    "dapt/scanobjectnn_hardest": (
        "PointTransformer_DAPT",
        *SCAN,
        0.3,
        DAPT_HEAD | {"rank": 64, "drop_adapter_rate": 0.2, "drop_rate": 0.0},
    ),
    "dapt/scanobjectnn_objbg": (
        "PointTransformer_DAPT",
        *SCAN,
        0.3,
        DAPT_HEAD | {"rank": 64, "drop_adapter_rate": 0.5},
    ),
    "dapt/scanobjectnn_objonly": (
        "PointTransformer_DAPT",
        *SCAN,
        0.1,
        DAPT_HEAD | {"patch_token": "None", "rank": 64, "drop_adapter_rate": 0},
    ),
    "dapt/modelnet": (
        "PointTransformer_DAPT",
        *NET,
        0.1,
        DAPT_HEAD | {"prompt_token": "None", "rank": 72, "drop_adapter_rate": 0},
    ),
    "idpt/scanobjectnn_hardest": ("PointTransformer", *SCAN, 0.1, IDPT),
    "idpt/scanobjectnn_objbg": ("PointTransformer", *SCAN, 0.1, IDPT | {"cls_type": "promptonly"}),
    "idpt/scanobjectnn_objonly": ("PointTransformer", *SCAN, 0.1, IDPT | {"prompt_layer": 6}),
    "idpt/modelnet": ("PointTransformer", *NET, 0.1, IDPT),
    "idpt/fewshot": ("PointTransformer", *FEW, 0.1, IDPT),
    **{f"vpt/{scan}": ("PointTransformerPromptDeep", *SCAN, 0.1, {"prompt_nums": 10}) for scan in SCANS},
    "vpt/modelnet": ("PointTransformerPromptDeep", *NET, 0.1, {"prompt_nums": 10}),
    "vpt/fewshot": ("PointTransformerPromptDeep", *FEW, 0.1, {"prompt_nums": 20}),
    "point_peft/scanobjectnn_hardest": ("PointTransformer_best", *SCAN, 0.1, PEFT),
    "point_peft/modelnet": ("PointTransformer_modelnet", *NET, 0.1, PEFT),
    **{
        f"point_gst/{backbone}{scan}": ("PointTransformer_PGST", *SCAN, 0.1, GST)
        for backbone in ("", "act/", "recon_plain/")
        for scan in SCANS
    },
    **{
        f"point_gst/{backbone}modelnet": ("PointTransformer_PGST", *NET, 0.1, GST)
        for backbone in ("", "act/", "recon_plain/")
    },
    "point_lora/scanobjectnn_hardest": ("PointTransformer_PointLoRA", *SCAN, 0.3, {}),
    "gaprompt/scanobjectnn_hardest": ("PointTransformer_pointtokenprompt", *SCAN, 0.1, GAPROMPT),
    "gaprompt/scanobjectnn_objonly": (
        "PointTransformer_pointtokenprompt",
        *SCAN,
        0.1,
        GAPROMPT | {"point_number": 10, "perturbation": 0.10},
    ),
    "gaprompt/modelnet": (
        "PointTransformer_pointtokenprompt",
        *(400, 10, 5e-4, 32, 1024, 64),
        0.1,
        GAPROMPT | {"perturbation": 0.05},
    ),
    "gft/scanobjectnn_hardest": ("PointTransformer_GFT", *SCAN, 0.1, GFT),
    "gft/modelnet": ("PointTransformer_GFT", 300, 10, 5e-4, 32, 2048, 128, 0.1, GFT | {"cross_attn_heads": 2}),
    "ppt/scanobjectnn_hardest": ("PointTransformer", *SCAN, 0.3, PPT),
    "ppt/modelnet_8k": ("PointTransformer", 300, 10, 1e-4, 22, 8192, 512, 0.3, PPT | {"prompt_num_group": 64}),
    **{f"full/{scan}": ("PointTransformer", *SCAN, 0.1, {}) for scan in SCANS},
    "full/modelnet": ("PointTransformer", *NET, 0.1, {}),
    "full/modelnet_8k": ("PointTransformer", 300, 10, 5e-4, 32, 8192, 512, 0.1, {}),
    "full/fewshot": ("PointTransformer", *FEW, 0.1, {}),
    **{
        f"full/recon/{scan}": ("PointTransformer", 300, 10, 2e-5, 32, 2048, 128, 0.2, {"type": "full"})
        for scan in SCANS
    },
    "full/recon/modelnet": ("PointTransformer", 300, 10, 1e-5, 32, 1024, 64, 0.2, {"type": "full"}),
}
# What the training code of each repository does to ScanObjectNN; all scale and shift ModelNet40.
TURNED = {"gft", "idpt", "vpt", "ppt", "point_gst/act", "point_gst/recon_plain", "full/recon"}
DECAY = {"gft/scanobjectnn_hardest": 0.005}
DATASETS = {
    "hardest": {"NAME": "ScanObjectNN_hardest", "ROOT": "data/ScanObjectNN/main_split"},
    "objbg": {"NAME": "ScanObjectNN", "ROOT": "data/ScanObjectNN/main_split"},
    "objonly": {"NAME": "ScanObjectNN", "ROOT": "data/ScanObjectNN/main_split_nobg"},
    "modelnet": {
        "NAME": "ModelNet",
        "DATA_PATH": "data/ModelNet/modelnet40_normal_resampled",
        "N_POINTS": 8192,
        "NUM_CATEGORY": 40,
        "USE_NORMALS": "FALSE",
    },
    "fewshot": {"NAME": "ModelNetFewShot", "DATA_PATH": "data/ModelNetFewshot", "N_POINTS": 8192},
}
SIZES = {"trans_dim": 384, "depth": 12, "num_heads": 6, "group_size": 32, "encoder_dims": 384}


def written(root: Path, name: str) -> Path:
    """A file in the published layout with the published values of a preset."""
    model, epochs, warmup, lr, batch, points, groups, drop_path, more = PUBLISHED[name]
    data = name.split("/")[-1].removesuffix("_8k").removeprefix("scanobjectnn_")
    include = {"_base_": f"cfgs/dataset_configs/{data}.yaml"}
    content = {
        "optimizer": {"type": "AdamW", "kwargs": {"lr": lr, "weight_decay": DECAY.get(name, 0.05)}},
        "scheduler": {"type": "CosLR", "kwargs": {"epochs": epochs, "initial_epochs": warmup}},
        "dataset": {
            "train": {**include, "others": {"subset": "train"}},
            "val": {**include, "others": {"subset": "test"}},
        },
        "model": {
            "NAME": model,
            "cls_dim": 15 if "scan" in name else 40,
            "drop_path_rate": drop_path,
            "num_group": groups,
            **SIZES,
            **more,
        },
        "npoints": points,
        "total_bs": batch,
        "step_per_update": 1,
        "max_epoch": epochs,
        "grad_norm_clip": 10,
    }
    folder = "recon" if "recon" in name else "act" if "/act/" in name else "mae"
    path = root / "cfgs" / folder / f"{name.replace('/', '_')}.yaml"
    for file, value in ((path, content), (root / include["_base_"], DATASETS[data])):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(value), encoding="utf-8")
    return path


def test_the_table_holds_every_preset():
    assert set(PUBLISHED) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_values(name):
    _, epochs, warmup, lr, batch, points, groups, drop_path, section = PUBLISHED[name]
    preset = PRESETS[name]
    config = preset.config()
    found = (config.epochs, config.warmup_epochs, config.lr, config.batch_size, config.num_points)
    assert found == (epochs, warmup, lr, batch, points)
    assert config.weight_decay == (DECAY.get(name, 0.05))
    assert (config.clip, config.accumulate) == (10.0, 1)
    assert preset.backbone_options["num_groups"] == groups
    assert preset.backbone_options["drop_path"] == drop_path
    above = name.rpartition("/")[0]
    turned = "scale_rotate" if above == "point_peft" else "rotate" if above in TURNED else "scale_translate"
    assert config.augment == (turned if "scan" in name else "scale_translate")
    assert config.select == "val-best"
    for theirs, ours in (("rank", "rank"), ("drop_adapter_rate", "dropout"), ("prompt_layer", "prompt_layer")):
        if theirs in section:
            assert preset.method_options[ours] == section[theirs]


@pytest.mark.parametrize("name", PRESETS)
def test_a_file_of_the_published_layout_gives_the_preset(name, tmp_path):
    recipe = read_recipe(written(tmp_path, name))
    preset = PRESETS[name]
    assert replace(recipe, name=preset.name, published=preset.published) == preset
    assert replace(recipe.config(), preset=name, config=None) == preset.config()


# The first preset of each model, and what it trains with a head of 15 classes: for the published sizes as published
# (see tests/methods/test_counts.py), for others by the options that differ.
MODELS = {(p.method, p.backbone, str(p.method_options)): p.name for p in reversed(PRESETS.values())}
TRAINED = {
    "dapt/scanobjectnn_hardest": 1_087_771,
    "dapt/scanobjectnn_objbg": 1_087_771,
    "dapt/scanobjectnn_objonly": 989_467,
    "dapt/modelnet": 1_063_291,
    "idpt/scanobjectnn_hardest": 1_696_783,
    "idpt/scanobjectnn_objbg": 1_500_175,
    "idpt/scanobjectnn_objonly": 1_696_783,
    "vpt/scanobjectnn_hardest": 360_463,
    "vpt/fewshot": 452_623,
    "point_peft/scanobjectnn_hardest": 773_017,
    "point_gst/scanobjectnn_hardest": 622_831,
    "point_gst/act/scanobjectnn_hardest": 622_831,
    "point_gst/recon_plain/scanobjectnn_hardest": 622_831,
    "point_lora/scanobjectnn_hardest": 772_752,
    "gaprompt/scanobjectnn_hardest": 628_147,
    "gaprompt/scanobjectnn_objonly": 628_162,
    "gaprompt/modelnet": 624_051,
    "gft/scanobjectnn_hardest": 733_455,
    "gft/modelnet": 733_455,
    "ppt/scanobjectnn_hardest": 1_042_191,
    "ppt/modelnet_8k": 1_042_191,
    "full/scanobjectnn_hardest": 22_093_327,
    "full/recon/scanobjectnn_hardest": 43_571_215,
}


def test_every_model_of_a_preset_is_counted():
    assert set(TRAINED) == set(MODELS.values())


@pytest.mark.parametrize("name", TRAINED)
def test_the_model_of_a_preset_trains_what_the_publication_trains(name):
    preset = PRESETS[name]
    method = method_class(preset.method)(**preset.method_options)
    model = create_model(preset.backbone, method, 15, device="meta", **preset.backbone_options)
    assert model.trainable_parameters() == TRAINED[name]
    assert model.backbone.config.num_groups == PUBLISHED[name][6]


def test_the_options_of_a_preset_reach_the_model():
    config = PRESETS["dapt/scanobjectnn_objonly"].config(backbone="point_mae_tiny", checkpoint="none")
    model = plan_finetune(config).model.build({"num_classes": 15})
    assert model.method.rank == 64
    assert model.method.dropout == 0.0
    assert model.method.parts == ("cls", "prompt_mean")
    assert (model.backbone.config.num_groups, model.backbone.config.drop_path) == (128, 0.1)


def test_unknown_keys_are_listed(tmp_path):
    path = written(tmp_path, "dapt/modelnet")
    content = yaml.safe_load(path.read_text())
    content["model"] |= {"rnak": 8, "sementic_token": "mean"}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="unknown keys of model: rnak, sementic_token; known: NAME"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("optimizer", "type", "SGD", "optimizer.type must be one of AdamW, got 'SGD'"),
        ("model", "NAME", "PointCLIP", "model.NAME must be one of .*, got 'PointCLIP'"),
        ("model", "drop_rate", 0.1, "drop_rate must be 0"),
        ("", "max_epoch", 200, "epochs must be max_epoch = 200, got 300"),
        ("", "npoints", 10.5, "npoints must be a whole number, got 10.5"),
        ("", "total_bs", "many", "total_bs must be a whole number, got 'many'"),
        ("", "weather", 1, "unknown keys: weather"),
        ("dataset", "train", {"NAME": "S3DIS"}, "dataset.train.NAME must be .*, got 'S3DIS'"),
    ],
)
def test_what_has_no_counterpart_is_refused(section, key, value, message, tmp_path):
    path = written(tmp_path, "dapt/modelnet")
    content = yaml.safe_load(path.read_text())
    (content[section] if section else content)[key] = value
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        read_recipe(path)


def test_files_are_read_as_plain_values(tmp_path):
    path = written(tmp_path, "dapt/modelnet")
    text = path.read_text()
    path.write_text(text + "\nextra: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ValueError, match="not YAML of plain values"):
        read_recipe(path)
    path.write_text(text.replace("0.0005", "5e-4"))  # text to YAML, which wants a dot
    assert read_recipe(path).lr == 5e-4
    path.write_text(f"_base_: {path.name}\n" + text)
    with pytest.raises(ValueError, match="includes itself"):
        read_recipe(path)


def test_a_file_of_point_gpt_says_what_is_left_out(tmp_path):
    path = written(tmp_path, "full/scanobjectnn_hardest")
    content = yaml.safe_load(path.read_text())
    large = {"trans_dim": 1024, "depth": 24, "num_heads": 16, "encoder_dims": 1024, "decoder_depth": 4}
    content["model"] |= large | {"drop_path_rate": 0.2, "num_group": 512}
    path.write_text(yaml.safe_dump(content))
    recipe = read_recipe(path)
    assert (recipe.backbone, recipe.method) == ("point_gpt_large", "full")
    assert recipe.backbone_options == {"num_groups": 512, "drop_path": 0.0}
    assert "generator" in recipe.notes[0]
    assert "drop_path_rate" in recipe.notes[1]


def test_a_missing_include_is_named(tmp_path):
    path = written(tmp_path, "dapt/modelnet")
    (tmp_path / "cfgs/dataset_configs/modelnet.yaml").unlink()
    with pytest.raises(ValueError, match=r"includes cfgs/dataset_configs/modelnet\.yaml, which is in none of"):
        read_recipe(path)


def test_an_unknown_preset_names_near_ones(capsys):
    with pytest.raises(ValueError, match="unknown preset 'dapt/modlnet'; near it: dapt/modelnet"):
        find_preset("dapt/modlnet")
    assert main(["finetune", "--preset=dapt/modlnet"]) == 1
    assert "`pointpeft presets` prints all" in capsys.readouterr().err


def test_a_name_without_its_recipe_is_refused():
    with pytest.raises(ValueError, match=r"not filled in: got dapt/modelnet; give find_preset"):
        finetune(FinetuneConfig(preset="dapt/modelnet", device="cpu"))


def parsed(monkeypatch, *arguments: str) -> FinetuneConfig:
    """The configuration that a command line comes to."""
    got: list[FinetuneConfig] = []
    monkeypatch.setattr("pointpeft.cli.commands.finetune.run", lambda command: got.append(command) or 0)
    assert main(["finetune", *arguments]) == 0
    return got[0]


def test_options_of_the_command_line_overrule_the_preset(monkeypatch, tmp_path):
    plain = parsed(monkeypatch, "--preset", "dapt/modelnet")
    assert plain == find_preset("dapt/modelnet").config()
    ours = parsed(monkeypatch, "--preset", "dapt/modelnet", "--epochs", "60", "--set", "rank=8", "--lr", "1e-3")
    assert (ours.epochs, ours.lr) == (60, 1e-3)  # 60 is the usual default, and asked for
    assert ours.set == (*plain.set, "rank=8")
    assert replace(ours, epochs=300, lr=5e-4, set=plain.set) == plain
    path = written(tmp_path, "dapt/modelnet")
    file = parsed(monkeypatch, f"--config={path}", "--seed=3")
    assert file == replace(plain, preset=None, config=path, seed=3)


def test_another_method_keeps_the_recipe_and_has_its_own_options(monkeypatch):
    ours = parsed(monkeypatch, "--preset=dapt/modelnet", "--method=vpt", "--set", "num_prompts=4")
    assert ours.set == ("num_groups=64", "drop_path=0.1", "num_prompts=4")
    assert (ours.method, ours.epochs) == ("vpt", 300)


def test_a_preset_and_a_file_exclude_each_other(capsys):
    assert main(["finetune", "--preset=dapt/modelnet", "--config=x.yaml"]) == 1
    assert "give a preset or a config, got both" in capsys.readouterr().err


def test_the_recipe_picks_its_variant_of_scanobjectnn(monkeypatch, tmp_path):
    folder = tmp_path / "main_split"
    folder.mkdir()
    with h5py.File(folder / "training_objectdataset.h5", "w") as file:
        file["data"], file["label"] = np.zeros((1, 4, 3), np.float32), np.zeros(1, np.int64)
    for preset, variant in SCANS.items():
        ours = parsed(monkeypatch, str(tmp_path), f"--preset=dapt/{preset}")
        assert ours.data == f"scanobjectnn:{tmp_path}:{variant}"
    named = f"scanobjectnn:{tmp_path}:obj_only"
    assert parsed(monkeypatch, named, "--preset=dapt/scanobjectnn_objbg").data == named


def test_a_run_records_its_preset(tmp_path, capsys):
    run = tmp_path / "run"
    small = ["--backbone=point_mae_tiny", "--set", "num_groups=16", "--set", "rank=4", "--num-points=128"]
    short = ["--epochs=1", "--warmup-epochs=0", "--no-probe", "--quiet", "--device=cpu", "--select=last"]
    assert main(["finetune", "--preset=point_gst/modelnet", *small, "--set", "local=8", *short, f"--output={run}"]) == 0
    assert "the graph's scale is a cloud's own" in capsys.readouterr().err
    config = json.loads((run / "config.json").read_text())
    assert config["preset"] == "point_gst/modelnet"
    assert config["set"] == ["num_groups=64", "drop_path=0.1", "rank=36", "local=32", *small[2:5:2], "local=8"]
    result = json.loads((run / "result.json").read_text())
    assert result["preset"] == "point_gst/modelnet"
    assert result["method"] == "point_gst"


def test_the_command_prints_all_presets(capsys):
    assert main(["presets"]) == 0
    text = capsys.readouterr().out
    assert all(f"| `{name}` |" in text for name in PRESETS)
    assert main(["presets", "idpt/fewshot"]) == 0
    assert "cfgs/fewshot_idpt.yaml" in capsys.readouterr().out
    assert main(["presets", "--json"]) == 0
    assert [preset["name"] for preset in json.loads(capsys.readouterr().out)] == list(PRESETS)


def test_scale_rotate_scales_each_axis_little_and_turns_about_the_up_axis():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(64, 32, 3, generator=generator)
    moved = named("scale_rotate", "y")(points, generator)
    scale = moved[..., 1] / points[..., 1]
    assert torch.allclose(scale, scale[:, :1].expand_as(scale), atol=1e-4)
    assert 0.9 <= scale.min() < 0.93
    assert 1.07 < scale.max() <= 1.1001
    flat = moved[..., ::2].norm(dim=-1) / points[..., ::2].norm(dim=-1)
    assert 0.8999 <= flat.min() <= flat.max() <= 1.1001
