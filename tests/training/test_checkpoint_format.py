"""Checkpoints of the format that counted epochs from 0 go on at the right one."""

import pytest
import torch

from pointpeft.training.checkpoint_format import FORMAT, upgraded
from pointpeft.training.run_folder import RunFolder
from tests.training.test_loop import Killed, run


def select(model, state):
    score = min(state.epoch, 2)
    if not state.best or score > state.best["score"]:
        state.best = {"epoch": state.epoch, "score": score}
    return {}


def stopped(folder, epoch):
    def stop(model, state):
        if state.epoch > epoch:
            raise Killed
        return select(model, state)

    with pytest.raises(Killed):
        run(folder, epochs=9, patience=3, after_epoch=stop)


def as_of_format_1(folder, shift=1):
    folder = RunFolder(folder)
    saved = folder.load_checkpoint(torch.device("cpu"))
    assert saved.pop("format") == FORMAT
    saved["history"] = [row | {"epoch": float(row["epoch"] - shift)} for row in saved["history"]]
    saved["best"]["epoch"] -= shift
    folder.save_checkpoint(saved)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_a_run_of_format_1_resumes_to_the_same_end(epoch, shift, tmp_path):
    whole, state = run(tmp_path / "whole", epochs=9, patience=3, after_epoch=select)
    stopped(tmp_path / "part", epoch)
    as_of_format_1(tmp_path / "part", shift)
    resumed, again = run(tmp_path / "part", epochs=9, patience=3, after_epoch=select)
    assert again.epoch == state.epoch == 5
    assert again.best["epoch"] == state.best["epoch"] == 2
    assert [row["epoch"] for row in again.history] == [1, 2, 3, 4, 5]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"format": FORMAT + 1}, f"the checkpoint is of format {FORMAT + 1}, formats up to {FORMAT} are known"),
        ({"format": FORMAT, "history": [{"epoch": 2}]}, "has 3 epochs, but its log ends with epoch 2"),
        ({"history": [{"epoch": 1}]}, "has 3 epochs, but its log ends with epoch 1"),
    ],
)
def test_other_countings_are_refused(entries, words):
    with pytest.raises(ValueError, match=words):
        upgraded({"epoch": 3, "history": [{"epoch": 3}], "best": {}} | entries, "the checkpoint")
