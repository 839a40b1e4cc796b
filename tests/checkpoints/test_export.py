import json

import pytest
import torch

from pointpeft import create_model
from pointpeft.checkpoints.export import export, folded
from pointpeft.ops.core import library

SMALL = {"depth": 2, "num_groups": 16, "group_size": 8}
N = 96


def model(method="dapt", backbone="point_mae_tiny", **options):
    """With weights and statistics that are no longer the initial ones, so that every part matters."""
    torch.manual_seed(4)
    model = create_model(backbone, method, 5, **SMALL, **options)
    with torch.no_grad():
        model(torch.rand(4, N, 3))
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def nodes(program):
    """Names of the operations of a program and of the graphs within it."""
    graphs = [module.graph for module in program.graph_module.modules() if hasattr(module, "graph")]
    return {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"}


# One per kind of network: folded, prompts, feature-space graph, memory bank, graph Fourier transform, gates.
@pytest.mark.parametrize("method", ["dapt", "vpt", "idpt", "point_peft", "point_gst", "unipelt"])
def test_methods_export_to_standard_operations(method, tmp_path, generator):
    ours = model(method)
    assert export(ours, tmp_path / "m.pt2", N) <= 1e-4
    program = torch.export.load(tmp_path / "m.pt2")
    assert not [name for name in nodes(program) if "pointpeft" in name]
    xyz = torch.randn(5, N, 3, generator=generator)
    with torch.no_grad():
        expected = ours(xyz)
    torch.testing.assert_close(program.module()(xyz), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("backbone", ["point_bert", "recon", "point_gpt"])
def test_every_backbone_exports(backbone, tmp_path):
    assert export(model("bitfit", backbone), tmp_path / "m.pt2", N) <= 1e-4


@pytest.mark.skipif(not library.compiled(), reason="the operations are not compiled")
def test_fused_programs_keep_the_compiled_operations(tmp_path):
    export(model(), tmp_path / "m.pt2", N, fused=True)
    assert "pointpeft.sample_and_group.default" in nodes(torch.export.load(tmp_path / "m.pt2"))


@pytest.mark.parametrize("method", ["dapt", "idpt"])
def test_onnx_runtime_gives_the_models_logits(method, tmp_path, generator):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnx
    import onnxruntime

    ours = model(method)
    assert export(ours, tmp_path / "m.onnx", N, facts={"classes": ["a", "b"]}) <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["a", "b"]
    assert {entry.domain for entry in onnx.load(tmp_path / "m.onnx").opset_import} <= {"", "ai.onnx"}
    # A grid, where nearly every distance is tied: the lowest index must win there as here.
    grid = torch.cartesian_prod(*[torch.arange(s) / 4 for s in (4, 4, 6)])
    xyz = torch.stack([grid, grid[torch.randperm(N, generator=generator)]])
    with torch.no_grad():
        expected = ours(xyz)
    found = torch.from_numpy(session.run(None, {"xyz": xyz.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_the_model_itself_stays_as_it_is():
    ours = model()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    assert folded(ours).merged
    assert not ours.merged
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.onnx or \.pt2"):
        export(model(), tmp_path / "m.pb", N)
    with pytest.raises(ValueError, match=r"fused is for \.pt2"):
        export(model(), tmp_path / "m.onnx", N, fused=True)
    with pytest.raises(ValueError, match="evaluation mode"):
        export(model().train(), tmp_path / "m.pt2", N)
    published = create_model("point_mae_tiny", "point_peft", 5, **SMALL, quirks="published").eval()
    with pytest.raises(ValueError, match="inputs pooled_feature"):
        export(published, tmp_path / "m.pt2", N)


def test_a_file_that_disagrees_is_not_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("pointpeft.checkpoints.export.TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="exported logits differ"):
        export(model(), tmp_path / "m.pt2", N)
    assert not list(tmp_path.iterdir())
