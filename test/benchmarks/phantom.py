"""A chest of any size, made in a moment: two lungs, five lobes, lesions; not like a chest, but as much work as one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithm.images import Geometry, Volume

AXES = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
LESIONS = 30


def lungs(shape_zyx: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Two lungs that fill a box, bool (z, y, x)."""
    z, y, x = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape_zyx)]
    heart = ((z + 1) / 1.1) ** 2 + ((y + 0.2) / 0.8) ** 2 + (x / 0.5) ** 2 < 0.5
    sides = [z**2 + y**2 + ((x - centre) / 0.47) ** 2 <= 1 for centre in (-0.53, 0.53)]
    inside: NDArray[np.bool_] = (sides[0] | sides[1]) & ~heart
    return inside


def chest(
    size_zyx: tuple[int, int, int], spacing_zyx_mm: tuple[float, float, float], box_zyx: tuple[int, int, int], seed: int
) -> tuple[Volume, Volume]:
    """A CT in HU and its lobes.

    Args:
        size_zyx: voxels of the scan.
        spacing_zyx_mm: their size.
        box_zyx: voxels of the box that the lungs fill, in the middle of the scan.
        seed: of noise and lesions.
    """
    rng = np.random.default_rng(seed)
    box = tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(size_zyx, box_zyx, strict=True))
    inside = lungs(box_zyx)
    hu = rng.normal(-850, 40, box_zyx).astype(np.float32)
    z, y, x = np.ogrid[tuple(slice(0, n) for n in box_zyx)]
    for centre in rng.choice(np.argwhere(inside), LESIONS):
        radius = rng.uniform(0.03, 0.12) * box_zyx[1]
        distance = sum(((a - c) ** 2 for a, c in zip((z, y, x), centre, strict=True)), np.zeros(1))
        hu[distance < radius**2] += rng.uniform(200, 800)
    hu[~inside] = 40
    ct = np.full(size_zyx, 40, dtype=np.int16)
    ct[box] = hu
    labels = np.zeros(size_zyx, dtype=np.uint8)
    upper, left = z > 0.5 * box_zyx[0], x > 0.5 * box_zyx[2]
    middle = (z > 0.35 * box_zyx[0]) & (y < 0.5 * box_zyx[1])
    right = np.where(upper, 3, np.where(middle, 5, 4))
    labels[box] = np.where(inside, np.where(left, np.where(upper, 1, 2), right), 0)
    geometry = Geometry(size_zyx, spacing_zyx_mm, (0.0, 0.0, 0.0), AXES)
    return Volume(ct, geometry), Volume(labels, geometry)
