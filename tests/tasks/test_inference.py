import pytest
import torch
from torch import nn

from pointpeft.tasks.batches import Clouds
from pointpeft.tasks.inference import Voting, forward_all, voted_logits
from tests.clouds import FakeDataset


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.9)

    def forward(self, points):
        return self.dropout(self.one * points.mean(1))


def test_the_first_pass_is_clean_and_the_others_are_repeatable():
    clouds = Clouds(FakeDataset([40, 60, 5]), num_points=20)
    first, second, third = Voting(3, 1).views(clouds)
    assert torch.equal(first, clouds.fixed())
    assert not torch.equal(second, third)
    for points, again in zip((first, second, third), Voting(3, 1).views(clouds), strict=True):
        assert torch.equal(points, again)
    assert not torch.equal(list(Voting(2, 2).views(clouds))[1], second)
    with pytest.raises(ValueError, match="votes must be at least 1"):
        Voting(0)


def test_a_vote_is_the_mean_of_its_passes_without_dropout():
    clouds = Clouds(FakeDataset([40] * 7), num_points=20)
    expected = sum(points.mean(1) for points in Voting(4, 3).views(clouds)) / 4
    torch.testing.assert_close(voted_logits(Mean(), clouds, batch_size=3, voting=Voting(4, 3)), expected)


def test_batches_do_not_change_the_output():
    inputs = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0))
    model = Mean().eval()
    for batch_size in (1, 3, 7, 100):
        torch.testing.assert_close(forward_all(model, inputs, batch_size, torch.device("cpu")), inputs.mean(1))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        forward_all(model, inputs, 0, torch.device("cpu"))
