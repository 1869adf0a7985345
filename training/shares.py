"""How much of a lobe is lesion, going by its score: what pseudo labels and refinement targets are fitted to."""

from __future__ import annotations

import numpy as np

from algorithm.severity import SCORE_INTERVALS

UNLIKELY = 0.25  # of a score's interval, at either end: readers err near it, and most lobes lie further inside


def likely_shares(score: int) -> tuple[float, float]:
    """Least and greatest share of lesion that a score is taken for, 0 to 1."""
    low, high = SCORE_INTERVALS[score]
    unlikely = UNLIKELY * (high - low)
    return low + unlikely, high - unlikely


def likely_count(count: int, voxels: int, score: int) -> int:
    """The number of lesion voxels nearest to a count that suits the score of a lobe of so many voxels."""
    low, high = likely_shares(score)
    return int(np.clip(count, round(low * voxels), round(high * voxels)))
