"""Lobe-wise severity: lesion percentages and the scores 0 to 5 that radiologists give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from algorithm.lobes import LOBES, Lobe, lobe_voxels

SCORE_LOWER_PERCENT = (0.0, 1.0, 5.0, 25.0, 50.0, 75.0)
"""The least percentage of each score; a lobe below 1 % scores 0."""

SCORE_INTERVALS = ((0.0, 0.0), (0.01, 0.05), (0.05, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
"""The lesion fraction that a score stands for in training, both ends inclusive (dRAM paper, Table I b)."""


@dataclass(frozen=True)
class LobeInvolvement:
    """How much of one lobe is lesion; percent and score are None where the lobe is absent."""

    lobe: Lobe
    volume_ml: float
    lesion_ml: float
    percent: float | None
    score: int | None


def score_of_percent(percent: float) -> int:
    """The severity score of a lesion percentage: below 1 gives 0, then 1, 5, 25, 50 and 75 begin the next score.

    Raises:
        ValueError: the percentage lies outside [0, 100].
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"lesion percentage {percent}: expected a number from 0 to 100")
    return int(np.searchsorted(SCORE_LOWER_PERCENT, percent, side="right")) - 1


def lobe_involvement(lesions: NDArray[np.uint8], lobes: NDArray[np.uint8], *, voxel_ml: float) -> list[LobeInvolvement]:
    """Volume, lesion volume, percentage and score of each of the five lobes.

    Args:
        lesions: (z, y, x), anything but 0 is lesion.
        lobes: (z, y, x), labels of `LOBES`.
        voxel_ml: volume of a voxel.
    """
    voxels, lesion_voxels = lobe_voxels(lobes), lobe_voxels(lobes, lesions)
    return [_involvement(lobe, voxels[lobe.label], lesion_voxels[lobe.label], voxel_ml) for lobe in LOBES]


def total_score(involvement: Sequence[LobeInvolvement]) -> int | None:
    """The sum of the five scores, 0 to 25; None where a lobe is absent."""
    scores = [entry.score for entry in involvement if entry.score is not None]
    return sum(scores) if len(scores) == len(LOBES) else None


def _involvement(lobe: Lobe, voxels: int, lesion_voxels: int, voxel_ml: float) -> LobeInvolvement:
    percent = 100.0 * lesion_voxels / voxels if voxels else None
    return LobeInvolvement(
        lobe=lobe,
        volume_ml=voxels * voxel_ml,
        lesion_ml=lesion_voxels * voxel_ml,
        percent=percent,
        score=None if percent is None else score_of_percent(percent),
    )
