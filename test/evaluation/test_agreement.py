from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from evaluation.agreement import (
    agreement_word,
    kappa_of_tables,
    linear_weighted_kappa,
    score_table,
    scores_from_percentages,
)
from evaluation.errors import InputError


def fleiss_cohen_everitt(table: np.ndarray) -> tuple[float, float]:
    """Kappa and its standard error, written out cell by cell from the published formula."""
    n, k = table.sum(), len(table)
    p = table / n
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    weight = [[1 - abs(i - j) / (k - 1) for j in range(k)] for i in range(k)]
    cells = [(i, j) for i in range(k) for j in range(k)]
    observed = sum(weight[i][j] * p[i, j] for i, j in cells)
    expected = sum(weight[i][j] * rows[i] * columns[j] for i, j in cells)
    row_mean = [sum(columns[j] * weight[i][j] for j in range(k)) for i in range(k)]
    column_mean = [sum(rows[i] * weight[i][j] for i in range(k)) for j in range(k)]
    kappa = (observed - expected) / (1 - expected)
    total = sum(p[i, j] * (weight[i][j] - (row_mean[i] + column_mean[j]) * (1 - kappa)) ** 2 for i, j in cells)
    variance = (total - (kappa - expected * (1 - kappa)) ** 2) / (n * (1 - expected) ** 2)
    return kappa, variance**0.5


def scores(seed: int, n: int, highest: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, highest + 1, n)
    return reference, np.clip(reference + rng.integers(-1, 2, n), 0, highest)


@pytest.mark.parametrize("highest", [5, 3])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kappa_against_scikit_learn_and_the_formula(seed: int, highest: int) -> None:
    reference, predicted = scores(seed, 345, highest)
    table = np.zeros((6, 6))
    np.add.at(table, (reference, predicted), 1)
    kappa, standard_error = fleiss_cohen_everitt(table)
    result = linear_weighted_kappa(reference, predicted)
    assert result.kappa == pytest.approx(cohen_kappa_score(reference, predicted, weights="linear", labels=range(6)))
    assert result.kappa == pytest.approx(kappa)
    assert result.standard_error == pytest.approx(standard_error)
    assert result.ci_high - result.ci_low == pytest.approx(2 * 1.959964 * standard_error, rel=1e-6)
    assert result.n == 345


def test_kappa_by_hand() -> None:
    # Of four pairs one is off by one: disagreement observed 1/4 x 1/5 = 1/20. Margins 0: 2/4 and 1/4, 1: 1/4 and 2/4,
    # 5: 1/4 twice; by chance (2x2 + 1x1) / 16 x 1/5 + (2 + 1) / 16 x 5/5 + (1 + 2) / 16 x 4/5 = 32/80. 1 - 1/8 = 7/8.
    assert linear_weighted_kappa([0, 0, 1, 5], [0, 1, 1, 5]).kappa == pytest.approx(7 / 8)


def test_standard_error_by_hand() -> None:
    # Scores 0 and 5 only: weights 1 and 0, so this is plain kappa of [[4, 1], [1, 4]]: po 0.8, pe 0.5, kappa 0.6, and
    # with even margins the variance is po (1 - po) / (n (1 - pe)^2) = 0.16 / 2.5 = 0.064.
    result = linear_weighted_kappa([0] * 5 + [5] * 5, [0] * 4 + [5] + [0] + [5] * 4)
    assert result.kappa == pytest.approx(0.6)
    assert result.standard_error == pytest.approx(0.064**0.5)
    assert result.word == "moderate"


def test_perfect_agreement() -> None:
    result = linear_weighted_kappa([0, 1, 2, 3, 4, 5, 5], [0, 1, 2, 3, 4, 5, 5])
    assert (result.kappa, result.standard_error) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-7))
    assert result.word == "excellent"


@pytest.mark.parametrize(
    ("reference", "predicted"), [([], []), ([2, 2, 2], [2, 2, 2]), ([0, 0], [1, 1])], ids=["none", "same", "apart"]
)
def test_kappa_is_undefined_when_all_pairs_share_a_cell(reference, predicted) -> None:
    result = linear_weighted_kappa(reference, predicted)
    assert (result.kappa, result.standard_error, result.ci_low, result.ci_high) == (None, None, None, None)
    assert result.word is None
    assert result.n == len(reference)


@pytest.mark.parametrize(("reference", "predicted"), [([3, 3, 3], [0, 3, 5]), ([0, 3, 5], [3, 3, 3])])
def test_one_constant_side_has_kappa_zero_without_an_interval(reference, predicted) -> None:
    result = linear_weighted_kappa(reference, predicted)
    assert result.kappa == 0.0
    assert result.standard_error is None
    assert result.ci_low is None


