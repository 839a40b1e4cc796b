import re

import pytest
import torch

from pointpeft import create_model
from pointpeft.backbones import create_backbone
from pointpeft.files import read_weights, sha256
from pointpeft.weights.pretrained import FOLDER, find, load_backbone, pretrained_names, save_backbone

# What a pre-training of Point-MAE holds beside the encoder.
DECODER = {
    "mask_token": torch.zeros(1, 1, 8),
    "decoder_pos_embed.0.weight": torch.zeros(8, 3),
    "MAE_decoder.blocks.0.attn.qkv.weight": torch.zeros(24, 8),
    "increase_dim.0.weight": torch.zeros(96, 8, 1),
}


def backbone(seed):
    torch.manual_seed(seed)
    return create_backbone("point_mae_tiny", depth=2)


def published(source):
    """A backbone's tensors as Point-MAE's pre-training writes them: no class token, a decoder, prefixes."""
    state = dict(DECODER)
    for name, tensor in source.state_dict().items():
        if not name.startswith("cls_"):
            theirs = re.sub("^patch_embed", "encoder", re.sub("^blocks", "blocks.blocks", name))
            state[f"MAE_encoder.{theirs}"] = tensor.clone()
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.fixture
def write(tmp_path):
    def write(state):
        torch.save({"base_model": state, "epoch": 300}, tmp_path / "pretrain.pth")
        return tmp_path / "pretrain.pth"

    return write


def test_a_published_pre_training_loads_whole_and_every_difference_is_classified(write):
    source, target = backbone(0), backbone(1)
    kept = {name: tensor.clone() for name, tensor in target.state_dict().items() if name.startswith("cls_")}
    path = write(published(source))
    report = load_backbone(target, path)
    assert set(report.missing) == set(kept) == {"cls_token", "cls_pos"}
    assert set(report.ignored) == set(DECODER)
    assert report.loaded == set(source.state_dict()) - set(kept)
    assert report.sha256 == sha256(path)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, kept[name] if name in kept else source.state_dict()[name]), name


QKV = "module.MAE_encoder.blocks.blocks.0.attn.qkv.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({QKV: None}, r"1 missing: blocks\.blocks\.0\.attn\.qkv\.weight$"),
        ({"module.MAE_encoder.blocks.blocks.7.attn.qkv.weight": torch.ones(2)}, r"1 unexpected: blocks\.blocks\.7\."),
        ({"module.surprise": torch.ones(1)}, r"1 unexpected: surprise$"),
        ({"module.MAE_encoder.norm.weight": torch.ones(7)}, r"1 of another shape: norm\.weight \(7,\) for \(\d+,\)$"),
        (
            {QKV: None, "module.surprise": torch.ones(1), "module.MAE_encoder.norm.bias": torch.ones(2, 2)},
            r"1 missing: .*qkv\.weight; 1 unexpected: surprise; 1 of another shape: norm\.bias \(2, 2\) for",
        ),
    ],
)
def test_an_unexplained_difference_is_an_error_that_lists_it_and_nothing_is_copied(change, message, write):
    state = {name: tensor for name, tensor in (published(backbone(0)) | change).items() if tensor is not None}
    target = backbone(1)
    with pytest.raises(ValueError, match=rf"pretrain\.pth does not fit the model\. {message}"):
        load_backbone(target, write(state))
    untouched = backbone(1).state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in target.state_dict().items())


def test_a_long_list_of_names_is_cut_and_counted(write):
    state = published(backbone(0)) | {f"module.extra.{i}": torch.ones(1) for i in range(20)}
    with pytest.raises(ValueError, match=r"20 unexpected: extra\.0, .*extra\.11 \.\.\.$"):
        load_backbone(backbone(1), write(state))


def test_counters_of_batchnorm_may_be_missing(write):
    state = {k: v for k, v in published(backbone(0)).items() if not k.endswith("num_batches_tracked")}
    report = load_backbone(backbone(1), write(state))
    assert any(name.endswith("num_batches_tracked") for name in report.missing)
    assert all(re.search("num_batches_tracked$|^cls_", name) for name in report.missing)


def test_a_written_backbone_comes_back_bit_for_bit_with_its_header(tmp_path):
    source, target = backbone(0), backbone(1)
    save_backbone(source, tmp_path / "b.safetensors", "point_mae_tiny", {"epochs": 3})
    report = load_backbone(target, tmp_path / "b.safetensors")
    assert report.missing == report.ignored == ()
    assert all(torch.equal(t, target.state_dict()[name]) for name, t in source.state_dict().items())
    header = read_weights(tmp_path / "b.safetensors")[1]
    assert header["backbone"] == "point_mae_tiny"
    assert '"depth": 2' in header["fields"]
    assert header["metadata"] == '{"epochs": 3}'


def test_a_model_knows_which_of_its_parameters_the_file_gave(write):
    path = write(published(backbone(0)))
    model = create_model("point_mae_tiny", "dapt", 4, checkpoint=path, depth=2)
    assert model.origin.sha256 == sha256(path)
    given = model.origin.parameters
    assert any(name.endswith("attn.qkv.weight") for name in given)
    assert not any("cls_" in name or name.startswith("head.") for name in given)
    named = dict(model.named_parameters())
    assert given <= set(named)
    assert torch.equal(named["backbone.norm.weight"], backbone(0).norm.weight)


def test_names_are_shipped_ones_or_files():
    for name in pretrained_names():
        assert find(name) == FOLDER / f"{name}.safetensors"
    shipped = ", ".join(pretrained_names())
    with pytest.raises(
        ValueError, match=f"'point_mea' is neither a file nor a shipped pre-training; shipped: {shipped}"
    ):
        find("point_mea")


@pytest.mark.parametrize("name", pretrained_names())
def test_every_shipped_pre_training_fits_its_backbone(name):
    header = read_weights(find(name))[1]
    target = create_backbone(header["backbone"])
    report = load_backbone(target, name)
    assert set(report.missing) <= {"cls_token", "cls_pos"}  # pre-training without labels has none
    assert set(report.loaded) == set(target.state_dict()) - set(report.missing)
    assert report.ignored == ()
    assert all(torch.isfinite(tensor).all() for tensor in target.state_dict().values())
