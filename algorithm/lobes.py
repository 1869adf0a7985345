"""The five lobes: how they are numbered, and what a usable lobe mask is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from algorithm.errors import InputError
from algorithm.images import Volume, require_same_grid


class Lobe(NamedTuple):
    """One lobe of the lungs."""

    label: int
    key: str
    name: str


LOBES = (
    Lobe(1, "lul", "left upper lobe"),
    Lobe(2, "lll", "left lower lobe"),
    Lobe(3, "rul", "right upper lobe"),
    Lobe(4, "rll", "right lower lobe"),
    Lobe(5, "rml", "right middle lobe"),
)

LEFT, RIGHT = (1, 2), (3, 4, 5)
"""Labels of the lobes of either lung."""

NUMBERING = ", ".join(f"{lobe.label} {lobe.name}" for lobe in LOBES)


def lobe_voxels(lobes: NDArray[np.uint8], where: NDArray[np.uint8] | None = None) -> list[int]:
    """Number of voxels by label, 0 to 5.

    Args:
        lobes: labels of `LOBES`, (z, y, x).
        where: counts only what is not 0 in it, the same shape; None counts all.
    """
    counts = np.zeros(1 + len(LOBES), dtype=np.int64)
    for number, labels in enumerate(lobes):  # bincount takes eight bytes a voxel
        counted = labels.ravel() if where is None else labels[where[number] > 0]
        counts += np.bincount(counted, minlength=len(counts))
    return [int(count) for count in counts]


def lobe_volumes_ml(lobes: Volume) -> dict[int, float]:
    """Volume of each lobe by label, 0 where it is absent."""
    voxels = lobe_voxels(lobes.array)
    return {lobe.label: voxels[lobe.label] * lobes.geometry.voxel_ml for lobe in LOBES}


def check_lobes(lobes: Volume, ct: Volume) -> Volume:
    """Check a lobe mask against its CT; a lobe may be absent.

    Args:
        lobes: integer labels of `LOBES`, 0 elsewhere.
        ct: the CT.

    Returns:
        The mask as uint8, with the CT's geometry.

    Raises:
        InputError: the mask is on another grid, is empty, or holds labels other than those of `LOBES`.
    """
    require_same_grid(lobes, ct, "lobe mask")
    known = [0, *(lobe.label for lobe in LOBES)]
    unknown = [int(label) for label in np.unique(lobes.array) if label not in known]
    if unknown:
        shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        raise InputError(
            f"the lobe mask holds labels {shown}, expected {NUMBERING}; renumber it (lungmask and TotalSegmentator "
            "number the right middle and right lower lobe the other way round)"
        )
    if not lobes.array.any():
        raise InputError(f"the lobe mask is empty, expected {NUMBERING}")
    return Volume(lobes.array.astype(np.uint8, copy=False), ct.geometry)
