from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import norm, rankdata

from evaluation.errors import InputError
from evaluation.significance import bonferroni, wilcoxon_signed_rank


def enumerated_p(differences: np.ndarray) -> float:
    """Share of the 2^n sign patterns whose rank sum lies at least as far from its middle as the observed one."""
    ranks = rankdata(np.abs(differences))
    middle = ranks.sum() / 2
    observed = abs(ranks[differences > 0].sum() - middle)
    sums = [
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in product((0, 1), repeat=len(ranks))
    ]
    return float(np.mean([abs(total - middle) >= observed - 1e-9 for total in sums]))


@pytest.mark.parametrize(
    "differences",
    [
        [1, 2, 3, 4, 5],
        [-1, 2, 3, 4, 5, 6],
        [3, -1, 4, -2, 5, 9, 7, -6],
        [1, 1, -1, 2, 3, 3, -3, 4],
        [1, 1, 1, 1, 1, -1],
    ],
    ids=["one side", "one against", "mixed", "ties", "all tied"],
)
def test_p_against_enumeration(differences) -> None:
    result = wilcoxon_signed_rank(differences, [0] * len(differences))
    assert result.p == pytest.approx(enumerated_p(np.array(differences, dtype=float)))
    mirrored = wilcoxon_signed_rank([0] * len(differences), differences)
    assert (mirrored.p, mirrored.statistic) == (pytest.approx(result.p), result.statistic)
    assert mirrored.median_difference == -result.median_difference


@pytest.mark.parametrize("seed", range(8))
def test_p_against_enumeration_with_ties_and_zeros(seed) -> None:
    rng = np.random.default_rng(seed)
    differences = rng.integers(-3, 5, 10)
    result = wilcoxon_signed_rank(differences, np.zeros(10))
    assert (result.n, result.n_nonzero) == (10, np.count_nonzero(differences))
    assert result.p == pytest.approx(enumerated_p(differences[differences != 0].astype(float)))


def test_p_of_many_pairs_against_the_normal_approximation() -> None:
    rng = np.random.default_rng(3)
    differences = rng.integers(-6, 8, 90).astype(float)
    nonzero = differences[differences != 0]
    ranks, n = rankdata(np.abs(nonzero)), nonzero.size
    _, ties = np.unique(np.abs(nonzero), return_counts=True)
    deviation = (n * (n + 1) * (2 * n + 1) / 24 - np.sum(ties**3 - ties) / 48) ** 0.5
    z = (ranks[nonzero > 0].sum() - n * (n + 1) / 4) / deviation
    assert wilcoxon_signed_rank(differences, np.zeros(90)).p == pytest.approx(2 * norm.sf(abs(z)))


@pytest.mark.parametrize(("n", "shift"), [(30, 0.1), (50, 0.0)])
def test_p_of_many_pairs_without_ties_against_counting(n, shift) -> None:
    # Each rank from 1 to n is in the sum or not: how many of the 2^n ways give each sum, by adding one rank at a time.
    rng = np.random.default_rng(4)
    first, second = rng.random(n) + shift, rng.random(n)
    ways = [1] + [0] * (n * (n + 1) // 2)
    for rank in range(1, n + 1):
        ways = [ways[total] + (ways[total - rank] if total >= rank else 0) for total in range(len(ways))]
    order = np.argsort(np.abs(first - second))
    lesser = min(sum(r for r, d in enumerate((first - second)[order], 1) if sign * d > 0) for sign in (1, -1))
    result = wilcoxon_signed_rank(first, second)
    assert result.statistic == lesser
    assert result.p == pytest.approx(min(1.0, 2 * sum(ways[: lesser + 1]) / 2**n))


def test_rank_biserial_by_hand() -> None:
    # Ranks of 1, 2, 3, 4 and sum 10: 4 against and 6 for; a zero has no rank.
    assert wilcoxon_signed_rank([1, 2, 3, -4, 0], [0] * 5).rank_biserial == pytest.approx((6 - 4) / 10)
    assert wilcoxon_signed_rank([-1, -2, -3, 4, 0], [0] * 5).rank_biserial == pytest.approx(-(6 - 4) / 10)
    assert wilcoxon_signed_rank([1, 2, 2], [0] * 3).rank_biserial == 1.0
    assert wilcoxon_signed_rank([1, 1], [1, 1]).rank_biserial is None


def test_five_pairs_on_one_side_by_hand() -> None:
    result = wilcoxon_signed_rank([1, 2, 3, 4, 5], [0, 0, 0, 0, 0])
    assert (result.p, result.statistic) == (pytest.approx(2 / 32), 0.0)


def test_zeros_are_dropped() -> None:
    with_zeros = wilcoxon_signed_rank([1, 2, 3, 4, 5, 7, 7], [0, 0, 0, 0, 0, 7, 7])
    assert (with_zeros.n, with_zeros.n_nonzero) == (7, 5)
    assert with_zeros.p == pytest.approx(2 / 32)
    assert with_zeros.median_difference == 2


def test_equal_differences_of_decimals_are_ties() -> None:
    tenths = wilcoxon_signed_rank([0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.2, 0.3, 0.4, 0.5, 0.8, 0.9])
    whole = wilcoxon_signed_rank([3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 8, 9])
    assert (tenths.statistic, tenths.p, tenths.rank_biserial) == (whole.statistic, whole.p, whole.rank_biserial)


@pytest.mark.parametrize("values", [[], [0.5, 0.5, 0.7]])
def test_equal_methods_have_no_p(values) -> None:
    result = wilcoxon_signed_rank(values, values)
    assert (result.p, result.statistic, result.n_nonzero) == (None, None, 0)


def test_refuses_values_that_cannot_be_paired() -> None:
    with pytest.raises(InputError, match="got 2 and 1 values"):
        wilcoxon_signed_rank([1, 2], [1])
    with pytest.raises(InputError, match="not finite"):
        wilcoxon_signed_rank([1, float("nan")], [1, 2])


def test_bonferroni() -> None:
    assert bonferroni(0.01, comparisons=7) == pytest.approx(0.07)
    assert bonferroni(0.5, comparisons=3) == 1.0
    assert bonferroni(None, comparisons=3) is None
    with pytest.raises(InputError, match="got 0 comparisons"):
        bonferroni(0.5, comparisons=0)
