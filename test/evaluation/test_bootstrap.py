from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from evaluation.agreement import linear_weighted_kappa, score_table
from evaluation.bootstrap import NO_INTERVAL, kappa_interval, mean_interval


def pair_tables(reference: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return np.stack([score_table([one], [other]) for one, other in zip(reference, predicted, strict=True)])


def raters(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, 6, n)
    return reference, np.clip(reference + rng.integers(-2, 3, n), 0, 5)


def test_mean_interval_against_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.2, 400)
    half = norm.ppf(0.975) * values.std() / 20
    low, high = mean_interval(values.tolist(), seed=0)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_mean_interval_by_enumeration() -> None:
    # Redrawing 0 and 1: means 0, 1/2, 1 with chances 1/4, 1/2, 1/4, so both ends are in the outer quarters.
    assert mean_interval([0.0, 1.0], seed=3) == (0.0, 1.0)
    assert mean_interval([0.25, 0.25, 0.25], seed=3) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_no_mean_interval_below_two_values(values) -> None:
    assert mean_interval(values, seed=0) == NO_INTERVAL


def test_the_seed_decides() -> None:
    values = [0.1, 0.4, 0.5, 0.9, 0.3]
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    tables = pair_tables(*raters(30, 1))
    assert kappa_interval(tables, seed=1) == kappa_interval(tables, seed=1)
    assert kappa_interval(tables, seed=1) != kappa_interval(tables, seed=2)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_naive_interval_agrees_with_the_analytic_one(seed) -> None:
    reference, predicted = raters(400, seed)
    analytic = linear_weighted_kappa(reference, predicted)
    low, high = kappa_interval(pair_tables(reference, predicted), seed=seed)
    assert (low, high) == pytest.approx((analytic.ci_low, analytic.ci_high), abs=0.01)


def test_lobes_that_repeat_each_other_widen_the_clustered_interval() -> None:
    # Five equal lobes a scan carry the information of one: the interval is that of one lobe a scan, and sqrt(5) times
    # as wide as the naive one.
    reference, predicted = raters(80, 4)
    one = pair_tables(reference, predicted)
    clustered = kappa_interval(5 * one, seed=0)
    naive = kappa_interval(one.repeat(5, axis=0), seed=0)
    assert clustered == pytest.approx(kappa_interval(one, seed=0))
    width = (clustered.high - clustered.low) / (naive.high - naive.low)
    assert width == pytest.approx(5**0.5, rel=0.1)


def test_no_kappa_interval_where_kappa_is_mostly_undefined() -> None:
    # Of three pairs two are alike: all three draws fall on these with a chance of 8/27, and on the third with 1/27.
    assert kappa_interval(pair_tables(np.array([0, 0, 3]), np.array([0, 0, 4])), seed=0) == NO_INTERVAL
    assert kappa_interval(pair_tables(np.array([2]), np.array([3])), seed=0) == NO_INTERVAL
    assert kappa_interval(np.zeros((0, 6, 6), dtype=np.int64), seed=0) == NO_INTERVAL


@pytest.mark.parametrize("score", range(6))
def test_no_kappa_interval_where_one_side_gives_all_lobes_the_same_score(score) -> None:
    reference, constant = raters(50, 1)[0], np.full(50, score)
    assert kappa_interval(pair_tables(reference, constant), seed=0) == NO_INTERVAL
    assert kappa_interval(pair_tables(constant, reference), seed=0) == NO_INTERVAL
