"""Random fields with a chosen scale: the raw material of shapes, densities and noise."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

FloatArray: TypeAlias = NDArray[np.floating[Any]]
_PERIOD = 72


class RandomField:
    """A smooth random function of patient position with mean 0 and standard deviation 1.

    White noise on a lattice, smoothed, then interpolated linearly. The lattice lies askew, so that its axes do not
    show, and repeats after `_PERIOD` steps of a third of the field's scale.
    """

    def __init__(self, rng: np.random.Generator, scale_mm: float) -> None:
        """Draw the lattice of a field that changes over `scale_mm`."""
        askew = Rotation.from_quat(rng.normal(size=4)).as_matrix()
        self._steps_per_mm = (askew * (3.0 / scale_mm)).astype(np.float32)
        white = rng.standard_normal((_PERIOD,) * 3, dtype=np.float32)
        smooth = ndimage.gaussian_filter(white, 1.5, mode="wrap", truncate=3.0)
        self._lattice = (smooth / smooth.std()).astype(np.float32)

    def at(self, points_xyz_mm: FloatArray) -> FloatArray:
        """Values (N,) at patient positions (N, 3)."""
        index = self._steps_per_mm @ points_xyz_mm.T
        values: FloatArray = ndimage.map_coordinates(self._lattice, index, order=1, mode="grid-wrap", output=np.float32)
        return values


def fractal(
    rng: np.random.Generator,
    points_xyz_mm: FloatArray,
    scales_mm: tuple[float, ...],
    weights: tuple[float, ...],
) -> FloatArray:
    """Weighted sum (N,) of independent random fields of several scales at patient positions (N, 3)."""
    total = np.zeros(len(points_xyz_mm), dtype=np.float32)
    for scale_mm, weight in zip(scales_mm, weights, strict=True):
        total += np.float32(weight) * RandomField(rng, scale_mm).at(points_xyz_mm)
    return total


def ramp(signed_distance: FloatArray, width: float) -> FloatArray:
    """Share of a voxel of the given width that lies inside (distance > 0) of a border: 0 to 1."""
    inside_share: FloatArray = np.clip(0.5 + signed_distance / np.float32(width), 0.0, 1.0)
    return inside_share
