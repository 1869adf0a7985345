"""From a scan to what the network sees, and back: each step beside its inverse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from algorithm.images import ArrayZYX, Geometry, Volume

WINDOW_HU = (-1200.0, 300.0)

Box = tuple[slice, slice, slice]
Interpolation = Literal["linear", "nearest"]


def window(hu: ArrayZYX, window_hu: tuple[float, float] = WINDOW_HU) -> NDArray[np.float32]:
    """Clamp HU to a window and scale it to [0, 1]."""
    low, high = window_hu
    scaled = (hu.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def bounding_box(mask: ArrayZYX, margin_voxels: Sequence[int] = (0, 0, 0)) -> Box:
    """The smallest box around the voxels that are not zero, widened by a margin per axis and clipped to the array.

    Raises:
        ValueError: the mask is empty.
    """
    slices = []
    for axis, margin in enumerate(margin_voxels):
        occupied = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if occupied.size == 0:
            raise ValueError("bounding box of an empty mask: expected at least one voxel")
        start = max(int(occupied[0]) - margin, 0)
        slices.append(slice(start, min(int(occupied[-1]) + 1 + margin, mask.shape[axis])))
    return slices[0], slices[1], slices[2]


def margin_voxels(geometry: Geometry, margin_mm: float) -> tuple[int, int, int]:
    """A margin in mm as whole voxels per axis, rounded up."""
    z, y, x = (math.ceil(margin_mm / spacing) for spacing in geometry.spacing_zyx_mm)
    return z, y, x


def crop(volume: Volume, box: Box) -> Volume:
    """A part of a volume, where it lies in the patient."""
    return Volume(np.ascontiguousarray(volume.array[box]), cropped(volume.geometry, box))


def cropped(geometry: Geometry, box: Box) -> Geometry:
    """The grid of a part of a volume."""
    z, y, x = (part.stop - part.start for part in box)
    return replace(moved(geometry, [part.start for part in box]), size_zyx=(z, y, x))


def uncrop(part: ArrayZYX, box: Box, shape: tuple[int, int, int]) -> ArrayZYX:
    """Put a part back into an array of zeros; the inverse of `crop`."""
    whole = np.zeros(shape, dtype=part.dtype)
    whole[box] = part
    return whole


def moved(geometry: Geometry, start_zyx: Sequence[float]) -> Geometry:
    """The same grid shifted so that it starts at another, possibly fractional, voxel."""
    step_xyz_mm = np.array(start_zyx[::-1], dtype=float) * np.array(geometry.spacing_zyx_mm[::-1])
    origin = np.array(geometry.origin_xyz_mm) + np.array(geometry.direction).reshape(3, 3) @ step_xyz_mm
    return replace(geometry, origin_xyz_mm=(float(origin[0]), float(origin[1]), float(origin[2])))


def covering_grid(geometry: Geometry, *, spacing_mm: float) -> Geometry:
    """An isotropic grid over the same extent, from its first edge to less than a voxel beyond its last."""
    sizes = [
        max(1, math.ceil(n * s / spacing_mm - 1e-6))
        for n, s in zip(geometry.size_zyx, geometry.spacing_zyx_mm, strict=True)
    ]
    return _stretched(geometry, (sizes[0], sizes[1], sizes[2]), (spacing_mm,) * 3)


def resample(volume: Volume, grid: Geometry, interpolation: Interpolation, *, fill: float = 0.0) -> Volume:
    """Sample a volume at the voxel centres of another grid.

    Args:
        volume: any array that SimpleITK takes; its type is kept.
        grid: where to sample.
        interpolation: ``linear`` for images and probabilities, ``nearest`` for labels.
        fill: value outside the volume.
    """
    resampled = sitk.Resample(
        volume.to_sitk(),
        grid.size_zyx[::-1],
        sitk.Transform(),
        sitk.sitkLinear if interpolation == "linear" else sitk.sitkNearestNeighbor,
        grid.origin_xyz_mm,
        grid.spacing_zyx_mm[::-1],
        grid.direction,
        fill,
    )
    return Volume(sitk.GetArrayFromImage(resampled), grid)


def masked_intensity(
    ct: Volume, inside: NDArray[np.bool_], grid: Geometry, window_hu: tuple[float, float] = WINDOW_HU
) -> Volume:
    """Windowed CT on another grid, zero outside a mask: mask, window, resample, and mask again.

    The second masking removes what interpolation smears over the mask's edge.

    Args:
        ct: HU.
        inside: bool (z, y, x) on the CT's grid.
        grid: the grid of the result.
        window_hu: HU that become 0 and 1.

    Returns:
        float32 in [0, 1] on ``grid``.
    """
    intensity = window(ct.array, window_hu)
    intensity *= inside
    resampled = resample(ct.with_array(intensity), grid, "linear")
    kept = resample(ct.with_array(inside), grid, "nearest")
    return resampled.with_array(resampled.array * kept.array.astype(np.float32))


def _stretched(
    geometry: Geometry, size_zyx: tuple[int, int, int], spacing_zyx_mm: tuple[float, float, float]
) -> Geometry:
    """A grid whose first voxel's outer corner is that of ``geometry``."""
    start = [(new / old - 1) / 2 for new, old in zip(spacing_zyx_mm, geometry.spacing_zyx_mm, strict=True)]
    return replace(moved(geometry, start), size_zyx=size_zyx, spacing_zyx_mm=spacing_zyx_mm)
