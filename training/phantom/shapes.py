"""Shapes of lobes: drawn from implicit surfaces, or read from label maps of real ones.

Labels: 1 left upper, 2 left lower, 3 right upper, 4 right lower, 5 right middle.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from algorithm.errors import InputError
from algorithm.images import Geometry, Volume, read_labels
from training.phantom.grid import isotropic
from training.phantom.lobes import LOBE_LABELS
from training.phantom.texture import FloatArray


class _ChestSize(NamedTuple):
    """Half the inner width and depth, and the height, of the chest in mm."""

    half_width: float
    half_depth: float
    height: float


def procedural_lobes(rng: np.random.Generator, step_mm: float) -> Volume:
    """Two lungs with five lobes from smooth implicit surfaces: uint8 labels on an isotropic grid.

    The rib cage is a stack of superellipses; diaphragm domes, mediastinum, heart and spine are cut out of it; smooth
    oblique and horizontal fissures divide it.
    """
    size_mm = _ChestSize(rng.uniform(118, 148), rng.uniform(80, 105), rng.uniform(205, 275))
    high = np.array([size_mm.half_width, size_mm.half_depth, size_mm.height])
    geometry = isotropic(np.array([-high[0], -high[1], 0.0]) - 15, high + 15, step_mm)
    z, y, x = _axes(geometry)
    lungs = _cage(rng, x, y, z, size_mm)
    lungs &= z > _diaphragm(rng, x, y, size_mm)
    lungs &= ~_mediastinum(rng, x, y, z, size_mm)
    labels = _divide(rng, lungs, (z, y, x), size_mm)
    return Volume(labels, geometry)


def _axes(geometry: Geometry) -> tuple[FloatArray, FloatArray, FloatArray]:
    origin, step = geometry.origin_xyz_mm, geometry.spacing_zyx_mm[0]
    z, y, x = (
        np.float32(o) + np.float32(step) * np.arange(n, dtype=np.float32)
        for o, n in zip(origin[::-1], geometry.size_zyx, strict=True)
    )
    return z[:, None, None], y[None, :, None], x[None, None, :]


def _cage(
    rng: np.random.Generator, x: FloatArray, y: FloatArray, z: FloatArray, size_mm: _ChestSize
) -> NDArray[np.bool_]:
    """A stack of superellipses, one beside the other for the two lungs, each closing to a round apex."""
    from_top = np.clip((size_mm.height - z) / (rng.uniform(0.6, 0.8) * size_mm.height), 0.0, 1.0)
    width = np.sqrt(1 - (1 - from_top) ** 2.2) + 1e-3
    lean = rng.uniform(0.03, 0.12) * (z - size_mm.height / 2)  # the apex lies further back than the base
    apex_x = rng.uniform(0.3, 0.36) * size_mm.half_width
    centre_x = apex_x + (0.47 * size_mm.half_width - apex_x) * from_top**0.7
    half_x = (0.34 + 0.2 * from_top) * size_mm.half_width * width
    across = np.abs((np.abs(x) - centre_x) / half_x) ** 2.2
    along = np.abs((y - lean) / (size_mm.half_depth * width)) ** 2.3
    inside: NDArray[np.bool_] = (across + along < 1) & (z < size_mm.height)
    return inside


def _diaphragm(rng: np.random.Generator, x: FloatArray, y: FloatArray, size_mm: _ChestSize) -> FloatArray:
    """Height of the two domes: highest before the middle, falling steeply to the recesses at the side and back."""
    right_mm = rng.uniform(0.28, 0.42) * size_mm.height
    left_mm = right_mm - rng.uniform(0, 0.08) * size_mm.height

    def dome(centre_x: float, top_mm: float) -> FloatArray:
        off_x, off_y = (x - centre_x) / (0.62 * size_mm.half_width), (y / size_mm.half_depth + 0.25) / 1.25
        height_mm: FloatArray = np.float32(top_mm) * (1 - np.clip(np.hypot(off_x, off_y), 0, 1) ** 2.4)
        return height_mm

    centre_x = 0.42 * size_mm.half_width
    return np.maximum(dome(-centre_x, right_mm), dome(centre_x, left_mm)).astype(np.float32)


def _mediastinum(
    rng: np.random.Generator, x: FloatArray, y: FloatArray, z: FloatArray, size_mm: _ChestSize
) -> NDArray[np.bool_]:
    level = z / size_mm.height
    middle = np.exp(-((y / (0.55 * size_mm.half_depth)) ** 2))
    half_gap_mm = rng.uniform(4, 8) + rng.uniform(22, 30) * middle * (1.1 - 0.4 * level)
    gap = np.abs(x - rng.uniform(-4, 4)) < half_gap_mm
    spine = ((x / 24) ** 2 + ((y - 0.86 * size_mm.half_depth) / (0.52 * size_mm.half_depth)) ** 2) < 1
    aorta = ((x - 22) ** 2 + (y - 0.42 * size_mm.half_depth) ** 2) < rng.uniform(11, 15) ** 2
    heart_size = rng.uniform(0.85, 1.15)
    heart_x, heart_y, heart_z = rng.uniform(16, 28), -0.35 * size_mm.half_depth, 0.36 * size_mm.height
    heart = (
        ((x - heart_x) / (52 * heart_size)) ** 2
        + ((y - heart_y) / (0.5 * size_mm.half_depth * heart_size)) ** 2
        + ((z - heart_z) / (0.24 * size_mm.height * heart_size)) ** 2
    ) < 1
    inside: NDArray[np.bool_] = gap | spine | (aorta & (level < 0.75)) | heart
    return inside


def _divide(
    rng: np.random.Generator,
    lungs: NDArray[np.bool_],
    zyx: tuple[FloatArray, FloatArray, FloatArray],
    size_mm: _ChestSize,
) -> NDArray[np.uint8]:
    z, y, x = zyx
    labels = np.zeros(lungs.shape, dtype=np.uint8)
    for left in (True, False):
        side = lungs & ((x > 0) if left else (x <= 0))
        back_mm = rng.uniform(0.66, 0.78) * size_mm.height
        slope = (back_mm - rng.uniform(0.1, 0.24) * size_mm.height) / (1.85 * size_mm.half_depth)
        wave = rng.uniform(-10, 10) * np.sin(np.abs(x) / 40 + rng.uniform(0, 6)) + rng.uniform(-6, 6) * np.sin(y / 30)
        oblique = back_mm + slope * (y - 0.9 * size_mm.half_depth) - rng.uniform(0, 0.15) * np.abs(x) + wave
        lower = z < oblique
        if left:
            labels[side] = np.where(lower, 2, 1)[side]
            continue
        horizontal = rng.uniform(0.46, 0.56) * size_mm.height + rng.uniform(-0.12, 0.15) * (y + x) + 0.5 * wave
        labels[side] = np.where(lower, 4, np.where(z < horizontal, 5, 3))[side]
    return labels


def read_lobe_shape(path: Path) -> Volume:
    """Read a lobe label map.

    Raises:
        InputError: if the file cannot be read, or is no label map of five lobes with an identity direction.
    """
    shape = read_labels(path)
    if not np.allclose(shape.geometry.direction, np.eye(3).ravel(), atol=1e-4):
        raise InputError(f"{path}: expected axes along the patient's (identity direction): resample the label map")
    found = [int(v) for v in np.unique(shape.array)]
    if found != [0, *LOBE_LABELS]:
        raise InputError(f"{path}: expected the labels 0 to 5, got {found}: number the lobes 1 to 5")
    return Volume(shape.array.astype(np.uint8), shape.geometry)
