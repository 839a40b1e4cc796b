"""A paired test of two methods on the same test clouds."""

import numpy as np

FLIPS = 10_000


def paired_p_value(first: np.ndarray, second: np.ndarray, seed: int = 0) -> float:
    """Sign-flip permutation test on the clouds: how often chance alone separates two methods this far, two-sided.

    If the methods were alike, each cloud's difference could as well have the other sign.

    Args:
        first: Share of the seeds in which the one method was right, by cloud. [M]
        second: The other method's, on the same clouds in the same order. [M]
        seed: Of the drawn signs.

    Returns:
        The p-value, at least 1 / (FLIPS + 1).

    Raises:
        ValueError: Not the same number of clouds.

    Source: Good, "Permutation, parametric and bootstrap tests of hypotheses", 2005, chapter 3.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"both must hold one number per cloud, got shapes {first.shape} and {second.shape}")
    difference = first - second
    observed = abs(difference.sum())
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(FLIPS, len(difference)))
    # A hair below, so that equal sums of another order count as equal.
    as_far = int((np.abs(signs @ difference) >= observed - 1e-9).sum())
    return (as_far + 1) / (FLIPS + 1)
