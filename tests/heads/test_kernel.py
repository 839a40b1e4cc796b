import pytest
import torch
import torch.nn.functional as F

from pointpeft.heads import kernel
from pointpeft.heads.kernel import Group, KernelHead, solve_kernel_head


def clouds(count=60, classes=3, spread=0.6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, 8, generator=generator)
    return centres[labels] + spread * torch.randn(count, 8, generator=generator), labels


def test_it_tells_clusters_apart_and_knows_how_well():
    features, labels = clouds(300)
    solved = solve_kernel_head(features[:100], labels[:100], 3)
    accuracy = float((solved.head(features[100:]).argmax(1) == labels[100:]).float().mean())
    assert accuracy > 0.85
    assert abs(solved.accuracy - accuracy) < 0.1
    assert solved.loss < 0.6  # logits are as sharp as they should be


@pytest.mark.parametrize("most", [1024, 20])
def test_leave_one_out_is_what_refitting_without_the_cloud_gives(monkeypatch, most):
    ridge, sharp = 0.03, 4.0
    for name, value in (("WIDTHS", (0.5,)), ("RIDGES", (ridge,)), ("SHARPNESS", (sharp,)), ("MAX_SUPPORT", most)):
        monkeypatch.setattr(kernel, name, value)
    features, labels = clouds(40)
    solved = solve_kernel_head(features, labels, 3)
    head = solved.head.double()
    z = (features.double() - head.mean) * head.scale
    phi = torch.exp(-torch.cdist(z, head.support).square())
    values, vectors = torch.linalg.eigh(torch.exp(-torch.cdist(head.support, head.support).square()))
    phi = phi @ (vectors / values.sqrt())
    targets = 2 * F.one_hot(labels, 3).double() - 1
    amount = ridge * float(torch.linalg.eigvalsh(phi.T @ phi).mean())
    scores = []
    for i in range(len(labels)):
        rest = torch.arange(len(labels)) != i
        gram = phi[rest].T @ phi[rest] + amount * torch.eye(phi.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(gram, phi[rest].T @ (targets[rest] - targets.mean(0)))
        scores.append(phi[i] @ weights + targets.mean(0))
    scores = torch.stack(scores)
    assert solved.accuracy == pytest.approx(float((scores.argmax(1) == labels).double().mean()))
    assert solved.loss == pytest.approx(float(F.cross_entropy(sharp * scores, labels)), rel=1e-4)


def test_more_clouds_than_are_remembered(monkeypatch):
    monkeypatch.setattr(kernel, "MAX_SUPPORT", 12)
    features, labels = clouds(90)
    solved = solve_kernel_head(features, labels, 3)
    assert solved.head.support.shape == (12, 8)
    assert solved.accuracy > 0.7
    assert kernel._remembered(labels).sort().values.unique().shape == (12,)
    assert labels[kernel._remembered(labels)].bincount().tolist() == [4, 4, 4]


def test_a_group_counts_by_its_weight_whatever_its_size_and_unit():
    features, labels = clouds()
    noise = 1000 * torch.randn(60, 200, generator=torch.Generator().manual_seed(1))
    both = torch.cat([features, noise], 1)
    drowned = solve_kernel_head(both, labels, 3)
    weighed = solve_kernel_head(both, labels, 3, [Group(8, 1.0), Group(200, 0.05)])
    assert weighed.loss < drowned.loss


def test_features_that_never_change_are_harmless():
    features, labels = clouds()
    constant = torch.cat([features, torch.zeros(60, 3)], 1)
    solved = solve_kernel_head(constant, labels, 3, [Group(8, 1.0), Group(3, 1.0)])
    assert solved.head(constant).isfinite().all()


def test_it_saves_and_loads_and_repeats():
    features, labels = clouds()
    head = solve_kernel_head(features, labels, 3).head
    again = KernelHead(8, 3, 60)
    again.load_state_dict(head.state_dict())
    torch.testing.assert_close(again(features), head(features), rtol=0, atol=0)
    torch.testing.assert_close(solve_kernel_head(features, labels, 3).head(features), head(features), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("features", "labels", "groups", "words"),
    [
        (torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), None, "at least 2 labels"),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), None, "one row for each"),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), [Group(3, 1.0)], "add up to the 2 features"),
        (torch.full((3, 2), torch.nan), torch.zeros(3, dtype=torch.int64), None, "must be finite"),
    ],
)
def test_what_cannot_be_solved_is_refused(features, labels, groups, words):
    with pytest.raises(ValueError, match=words):
        solve_kernel_head(features, labels, 2, groups)
