"""Labels of lobes from the probabilities that a network gives, (6, z, y, x) with the background first."""

from __future__ import annotations

import math

import cc3d
import numpy as np
from numpy.typing import NDArray

from algorithm.images import Geometry, Volume
from algorithm.lobes import LEFT, LOBES, RIGHT
from algorithm.preprocess import Box, bounding_box, crop, cropped, resample

SMALLEST_PROBABILITY = 0.02  # below which a lobe is not looked for


def hard_labels(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The likeliest lobe of each voxel that is rather lung than background, uint8 (z, y, x).

    Args:
        probability: (6, z, y, x), background first.
    """
    labels, best = np.ones(probability.shape[1:], dtype=np.uint8), probability[1].copy()
    for lobe in LOBES[1:]:  # NumPy's argmax over the first axis takes fifteen times as long
        own = probability[lobe.label]
        labels[own > best] = lobe.label
        np.maximum(own, best, out=best)
    labels[probability[0] >= 0.5] = 0
    return labels


def keep_main_parts(probability: NDArray[np.float32]) -> None:
    """Take out what is apart from the bulk of either lung, and give strays of a lobe to their surroundings, in place.

    Args:
        probability: (6, z, y, x), background first.
    """
    keep_lungs(probability)
    labels = hard_labels(probability)
    for lobe in LOBES:
        member = labels == lobe.label
        stray = member & (cc3d.largest_k(member, k=1, connectivity=6) == 0)
        others = probability[1:, stray]
        others[lobe.label - 1] = 0
        others *= (1 - probability[0, stray]) / np.maximum(others.sum(axis=0), np.finfo(np.float32).tiny)
        probability[1:, stray] = others


def keep_lungs(probability: NDArray[np.float32]) -> None:
    """Take out what is apart from the bulk of either lung, in place.

    Args:
        probability: (6, z, y, x), background first.
    """
    labels = hard_labels(probability)
    for side in (LEFT, RIGHT):
        lung = np.isin(labels, side)
        stray = lung & (cc3d.largest_k(lung, k=1, connectivity=6) == 0)
        probability[:, stray] = 0
        probability[0, stray] = 1


def expected_dice(probability: NDArray[np.float32]) -> dict[int, float]:
    """Dice of each lobe that is there, by label, if every probability were right.

    Args:
        probability: (6, z, y, x), background first.
    """
    labels = hard_labels(probability)
    expected = {}
    for lobe in LOBES:
        member = labels == lobe.label
        if member.any():
            own = probability[lobe.label]
            expected[lobe.label] = float(2 * own[member].sum() / (member.sum() + own.sum()))
    return expected


def labels_at(probability: NDArray[np.float32], coarse: Geometry, fine: Geometry) -> NDArray[np.uint8]:
    """The likeliest lobe at the voxels of another grid, by linear interpolation of the probabilities.

    Args:
        probability: (6, z, y, x), background first, on ``coarse``.
        coarse: a grid that covers ``fine`` edge to edge (`algorithm.preprocess.covering_grid`).
        fine: the CT's grid.

    Returns:
        uint8 (z, y, x) on ``fine``.
    """
    labels = np.zeros(fine.size_zyx, dtype=np.uint8)
    if not (probability[0] < 0.5).any():
        return labels
    lungs_box = _box_on(_box_of(probability[1:].max(axis=0)), coarse, fine)
    inside = labels[lungs_box]
    best, lung = (np.zeros(inside.shape, dtype=np.float32) for _ in range(2))
    for lobe in LOBES:
        own = probability[lobe.label]
        if not (own > SMALLEST_PROBABILITY).any():
            continue
        box = _box_of(own)
        target = _box_on(box, coarse, fine)
        value = resample(crop(Volume(own, coarse), box), cropped(fine, target), "linear").array
        local = tuple(
            slice(part.start - whole.start, part.stop - whole.start)
            for part, whole in zip(target, lungs_box, strict=True)
        )
        inside[local][value > best[local]] = lobe.label
        np.maximum(best[local], value, out=best[local])
        lung[local] += value
    inside[lung <= 0.5] = 0
    return labels


def _box_of(probability: NDArray[np.float32]) -> Box:
    return bounding_box(probability > SMALLEST_PROBABILITY, (1, 1, 1))


def _box_on(box: Box, coarse: Geometry, fine: Geometry) -> Box:
    """The voxels of a fine grid that a box of voxels of the coarse grid that covers it reaches into."""
    parts = []
    for axis, part in enumerate(box):
        ratio, size = coarse.spacing_zyx_mm[axis] / fine.spacing_zyx_mm[axis], fine.size_zyx[axis]
        start = min(math.floor(part.start * ratio), size - 1)
        parts.append(slice(start, max(start + 1, min(math.ceil(part.stop * ratio), size))))
    return parts[0], parts[1], parts[2]
