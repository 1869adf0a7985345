"""Scores as a reader gives them: right, but near a border between two scores now and then the neighbour."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from training.phantom.lesions import SCORE_LIMITS_PERCENT, score_of

EASILY_MISSED_PERCENT = 1.0  # a lobe with less may pass for healthy
_NEAR = 0.2  # of a border's own percentage
_NEAREST_PERCENT = 5.0  # but no more


def reader_scores(percentages: Mapping[int, float], rng: np.random.Generator, *, noise: float) -> dict[int, int]:
    """Severity scores 0-5 by lobe label.

    Borders are 5, 25, 50 and 75 % of the lobe; near is within 1 of 5 %, and within 5 of the others. A lobe with some
    lesion, but below 1 %, may be scored 0.

    Args:
        percentages: true share of lesion voxels, 0 to 100, by lobe label.
        rng: draws who is misread; each lobe takes one number of it.
        noise: probability, 0 to 1, that a lobe near a border is given the score of the border's other side.
    """
    return {
        label: _across(percent) if rng.random() < noise else score_of(percent) for label, percent in percentages.items()
    }


def _across(percent: float) -> int:
    """The neighbouring score where its border is near, else the lobe's own."""
    own = score_of(percent)
    if 0 < percent < EASILY_MISSED_PERCENT:
        return 0
    for border in SCORE_LIMITS_PERCENT[1:5]:
        if abs(percent - border) <= min(_NEAR * border, _NEAREST_PERCENT):
            return own - 1 if percent >= border else own + 1
    return own
