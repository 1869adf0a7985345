"""Scans in one orientation, whatever theirs is on disk: axes permuted and mirrored, nothing resampled."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from algorithm.images import Geometry, Volume


def to_canonical(volume: Volume) -> Volume:
    """Reorder axes so that they run closest to left, posterior, superior (LPS), without resampling.

    The array's axes (z, y, x) then run towards the patient's head, back and left.
    """
    geometry = volume.geometry
    axes = _canonical_axes(geometry.direction)
    direction = np.reshape(geometry.direction, (3, 3))
    size, spacing = geometry.size_zyx[::-1], geometry.spacing_zyx_mm[::-1]
    order, signs = [axis for axis, _ in axes], [sign for _, sign in axes]
    origin = np.array(geometry.origin_xyz_mm)
    for axis, sign in axes:
        if sign < 0:
            origin += direction[:, axis] * spacing[axis] * (size[axis] - 1)
    canonical = Geometry(
        size_zyx=(size[order[2]], size[order[1]], size[order[0]]),
        spacing_zyx_mm=(spacing[order[2]], spacing[order[1]], spacing[order[0]]),
        origin_xyz_mm=tuple(origin.tolist()),
        direction=tuple((direction[:, order] * signs + 0.0).ravel().tolist()),  # + 0.0: no negative zeros
    )
    array = volume.array.transpose([2 - axis for axis in order[::-1]])
    return Volume(np.ascontiguousarray(np.flip(array, _flipped(axes))), canonical)


def from_canonical(volume: Volume, geometry: Geometry) -> Volume:
    """Undo `to_canonical`.

    Args:
        volume: a volume on the canonical grid of `geometry`.
        geometry: the geometry before `to_canonical`; the result has it to the bit.
    """
    axes = _canonical_axes(geometry.direction)
    array_order = [2 - axis for axis, _ in axes[::-1]]
    array = np.flip(volume.array, _flipped(axes)).transpose(np.argsort(array_order))
    if array.shape != geometry.size_zyx:
        raise ValueError(f"got a canonical array of shape {volume.array.shape}, which {geometry} does not give")
    return Volume(np.ascontiguousarray(array), geometry)


def _canonical_axes(direction: tuple[float, ...]) -> list[tuple[int, float]]:
    """For each of left, posterior, superior: SimpleITK's index axis closest to it, and its sign along it."""
    matrix = np.reshape(direction, (3, 3))
    order = max(permutations(range(3)), key=lambda axes: sum(abs(matrix[row, axis]) for row, axis in enumerate(axes)))
    return [(axis, -1.0 if matrix[row, axis] < 0 else 1.0) for row, axis in enumerate(order)]


def _flipped(axes: list[tuple[int, float]]) -> tuple[int, ...]:
    """The axes of a canonical array (z, y, x) that run against the stored ones."""
    return tuple(2 - row for row, (_, sign) in enumerate(axes) if sign < 0)
