"""Where lesion begins on a map: the border above which the share of each lobe agrees best with its score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from algorithm.severity import SCORE_INTERVALS
from training.losses import interval_loss, intervals_of

Map = tuple[NDArray[np.floating[Any]], NDArray[np.uint8], Mapping[int, int]]
"""Values of a scan (z, y, x), its lobe labels, and the scores by label of the lobes that have one."""

PROBABILITY_BORDERS = tuple(round(0.05 * k, 2) for k in range(1, 20))
MARGIN_BORDERS = tuple(round(0.05 * k, 2) for k in range(-18, 19))
EQUALLY_GOOD = 1e-7  # difference of the loss


def best_border(maps: Iterable[Map], borders: tuple[float, ...], otherwise: float) -> float:
    """The border with the least mean interval loss (Eq. 1, unweighted) of the shares above it.

    The mean that the dRAM learns by is one of probabilities; what is above a fixed border is another share, and on the
    whole a smaller one. Scores are all that this takes, so it is as weak a supervision as the rest.

    Args:
        maps: of validation cases, read one after another.
        borders: to choose from.
        otherwise: what to take where no lobe has a score; of equally good borders, the nearest to it is taken.
    """
    shares, scores = [], []
    for values, lobes, scores_by_label in maps:
        for label, score in scores_by_label.items():
            own = values[lobes == label]
            if own.size:
                shares.append([float((own > border).mean()) for border in borders])
                scores.append(score)
    if not scores:
        return otherwise
    lower, upper = (ends[:, None] for ends in intervals_of(scores, SCORE_INTERVALS))
    losses = interval_loss(torch.tensor(shares), lower, upper).mean(dim=0)
    best = [border for border, loss in zip(borders, losses - losses.min(), strict=True) if loss <= EQUALLY_GOOD]
    return min(best, key=lambda border: abs(border - otherwise))
