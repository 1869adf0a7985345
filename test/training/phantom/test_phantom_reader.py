"""Scores as a reader gives them."""

from __future__ import annotations

import numpy as np
import pytest

from training.phantom.lesions import score_of
from training.phantom.reader import reader_scores


def always(percent: float) -> int:
    """The score of a reader who errs wherever it is possible."""
    return reader_scores({1: percent}, np.random.default_rng(0), noise=1.0)[1]


@pytest.mark.parametrize(
    ("percent", "score"),
    [
        (0.0, 0), (0.4, 0), (1.0, 1), (3.9, 1), (4.1, 2), (5.0, 1), (5.9, 1), (6.1, 2), (19.9, 2), (20.1, 3),
        (25.0, 2), (29.9, 2), (30.1, 3), (46.0, 4), (50.0, 3), (62.0, 4), (70.5, 5), (75.0, 4), (79.9, 4), (80.1, 5),
        (100.0, 5),
    ],
)  # fmt: skip
def test_the_neighbours_score_near_a_border_and_the_lobes_own_elsewhere(percent: float, score: int) -> None:
    assert always(percent) == score


def test_without_noise_scores_are_true() -> None:
    percentages = dict(enumerate(np.linspace(0, 100, 201)))
    scores = reader_scores(percentages, np.random.default_rng(0), noise=0.0)
    assert scores == {key: score_of(percent) for key, percent in percentages.items()}


def test_noise_is_how_often_a_lobe_near_a_border_is_misread() -> None:
    percentages = dict.fromkeys(range(2000), 24.0)
    scores = list(reader_scores(percentages, np.random.default_rng(0), noise=0.3).values())
    assert set(scores) == {2, 3}
    assert scores.count(3) / 2000 == pytest.approx(0.3, abs=0.04)