@pytest.mark.parametrize(
    ("kappa", "word"),
    [
        (-0.3, "slight"),
        (0.20, "slight"),
        (0.201, "fair"),
        (0.40, "fair"),
        (0.41, "moderate"),
        (0.60, "moderate"),
        (0.61, "good"),
        (0.80, "good"),
        (0.81, "excellent"),
        (None, None),
    ],
)
def test_agreement_words(kappa, word) -> None:
    assert agreement_word(kappa) == word


def test_scores_are_lower_inclusive() -> None:
    percentages = [0, 0.999, 1, 4.999, 5, 24.999, 25, 49.999, 50, 74.999, 75, 100]
    assert scores_from_percentages(percentages).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_scores_with_another_lowest_border() -> None:
    percentages = [0, 0.001, 0.499, 0.5, 1, 4.999, 5, 100]
    assert scores_from_percentages(percentages, lowest_border=0.5).tolist() == [0, 0, 0, 1, 1, 1, 2, 5]
    assert scores_from_percentages(percentages, lowest_border=0.0).tolist() == [0, 1, 1, 1, 1, 1, 2, 5]


def test_kappa_of_many_tables_at_once() -> None:
    pairs = [scores(seed, 50) for seed in range(4)]
    tables = np.stack([score_table(*pair) for pair in pairs]).reshape(2, 2, 6, 6)
    expected = [cohen_kappa_score(*pair, weights="linear", labels=range(6)) for pair in pairs]
    assert kappa_of_tables(tables).ravel() == pytest.approx(expected)


def test_kappa_of_tables_is_nan_where_it_is_undefined() -> None:
    tables = np.stack([score_table([], []), score_table([2, 2], [2, 2]), score_table([0, 0], [1, 1])])
    assert np.isnan(kappa_of_tables(tables)).all()
    assert kappa_of_tables(score_table([3, 3], [0, 5])) == 0.0


def test_a_table_has_the_reference_in_its_rows() -> None:
    table = score_table([0, 0, 5], [1, 1, 4])
    assert (table[0, 1], table[5, 4], table.sum()) == (2, 1, 3)


PAPER_MARGINALS = (52, 64, 114, 69, 34, 12)
"""Lobes of each score in the paper's test set, Table I (b)."""


def simulated_rater(reference: np.ndarray, noise: float, outliers: float, rng: np.random.Generator) -> np.ndarray:
    """The reference with a normal error, rounded to a score, and in a share of lobes any score at all."""
    noisy = np.clip(np.rint(reference + rng.normal(0, noise, reference.size)), 0, 5).astype(int)
    return np.where(rng.random(reference.size) < outliers, rng.integers(0, 6, reference.size), noisy)


@pytest.mark.parametrize(("kappa", "width"), [(0.392, 0.115), (0.461, 0.125), (0.514, 0.111)])
def test_the_width_of_the_papers_intervals(kappa, width) -> None:
    # Of all raters with these marginals, with one outlier in twenty, those that come near the paper's kappa.
    rng = np.random.default_rng(0)
    reference = np.repeat(range(6), PAPER_MARGINALS)
    raters = [simulated_rater(reference, noise, 0.05, rng) for noise in np.linspace(0.8, 2.4, 300)]
    results = [linear_weighted_kappa(reference, rater) for rater in raters]
    near = [result for result in results if abs(result.kappa - kappa) < 0.01]
    assert len(near) >= 10
    assert np.mean([result.ci_high - result.ci_low for result in near]) == pytest.approx(width, rel=0.1)


@pytest.mark.parametrize("percentage", [-0.1, 100.1, float("nan")])
def test_refuses_impossible_percentages(percentage) -> None:
    with pytest.raises(InputError, match="expected numbers from 0 to 100"):
        scores_from_percentages([percentage])


@pytest.mark.parametrize(
    ("reference", "predicted", "message"),
    [
        ([0, 6], [0, 1], "reference_scores: got scores 0 to 6, expected 0 to 5"),
        ([0, 1], [-1, 1], "predicted_scores: got scores -1 to 1"),
        ([0, 1], [0.5, 1], "predicted_scores: got float64"),
        ([0, 1], [0], "got 2 reference and 1 predicted scores"),
    ],
)
def test_refuses_other_scores(reference, predicted, message) -> None:
    with pytest.raises(InputError, match=message):
        linear_weighted_kappa(reference, predicted)
