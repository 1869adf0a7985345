"""Voxel grids in the patient: positions of voxels, indices of positions, resampling between grids."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from algorithm.images import Geometry, Volume
from training.phantom.texture import FloatArray

Box = tuple[slice, slice, slice]


def matrix_of(geometry: Geometry) -> NDArray[np.float64]:
    """(3, 3): columns are the patient directions of the x, y, z index axes."""
    return np.asarray(geometry.direction, dtype=np.float64).reshape(3, 3)


def isotropic(low_xyz_mm: NDArray[np.floating], high_xyz_mm: NDArray[np.floating], step_mm: float) -> Geometry:
    """An axis-aligned grid of cubic voxels that covers a box in the patient."""
    size_xyz = np.ceil((np.asarray(high_xyz_mm) - np.asarray(low_xyz_mm)) / step_mm).astype(int) + 1
    return Geometry(
        size_zyx=(int(size_xyz[2]), int(size_xyz[1]), int(size_xyz[0])),
        spacing_zyx_mm=(step_mm, step_mm, step_mm),
        origin_xyz_mm=(float(low_xyz_mm[0]), float(low_xyz_mm[1]), float(low_xyz_mm[2])),
        direction=tuple(np.eye(3).ravel()),
    )


def positions(geometry: Geometry, index_zyx: NDArray[np.integer] | NDArray[np.floating]) -> FloatArray:
    """Patient positions (N, 3; x, y, z in mm) of voxel indices (3, N; z, y, x)."""
    scaled_xyz = index_zyx[::-1].T * np.asarray(geometry.spacing_zyx_mm[::-1])
    points: FloatArray = (scaled_xyz @ matrix_of(geometry).T + np.asarray(geometry.origin_xyz_mm)).astype(np.float32)
    return points


def indices(geometry: Geometry, points_xyz_mm: NDArray[np.floating]) -> NDArray[np.float64]:
    """Continuous voxel indices (3, N; z, y, x) of patient positions (N, 3; x, y, z in mm)."""
    offset = (np.asarray(points_xyz_mm, dtype=np.float64) - np.asarray(geometry.origin_xyz_mm)) @ matrix_of(geometry)
    index: NDArray[np.float64] = (offset / np.asarray(geometry.spacing_zyx_mm[::-1])).T[::-1]
    return index


def corners(geometry: Geometry) -> FloatArray:
    """Patient positions (8, 3) of the grid's corner voxels."""
    last = np.asarray(geometry.size_zyx) - 1
    return positions(geometry, np.stack(np.meshgrid(*([0, n] for n in last), indexing="ij")).reshape(3, 8))


def crop(geometry: Geometry, box: Box) -> Geometry:
    """The geometry of `array[box]`."""
    start = np.array([[part.start] for part in box])
    origin = positions(geometry, start).astype(np.float64)[0]
    return Geometry(
        size_zyx=(box[0].stop - box[0].start, box[1].stop - box[1].start, box[2].stop - box[2].start),
        spacing_zyx_mm=geometry.spacing_zyx_mm,
        origin_xyz_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=geometry.direction,
    )


def box_around(geometry: Geometry, points_xyz_mm: NDArray[np.floating], margin: int = 0) -> Box:
    """The part of a grid that holds all points, a margin of voxels added, clipped to the grid."""
    index = indices(geometry, points_xyz_mm)
    lows = np.clip(np.floor(index.min(axis=1)).astype(int) - margin, 0, np.asarray(geometry.size_zyx) - 1)
    highs = np.clip(np.ceil(index.max(axis=1)).astype(int) + 1 + margin, lows + 1, geometry.size_zyx)
    z, y, x = (slice(low, high) for low, high in zip(lows.tolist(), highs.tolist(), strict=True))
    return (z, y, x)


def box_of(mask: NDArray[np.bool_], margin: int = 0) -> Box:
    """The smallest box that holds a mask's voxels, a margin added, clipped to the array."""
    found = []
    for axis in range(3):
        other = tuple(k for k in range(3) if k != axis)
        hits = np.flatnonzero(mask.any(axis=other))
        found.append(slice(max(int(hits[0]) - margin, 0), min(int(hits[-1]) + 1 + margin, mask.shape[axis])))
    return (found[0], found[1], found[2])


def resample(volume: Volume, geometry: Geometry) -> FloatArray:
    """A volume's values, interpolated linearly, at the voxels of another grid: float32 (z, y, x).

    Beyond the volume its border values go on. Grids with the same axes are interpolated axis by axis, which is several
    times faster than the general way.
    """
    if geometry.direction == volume.geometry.direction:
        array = volume.array.astype(np.float32, copy=False)
        start = indices(volume.geometry, np.array([geometry.origin_xyz_mm]))[:, 0]
        for axis in (2, 1, 0):
            step = geometry.spacing_zyx_mm[axis] / volume.geometry.spacing_zyx_mm[axis]
            array = _stretch(array, axis, start[axis] + step * np.arange(geometry.size_zyx[axis]))
        return array
    sampler = sampler_onto(geometry)
    sampler.UseNearestNeighborExtrapolatorOn()
    sampler.SetOutputPixelType(sitk.sitkFloat32)
    result: FloatArray = sitk.GetArrayFromImage(sampler.Execute(volume.to_sitk()))
    return result


def sampler_onto(geometry: Geometry) -> sitk.ResampleImageFilter:
    """A linear resampler to a grid, on one thread: the work is spread over cases."""
    sampler = sitk.ResampleImageFilter()
    sampler.SetNumberOfThreads(1)
    sampler.SetSize(geometry.size_zyx[::-1])
    sampler.SetOutputSpacing(geometry.spacing_zyx_mm[::-1])
    sampler.SetOutputOrigin(geometry.origin_xyz_mm)
    sampler.SetOutputDirection(geometry.direction)
    sampler.SetInterpolator(sitk.sitkLinear)
    return sampler


def _stretch(array: FloatArray, axis: int, index: NDArray[np.float64]) -> FloatArray:
    """Linear interpolation at continuous indices along one axis."""
    index = np.clip(index, 0, array.shape[axis] - 1)
    low = np.floor(index).astype(int)
    shape = [1, 1, 1]
    shape[axis] = -1
    weight = (index - low).astype(np.float32).reshape(shape)
    below = array.take(low, axis=axis)
    above: FloatArray = array.take(np.minimum(low + 1, array.shape[axis] - 1), axis=axis)
    above -= below
    above *= weight
    above += below
    return above
