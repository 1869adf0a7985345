"""Density inside the lungs: parenchyma, what disturbs it without being a lesion, lesions, airways, vessels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.phantom.lesions import LesionFields, LungPoints
from training.phantom.texture import FloatArray, fractal


@dataclass(frozen=True)
class Drawing:
    """Thin things at the lungs' voxels, all (N,).

    Attributes:
        vessels: share of the voxel filled by blood vessels.
        sheath: share filled by vessels and the looser tissue around them.
        lumen: share filled by the air of airways.
        wall: share filled by airways, wall and lumen together.
        fissure_mm: distance to the nearest fissure.
    """

    vessels: FloatArray
    sheath: FloatArray
    lumen: FloatArray
    wall: FloatArray
    fissure_mm: FloatArray


def lung_hu(
    rng: np.random.Generator, points: LungPoints, lesions: LesionFields, drawing: Drawing, blood_hu: float
) -> FloatArray:
    """HU (N,) of the lungs' voxels; the order of the layers is that of what hides what."""
    hu = _parenchyma(rng, points)
    _confusers(rng, points, hu)
    _fissures(rng, points, drawing.fissure_mm, hu)
    glass = np.minimum(hu + lesions.presence * lesions.gain_hu, -180)
    hu = np.maximum(hu, glass)
    hu += lesions.presence * lesions.solid * (lesions.solid_hu - hu)
    hu += drawing.sheath * np.clip(rng.uniform(-750, -150) - hu, 0, None)
    filled = rng.uniform(0, 0.8)  # some consolidated airways hold no air
    wall_share = np.clip(drawing.wall - drawing.lumen, 0, 1)
    hu += 0.75 * wall_share * (rng.uniform(-60, 10) - hu)
    air = drawing.lumen * (1 - filled * lesions.presence * lesions.solid)
    hu += air * (-985 - hu)
    hu += drawing.vessels * np.clip(blood_hu - hu, 0, None)
    return hu


def _parenchyma(rng: np.random.Generator, points: LungPoints) -> FloatArray:
    """Air-filled tissue: denser towards the back, cloudy, finely mottled by vessels too small to draw."""
    y = points.position_mm[:, 1]
    low, high = float(y.min()), float(y.max())
    backness = (y - low) / max(high - low, 1.0)
    hu = rng.uniform(-920, -840) + rng.uniform(10, 65) * backness
    hu += rng.uniform(0, 70) * backness**6 * np.exp(-points.depth_mm / 12)  # dependent part, along the back
    hu += fractal(rng, points.position_mm, (36.0,), (10.0,))
    fine = fractal(rng, points.position_mm, (3.4,), (1.0,))
    hu += 16 * fine + 9 * np.clip(fine, 0, None) ** 2
    return hu.astype(np.float32)


def _confusers(rng: np.random.Generator, points: LungPoints, hu: FloatArray) -> None:
    """Emphysema and scars, in place: not lesions."""
    position = points.position_mm
    if rng.random() < 0.12:
        upper = (position[:, 2] - position[:, 2].min()) / np.ptp(position[:, 2])
        holes = fractal(rng, position, (9.0, 5.0), (0.8, 0.6)) + 0.8 * (upper - 0.5)
        hu -= 110 * np.clip((holes - rng.uniform(1.1, 1.8)) * 2, 0, 1)
        np.maximum(hu, -990, out=hu)
    for _ in range(rng.poisson(0.9)):
        shallow = np.flatnonzero(points.depth_mm < 8)
        centre = position[shallow[rng.integers(len(shallow))]]
        normal = rng.normal(size=3)
        normal /= np.linalg.norm(normal)
        offset = position - centre
        across = np.abs(offset @ normal.astype(np.float32))
        length, thick = rng.uniform(6, 18), rng.uniform(0.6, 1.6)
        reach = np.clip((length - np.linalg.norm(offset, axis=1)) / 4, 0, 1)
        hu += rng.uniform(250, 600) * reach * np.exp(-((across / thick) ** 2))


def _fissures(rng: np.random.Generator, points: LungPoints, fissure_mm: FloatArray, hu: FloatArray) -> None:
    """A faint bright sheet between lobes, absent in places, in place."""
    near = np.flatnonzero(fissure_mm < 3)
    gaps = fractal(rng, points.position_mm[near], (35.0,), (1.0,))
    whole = np.clip((gaps + rng.uniform(0.2, 1.6)) * 2, 0, 1)
    thick_mm = rng.uniform(0.5, 0.9)
    hu[near] += rng.uniform(50, 150) * whole * np.exp(-((fissure_mm[near] / np.float32(thick_mm)) ** 2))
