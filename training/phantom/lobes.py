"""Lobes in the scanner: shapes placed and deformed, and their smooth borders on a CT grid.

Labels: 1 left upper, 2 left lower, 3 right upper, 4 right lower, 5 right middle.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from algorithm.images import Geometry, Volume
from algorithm.lobes import LOBES
from training.phantom.grid import Box, box_around, box_of, corners, crop, isotropic, positions, resample, sampler_onto
from training.phantom.texture import FloatArray, ramp

LOBE_LABELS = tuple(lobe.label for lobe in LOBES)
_BLUR_MM = 1.6


def warp_lobes(rng: np.random.Generator, labels: Volume, step_mm: float) -> LobeFields:
    """Place a label map in a scanner's space: random size, pose, smooth deformation and origin.

    Args:
        rng: source of randomness.
        labels: uint8 lobe labels on an axis-aligned grid.
        step_mm: step of the isotropic grid of the result.

    Returns:
        Smooth membership fields, one a lobe.
    """
    old = corners(labels.geometry).astype(np.float64)
    centre = old.mean(axis=0)
    scale = rng.uniform(0.9, 1.1, 3) * rng.uniform(0.97, 1.03)
    shift = np.array([rng.uniform(-15, 15), rng.uniform(-180, -100), rng.uniform(-350, -50)])
    half = np.ptp(old, axis=0) / 2 * scale + 6.0
    geometry = isotropic(shift - half, shift + half, step_mm)

    rigid = sitk.Euler3DTransform(
        shift.tolist(), *(float(a) for a in rng.normal(0, 0.03, 3)), (centre - shift).tolist()
    )
    shrink = sitk.ScaleTransform(3, (1 / scale).tolist())
    shrink.SetCenter(centre.tolist())
    bend = sitk.DisplacementFieldTransform(_displacement(rng, geometry))
    transform = sitk.CompositeTransform([shrink, rigid, bend])

    blurred = np.zeros((*labels.array.shape, len(LOBE_LABELS)), dtype=np.float32)
    for label in LOBE_LABELS:
        part = box_of(labels.array == label, margin=6)
        sigma = _BLUR_MM / np.asarray(labels.geometry.spacing_zyx_mm)
        blurred[(*part, label - 1)] = ndimage.gaussian_filter(
            (labels.array[part] == label).astype(np.float32), sigma, truncate=3.0
        )
    image = sitk.GetImageFromArray(blurred, isVector=True)
    image.SetSpacing(labels.geometry.spacing_zyx_mm[::-1])
    image.SetOrigin(labels.geometry.origin_xyz_mm)
    sampler = sampler_onto(geometry)
    sampler.SetTransform(transform)
    warped = sitk.GetArrayFromImage(sampler.Execute(image))
    return LobeFields.of(np.moveaxis(warped, -1, 0), geometry)


def _displacement(rng: np.random.Generator, geometry: Geometry) -> sitk.Image:
    spread = corners(geometry)
    lattice = isotropic(spread.min(axis=0) - 20, spread.max(axis=0) + 20, 20.0)
    field = ndimage.gaussian_filter(rng.standard_normal((*lattice.size_zyx, 3)), (1.6, 1.6, 1.6, 0))
    field *= rng.uniform(1.0, 4.0) / field.std()
    image = sitk.GetImageFromArray(field, isVector=True)
    image.SetSpacing(lattice.spacing_zyx_mm[::-1])
    image.SetOrigin(lattice.origin_xyz_mm)
    return image


@dataclass(frozen=True)
class LobeFields:
    """The lobes on an axis-aligned isotropic grid.

    Attributes:
        fields: smooth membership of the five lobes, float32 (5, z, y, x), 0 to 1.
        labels: uint8 (z, y, x), 0 outside the lungs.
        geometry: of the grid.
    """

    fields: FloatArray
    labels: NDArray[np.uint8]
    geometry: Geometry

    @classmethod
    def of(cls, fields: FloatArray, geometry: Geometry) -> LobeFields:
        """Lobes from their membership: a voxel is lung where all memberships together exceed one half."""
        labels = np.where(fields.sum(axis=0) > 0.5, fields.argmax(axis=0) + 1, 0).astype(np.uint8)
        return cls(np.ascontiguousarray(fields), labels, geometry)

    @property
    def step_mm(self) -> float:
        """Edge of a voxel."""
        return self.geometry.spacing_zyx_mm[0]

    def positions(self, mask: NDArray[np.bool_]) -> FloatArray:
        """Patient positions (N, 3) of a mask's voxels."""
        return positions(self.geometry, np.stack(np.nonzero(mask)))


@dataclass(frozen=True)
class LungsOnGrid:
    """Lungs on the CT's grid.

    Attributes:
        box: part of the CT's grid that holds both lungs; the arrays below cover it.
        geometry: of the box.
        labels: uint8, 0 outside the lungs.
        coverage: float32, the share of each voxel that is lung.
        fissure_mm: float32, distance to the nearest border between two lobes of a lung, large far from any.
    """

    box: Box
    geometry: Geometry
    labels: NDArray[np.uint8]
    coverage: FloatArray
    fissure_mm: FloatArray


def lungs_on_grid(lobes: LobeFields, ct: Geometry) -> LungsOnGrid:
    """Interpolate the lobes' fields to the CT's grid: smooth borders at any voxel size."""
    part = box_of(lobes.labels > 0, margin=3)
    box = box_around(ct, corners(crop(lobes.geometry, part)), margin=1)
    geometry = crop(ct, box)
    best, second, total = (np.zeros(geometry.size_zyx, dtype=np.float32) for _ in range(3))
    labels = np.zeros(geometry.size_zyx, dtype=np.uint8)
    for label, field in zip(LOBE_LABELS, lobes.fields, strict=True):
        source = box_of(field > 0.005, margin=1)
        local = crop(lobes.geometry, source)
        target = box_around(geometry, corners(local), margin=0)
        value = resample(Volume(field[source], local), crop(geometry, target))
        top, next_one = best[target], second[target]
        better = value > top
        np.maximum(next_one, np.minimum(value, top), out=next_one)
        labels[target][better] = label
        np.maximum(top, value, out=top)
        total[target] += value
    labels[total <= 0.5] = 0
    slope_mm = float(np.hypot(_BLUR_MM, 0.4 * lobes.step_mm) * np.sqrt(2 * np.pi))
    coverage = ramp((total - 0.5) * np.float32(slope_mm), max(geometry.spacing_zyx_mm[2], 0.8))
    fissure_mm = np.where(second > 0.02, np.abs(best - second) * np.float32(slope_mm / 2), np.float32(99))
    return LungsOnGrid(box, geometry, labels, coverage, fissure_mm)


def lung_depth(lobes: LobeFields) -> Volume:
    """Distance in mm from the surface of the lungs inward, float32, on every other voxel of the lobes' grid."""
    inside = lobes.labels[::2, ::2, ::2] > 0
    step_mm = 2 * lobes.step_mm
    depth = ndimage.distance_transform_edt(inside, sampling=step_mm).astype(np.float32)
    size_z, size_y, size_x = depth.shape
    spacing = (step_mm, step_mm, step_mm)
    return Volume(depth, replace(lobes.geometry, size_zyx=(size_z, size_y, size_x), spacing_zyx_mm=spacing))
