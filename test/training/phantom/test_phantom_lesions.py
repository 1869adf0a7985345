"""Lesions: scores, the share of a lobe that they fill, and subtypes by component."""

from __future__ import annotations

import numpy as np
import pytest

from training.phantom.lesions import (
    CONSOLIDATION,
    GROUND_GLASS,
    MIXED,
    SCORE_SHARES,
    LungPoints,
    draw_percentages,
    label_subtypes,
    make_lesions,
    score_of,
)


@pytest.mark.parametrize(
    ("percent", "score"),
    [(0, 0), (0.1, 1), (4.99, 1), (5, 2), (24.9, 2), (25, 3), (49.9, 3), (50, 4), (74.9, 4), (75, 5), (100, 5)],
)
def test_score_intervals_are_lower_inclusive(percent: float, score: int) -> None:
    assert score_of(percent) == score


def test_scores_are_distributed_as_wanted_and_correlated_within_a_case() -> None:
    rng = np.random.default_rng(0)
    scores = np.array([[score_of(p) for p in draw_percentages(rng).values()] for _ in range(3000)])
    shares = np.bincount(scores.ravel(), minlength=6) / scores.size
    np.testing.assert_allclose(shares, SCORE_SHARES, atol=0.03)
    assert 0.08 < (scores == 0).all(axis=1).mean() < 0.17
    assert np.corrcoef(scores.T)[np.triu_indices(5, 1)].min() > 0.3


def test_no_lobe_has_a_trace_only() -> None:
    rng = np.random.default_rng(1)
    percentages = np.array([list(draw_percentages(rng).values()) for _ in range(500)])
    assert percentages[percentages > 0].min() > 0.5


def test_lesions_fill_the_wanted_share_of_each_lobe() -> None:
    rng = np.random.default_rng(2)
    count = 20_000
    label = np.repeat(np.arange(1, 6), count // 5).astype(np.uint8)
    position = rng.uniform(0, 100, (count, 3)).astype(np.float32)
    points = LungPoints(position, label, position[:, 0] / 4)
    wanted = {1: 0.0, 2: 3.0, 3: 20.0, 4: 60.0, 5: 90.0}
    fields = make_lesions(rng, points, wanted)
    for lobe, percent in wanted.items():
        assert 100 * (fields.presence[label == lobe] > 0.5).mean() == pytest.approx(percent, abs=0.2)
    assert fields.gain_hu[fields.presence > 0].min() >= 20
    assert ((fields.solid >= 0) & (fields.solid <= 1)).all()


def test_a_component_is_mixed_when_parts_of_it_are_consolidated() -> None:
    presence = np.zeros((4, 12, 12), dtype=bool)
    weight = np.zeros(presence.shape, dtype=np.float32)
    presence[1:3, 0:3, 0:3] = presence[1:3, 5:8, 0:3] = presence[1:3, 0:3, 6:9] = True
    presence[0, 10, 10] = True  # too small
    weight[1:3, 5:8, 0:3] = 0.9
    weight[1, 0:3, 6:9] = 0.8
    subtypes = label_subtypes(presence, weight, smallest_voxels=3)
    assert (subtypes[1:3, 0:3, 0:3] == GROUND_GLASS).all()
    assert (subtypes[1:3, 5:8, 0:3] == CONSOLIDATION).all()
    assert (subtypes[1:3, 0:3, 6:9] == MIXED).all()
    assert subtypes[0, 10, 10] == 0


def test_components_that_touch_at_a_corner_are_one() -> None:
    presence = np.zeros((4, 4, 4), dtype=bool)
    presence[:2, :2, :2] = presence[2:, 2:, 2:] = True
    weight = np.where(np.arange(4)[:, None, None] < 2, 0.0, 1.0) * np.ones((4, 4, 4))
    subtypes = label_subtypes(presence, weight.astype(np.float32), smallest_voxels=1)
    assert set(np.unique(subtypes)) == {0, MIXED}
