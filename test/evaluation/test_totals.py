from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from sklearn.metrics import r2_score
from statsmodels.formula.api import ols

from evaluation.errors import InputError
from evaluation.totals import intraclass_correlation, r_squared

SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
"""Table 2 of Shrout and Fleiss (1979): six targets, four judges; they give ICC(2,1) as 0.29."""


def test_r_squared_by_hand_and_against_scikit_learn() -> None:
    assert r_squared([0, 2, 4], [1, 2, 4]) == pytest.approx(1 - 1 / 8)
    assert r_squared([0, 2, 4], [3, 5, 7]) == pytest.approx(1 - 27 / 8)
    rng = np.random.default_rng(1)
    reference, predicted = rng.integers(0, 26, 40), rng.integers(0, 26, 40)
    assert r_squared(reference, predicted) == pytest.approx(r2_score(reference, predicted))


@pytest.mark.parametrize("values", [[], [3], [4, 4, 4]])
def test_r_squared_needs_a_spread(values) -> None:
    assert r_squared(values, values) is None


def test_r_squared_refuses_what_cannot_be_paired() -> None:
    with pytest.raises(InputError, match="got 2 reference and 3 predicted values"):
        r_squared([1, 2], [1, 2, 3])


def test_icc_against_the_published_example() -> None:
    assert intraclass_correlation(SHROUT_FLEISS.astype(float)) == pytest.approx(0.29, abs=0.005)


@pytest.mark.parametrize("seed", [1, 2])
def test_icc_against_an_analysis_of_variance(seed) -> None:
    rng = np.random.default_rng(seed)
    ratings = rng.normal(10, 4, (15, 1)) + rng.normal(0, 2, (15, 2)) + [0, 1.5]
    n, k = ratings.shape
    table = pd.DataFrame({"value": ratings.ravel(), "scan": np.repeat(range(n), k), "rater": np.tile(range(k), n)})
    squares = sm.stats.anova_lm(ols("value ~ C(scan) + C(rater)", table).fit())["mean_sq"]
    bms, jms, ems = squares["C(scan)"], squares["C(rater)"], squares["Residual"]
    expected = (bms - ems) / (bms + (k - 1) * ems + k * (jms - ems) / n)
    assert intraclass_correlation(ratings) == pytest.approx(expected)


def test_icc_edges() -> None:
    assert intraclass_correlation(np.array([[1.0, 1.0], [5.0, 5.0], [9.0, 9.0]])) == pytest.approx(1.0)
    assert intraclass_correlation(np.array([[1.0, 5.0], [5.0, 9.0], [9.0, 13.0]])) < 0.7  # agreement, not consistency
    assert intraclass_correlation(np.full((3, 2), 4.0)) is None
    assert intraclass_correlation(np.array([[1.0, 2.0]])) is None
    assert intraclass_correlation(np.zeros((0, 2))) is None
