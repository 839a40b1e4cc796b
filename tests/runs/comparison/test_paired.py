import itertools

import numpy as np
import pytest

from pointpeft.runs.comparison.paired import paired_p_value


def exact(difference):
    """All sign patterns, instead of drawn ones."""
    sums = [abs(np.dot(signs, difference)) for signs in itertools.product((-1, 1), repeat=len(difference))]
    return np.mean(np.array(sums) >= abs(difference.sum()) - 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_all_sign_patterns(seed):
    generator = np.random.default_rng(seed)
    first, second = generator.integers(0, 4, (2, 12)) / 3
    assert paired_p_value(first, second, seed) == pytest.approx(exact(first - second), abs=0.02)


def test_equal_methods_and_opposite_ones():
    right = np.array([1.0, 0.0, 1.0, 1.0] * 10)
    assert paired_p_value(right, right) == 1.0
    assert paired_p_value(np.ones(40), np.zeros(40)) < 1e-3
    assert paired_p_value(right, 1 - right) == paired_p_value(1 - right, right)


def test_other_clouds_are_refused():
    with pytest.raises(ValueError, match="one number per cloud"):
        paired_p_value(np.ones(3), np.ones(4))
