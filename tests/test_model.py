import pytest
import torch

from pointpeft import create_model

SMALL = {"num_groups": 16, "group_size": 8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "point_mea"}, "unknown backbone 'point_mea'; known: .*point_mae_tiny"),
        ({"method": "dpat"}, "unknown method 'dpat'; known: .*dapt"),
        ({"num_classes": 0}, "num_classes must be an int of at least 1, got 0"),
        ({"rnk": 8}, "unknown option 'rnk' .*known: .*rank"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"num_groups": 0}, "num_groups must be at least 1, got 0"),
        ({"checkpoint": "nowhere.pth"}, "'nowhere.pth' is neither a file nor a shipped pre-training"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"backbone": "point_mae_tiny", "method": "dapt", "num_classes": 4} | change
    with pytest.raises(ValueError, match=message):
        create_model(**arguments)


@pytest.mark.parametrize(
    ("xyz", "message"),
    [
        (torch.zeros(2, 64), r"shape \(B, N, 3\), got torch.float32 \(2, 64\)"),
        (torch.zeros(2, 64, 4), r"got torch.float32 \(2, 64, 4\)"),
        (torch.zeros(2, 64, 3, dtype=torch.int64), "got torch.int64"),
        (torch.zeros(2, 15, 3), "at least 16 points per cloud .* got N = 15"),
    ],
)
def test_bad_clouds_are_named(xyz, message):
    with pytest.raises(ValueError, match=message):
        create_model("point_mae_tiny", "dapt", 4, **SMALL)(xyz)


def test_the_same_seed_gives_the_same_model():
    def logits():
        torch.manual_seed(3)
        return create_model("point_mae_tiny", "dapt", 4, **SMALL).eval()(torch.ones(1, 32, 3).cumsum(1))

    assert torch.equal(logits(), logits())


def test_merging_twice_is_refused():
    model = create_model("point_mae_tiny", "dapt", 4, **SMALL).eval().merge()
    with pytest.raises(ValueError, match="merged already"):
        model.merge()
