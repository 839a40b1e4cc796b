import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from pointpeft import create_model, from_pretrained, push_to_hub, save_adapter
from pointpeft.checkpoints.adapter import CARD, CONFIG, WEIGHTS, read_config

huggingface_hub = pytest.importorskip("huggingface_hub")
FACTS = {
    "data": "furniture",
    "classes": ["bed", "chair"],
    "test": {"overall_accuracy": 0.8125, "mean_class_accuracy": 0.75, "clouds": 48},
    "linear_probe": {"overall_accuracy": 0.5, "mean_class_accuracy": 0.4, "clouds": 48},
    "selection": {"rule": "val-best", "meaning": "best epoch on clouds held out", "epoch": 5},
    "seeds": [3],
    "votes": 1,
}


@pytest.fixture
def model():
    torch.manual_seed(2)
    return create_model("point_mae_tiny", "dapt", 2, "point_mae_tiny", num_groups=16, group_size=8).eval()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of local folders instead of the service."""

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **options):
            (tmp_path / "hub" / repo_id).mkdir(parents=True, exist_ok=True)
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id, folder_path, **options):
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id, dirs_exist_ok=True)
            return f"commit of {repo_id}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path / "hub" / name))
    return tmp_path / "hub"


def test_what_is_pushed_comes_back_with_its_logits(model, hub):
    assert push_to_hub(model, "me/adapter", FACTS) == "commit of me/adapter"
    assert {path.name for path in (hub / "me/adapter").iterdir()} == {CARD, CONFIG, WEIGHTS}
    again = from_pretrained("me/adapter")
    xyz = torch.rand(2, 128, 3)
    assert torch.equal(model(xyz), again(xyz))
    push_to_hub(again, "me/copy")
    assert read_config(hub / "me/copy")["metadata"] == FACTS


def test_a_folder_needs_no_hub_and_keeps_the_facts(model, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("a run's")
    save_adapter(model, tmp_path / "a", FACTS)
    assert (tmp_path / "a" / "config.json").read_text() == "a run's"
    loaded = from_pretrained(tmp_path / "a")
    save_adapter(loaded, tmp_path / "b")
    assert read_config(tmp_path / "b")["metadata"] == FACTS


def test_the_facts_of_other_weights_are_not_kept(model, tmp_path):
    save_adapter(model, tmp_path / "a", FACTS)
    loaded = from_pretrained(tmp_path / "a")
    with torch.no_grad():
        next(p for p in loaded.parameters() if p.requires_grad).add_(1)
    save_adapter(loaded, tmp_path / "b")
    assert read_config(tmp_path / "b")["metadata"] == {}


def test_the_card_tells_numbers_and_how_they_were_measured(model, tmp_path):
    save_adapter(model, tmp_path, FACTS)
    card = huggingface_hub.ModelCard.load(tmp_path / CARD)
    result = card.data.eval_results[0]
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("furniture", "accuracy", 0.8125)
    assert "| test clouds | 48 | 81.25% | 75.00% |" in card.text
    assert "| test clouds, linear probe of the backbone | 48 | 50.00% | 40.00% |" in card.text
    assert "- Weights of epoch 5: best epoch on clouds held out." in card.text
    assert "- Seeds: 3." in card.text
    assert "- No vote: one pass per cloud." in card.text
    assert "Classes: bed, chair." in card.text


def test_a_card_without_facts_claims_no_numbers(model, tmp_path):
    save_adapter(model, tmp_path)
    text = (tmp_path / CARD).read_text()
    assert set(yaml.safe_load(text.split("---")[1])) == {"library_name", "tags"}
    assert "Results" not in text
    assert "measured" not in text


def test_a_merged_model_and_a_wrong_name_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="'owner/name' on the hub, got 'nowhere'"):
        from_pretrained("nowhere")
    with pytest.raises(ValueError, match="a merged model cannot be pushed"):
        push_to_hub(model.merge(), "me/merged")


def test_without_the_client_the_remedy_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'pointpeft\[hub\]'"):
        push_to_hub(model, "me/adapter")
