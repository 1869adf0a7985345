"""Everything around the lungs: chest wall with ribs and spine, mediastinum, organs below the diaphragm, table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from algorithm.images import Geometry, Volume
from training.phantom.grid import corners, isotropic
from training.phantom.lobes import LobeFields
from training.phantom.texture import FloatArray, fractal, ramp
from training.phantom.vessels import Tubes, draw_tubes

_DIRECTIONS = 40
AIR_HU = -1000.0


@dataclass(frozen=True)
class _Frame:
    """The body's grid, its axes in mm relative to the middle of the chest, and that middle."""

    geometry: Geometry
    x: FloatArray
    y: FloatArray
    z: FloatArray
    middle_xy_mm: FloatArray

    @property
    def step_mm(self) -> float:
        return self.geometry.spacing_zyx_mm[0]


def make_body(
    rng: np.random.Generator,
    lobes: LobeFields,
    ct: Geometry,
    *,
    hila: tuple[FloatArray, FloatArray],
    blood_hu: float,
    step_mm: float,
) -> Volume:
    """HU of a chest whose lungs are still solid, on an isotropic grid around the CT.

    Args:
        rng: source of randomness.
        lobes: the lungs.
        ct: the grid that must be covered.
        hila: points at which the left and right main bronchus end.
        blood_hu: density of the heart and the great vessels.
        step_mm: step of the result's grid.
    """
    lung_points = lobes.positions(lobes.labels > 0)[::3]
    frame = _frame(ct, lung_points, step_mm)
    cage = _support(frame, lung_points)
    depth_mm = _depth(frame, cage)  # from the inner face of the rib cage inward
    skin_mm = _depth(frame, _skin(rng, cage))
    mottle = fractal(rng, _grid_points(frame), (30.0, 12.0), (0.8, 0.6)).reshape(frame.geometry.size_zyx)
    hu = _soft_tissue(rng, frame, skin_mm, mottle)
    _paint(hu, ramp(depth_mm - 2, step_mm), _inside(frame, lung_points, mottle))
    _bones(rng, frame, hu, depth_mm, lung_points)
    _heart(frame, hu, depth_mm, lung_points, mottle, blood_hu)
    _airway(rng, frame, hu, hila)
    if rng.random() < 0.6:
        _table(frame, hu, skin_mm)
    return Volume(hu, frame.geometry)


def _frame(ct: Geometry, lung_points: FloatArray, step_mm: float) -> _Frame:
    spread = corners(ct)
    geometry = isotropic(spread.min(axis=0) - step_mm, spread.max(axis=0) + step_mm, step_mm)
    middle = (lung_points.min(axis=0) + lung_points.max(axis=0))[:2] / 2
    z, y, x = (
        np.float32(o) + np.float32(step_mm) * np.arange(n, dtype=np.float32)
        for o, n in zip(geometry.origin_xyz_mm[::-1], geometry.size_zyx, strict=True)
    )
    return _Frame(geometry, (x - middle[0])[None, None], (y - middle[1])[None, :, None], z[:, None, None], middle)


def _grid_points(frame: _Frame) -> FloatArray:
    z, y, x = np.broadcast_arrays(frame.z, frame.y + frame.middle_xy_mm[1], frame.x + frame.middle_xy_mm[0])
    return np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)


def _paint(hu: FloatArray, share: FloatArray, value: FloatArray | float) -> None:
    hu += share * (value - hu)


def _angles() -> FloatArray:
    return (np.arange(_DIRECTIONS, dtype=np.float32) * np.float32(2 * np.pi / _DIRECTIONS)).astype(np.float32)


def _support(frame: _Frame, lung_points: FloatArray) -> FloatArray:
    """How far the rib cage reaches in each direction at each height: (z, directions) in mm.

    The support function of the lungs' convex outline, which only widens downward from the apex.
    """
    relative = lung_points[:, :2] - frame.middle_xy_mm
    level = np.clip(np.rint((lung_points[:, 2] - frame.z[0, 0, 0]) / frame.step_mm).astype(int), 0, len(frame.z) - 1)
    reach = np.full((len(frame.z), _DIRECTIONS), -np.inf, dtype=np.float32)
    for k, angle in enumerate(_angles()):
        np.maximum.at(reach[:, k], level, relative @ np.array([np.cos(angle), np.sin(angle)], dtype=np.float32))
    reach = np.maximum.accumulate(reach[::-1], axis=0)[::-1]
    top = int(np.flatnonzero(np.isfinite(reach[:, 0]))[-1])
    above = np.arange(1, len(reach) - top, dtype=np.float32)[:, None] * np.float32(frame.step_mm)
    reach[top + 1 :] = reach[top] - 0.8 * above
    smooth = ndimage.gaussian_filter(reach, (8 / frame.step_mm, 0.7), mode=("nearest", "wrap"))
    cage: FloatArray = np.maximum(smooth, reach).astype(np.float32) + np.float32(1.5)
    return cage


def _skin(rng: np.random.Generator, cage: FloatArray) -> FloatArray:
    """Support function of the skin: muscles and fat over the rib cage, shoulders above it."""
    angle = _angles()
    shoulder = np.maximum(cage, rng.uniform(0.88, 1.0) * cage.max(axis=0))
    muscle = rng.uniform(12, 20) + rng.uniform(4, 12) * np.abs(np.cos(angle))
    fat = rng.uniform(4, 24) * (1 + 0.4 * np.cos(2 * angle + rng.uniform(-0.5, 0.5)))
    skin: FloatArray = ndimage.gaussian_filter(shoulder + muscle + fat, (4, 1.5), mode=("nearest", "wrap"))
    return skin


def _depth(frame: _Frame, reach: FloatArray) -> FloatArray:
    """Signed distance (z, y, x) to a stack of convex outlines given by their support function, positive inside."""
    outside = np.full(frame.geometry.size_zyx, -np.inf, dtype=np.float32)
    for k, angle in enumerate(_angles()):
        np.maximum(outside, frame.x * np.cos(angle) + frame.y * np.sin(angle) - reach[:, k, None, None], out=outside)
    return -outside


def _soft_tissue(rng: np.random.Generator, frame: _Frame, skin_mm: FloatArray, mottle: FloatArray) -> FloatArray:
    """Air, skin, fat, and muscles with thin layers of fat between them."""
    hu = np.full(frame.geometry.size_zyx, AIR_HU, dtype=np.float32)
    body = ramp(skin_mm, frame.step_mm)
    _paint(hu, body, rng.uniform(-110, -95) + 6 * mottle)
    _paint(hu, body * ramp(2.5 - skin_mm, frame.step_mm), 20.0)
    between = 0.35 + 0.65 * ramp(np.abs(mottle) - 0.12, 0.2)
    under_fat_mm = skin_mm - rng.uniform(5, 22) + 4 * mottle
    _paint(hu, between * ramp(under_fat_mm, 2 * frame.step_mm), rng.uniform(40, 60))
    return hu


def _inside(frame: _Frame, lung_points: FloatArray, mottle: FloatArray) -> FloatArray:
    """Mediastinal fat and soft tissue above; liver, stomach and fat below the diaphragm."""
    bottom = np.percentile(lung_points[:, 2], 30)
    belly = ramp(bottom - frame.z, 60.0)
    chest = np.where(mottle > -0.2, 45.0, -90.0)
    organs = np.where(frame.x < 25, 58.0, np.where(mottle > -0.4, 48.0, -95.0))
    smooth: FloatArray = ndimage.gaussian_filter(chest * (1 - belly) + organs * belly, 0.8)
    return smooth


def _bones(
    rng: np.random.Generator, frame: _Frame, hu: FloatArray, depth_mm: FloatArray, lung_points: FloatArray
) -> None:
    """Ribs, sternum, shoulder blades, vertebrae."""
    marrow_hu, cortex_hu = rng.uniform(150, 280), rng.uniform(450, 800)
    _ribs(rng, frame, hu, depth_mm, lung_points, (marrow_hu, cortex_hu))
    _spine(frame, hu, _spine_y(frame, lung_points), (marrow_hu, cortex_hu))


def _ribs(
    rng: np.random.Generator,
    frame: _Frame,
    hu: FloatArray,
    depth_mm: FloatArray,
    lung_points: FloatArray,
    bone_hu: tuple[float, float],
) -> None:
    """Ribs that slope down from the spine and end in cartilage at the front; sternum; shoulder blades."""
    marrow_hu, cortex_hu = bone_hu
    angle = np.arctan2(frame.x, frame.y)  # 0 at the back
    drop_mm = rng.uniform(55, 85) * np.sin(np.abs(angle) / 2) ** 2
    apart_mm = rng.uniform(24, 30)
    phase = (frame.z + drop_mm + rng.uniform(0, apart_mm)) / np.float32(apart_mm)
    off_mm = (phase - np.rint(phase)) * np.float32(apart_mm)
    rib = 1 - np.sqrt((off_mm / 6.0) ** 2 + ((depth_mm + 5.0) / 4.2) ** 2)
    bony = np.abs(angle) < rng.uniform(2.2, 2.6)
    chest = ramp(np.float32(lung_points[:, 2].max() + 2) - frame.z, frame.step_mm)
    _paint(hu, chest * ramp(rib, 0.25) * np.where(bony, 1, 0.5), np.where(bony & (rib < 0.45), cortex_hu, marrow_hu))

    middle, upper = np.percentile(lung_points[:, 2], (45, 60))
    sternum = (np.abs(frame.x) < 16) & (frame.y < 0) & (frame.z > middle)
    _paint(hu, sternum * ramp(5 - np.abs(depth_mm + 7), frame.step_mm), 0.7 * marrow_hu)
    blade = chest * (frame.z > upper) * (np.abs(np.abs(angle) - 0.85) < 0.42)
    _paint(hu, blade * ramp(3 - np.abs(depth_mm + 19), frame.step_mm), 0.8 * cortex_hu)


def _spine(frame: _Frame, hu: FloatArray, spine_y: float, bone_hu: tuple[float, float]) -> None:
    """Vertebral bodies and discs, the canal in its ring of bone, spinous processes."""
    marrow_hu, cortex_hu = bone_hu
    off_disc_mm = np.abs((frame.z / 27.0) % 1 - 0.5) * 27.0
    body = 1 - np.hypot(frame.x / 19, (frame.y - spine_y) / 15)
    inner_hu = np.where(off_disc_mm < 3, 80.0, np.where(body < 0.15, cortex_hu, marrow_hu))
    _paint(hu, ramp(body * 15, frame.step_mm), inner_hu)
    ring = 1 - np.hypot(frame.x / 15, (frame.y - spine_y - 24) / 13)
    _paint(hu, ramp(ring * 13, frame.step_mm), cortex_hu)
    canal = 1 - np.hypot(frame.x / 10, (frame.y - spine_y - 24) / 9)
    _paint(hu, ramp(canal * 9, frame.step_mm), 25.0)
    process = np.maximum(np.abs(frame.x) / 3.5, np.abs(frame.y - spine_y - 45) / 12)
    _paint(hu, ramp((1 - process) * 3.5, frame.step_mm) * (off_disc_mm > 5), marrow_hu)


def _spine_y(frame: _Frame, lung_points: FloatArray) -> float:
    """Where, front to back, the vertebral bodies' centre lies: a little before the lungs' back."""
    return float(np.percentile(lung_points[:, 1], 99.5) - frame.middle_xy_mm[1] - 28)


def _heart(
    frame: _Frame,
    hu: FloatArray,
    depth_mm: FloatArray,
    lung_points: FloatArray,
    mottle: FloatArray,
    blood_hu: float,
) -> None:
    """Heart and great vessels; the lungs cut their true outline out of them."""
    low, high = np.percentile(lung_points[:, 2], (12, 60))
    heart = 1 - np.sqrt(
        ((frame.x - 18) / 62) ** 2 + ((frame.y + 18) / 52) ** 2 + ((frame.z - (low + high) / 2) / (high - low)) ** 2 * 3
    )
    _paint(hu, ramp(heart * 40 + 3 * mottle, 2 * frame.step_mm) * ramp(depth_mm - 3, frame.step_mm), blood_hu)
    spine_y = _spine_y(frame, lung_points)
    aorta = 12 - np.hypot(frame.x - 18, frame.y - spine_y + 16)
    arch = np.percentile(lung_points[:, 2], 82)
    _paint(hu, ramp(aorta, frame.step_mm) * (frame.z < arch), blood_hu)
    ascending = 15 - np.hypot(frame.x + 12, frame.y + 15)
    _paint(hu, ramp(ascending, frame.step_mm) * (frame.z < arch) * (frame.z > low), blood_hu)


def _airway(rng: np.random.Generator, frame: _Frame, hu: FloatArray, hila: tuple[FloatArray, FloatArray]) -> None:
    """Trachea and main bronchi with their walls."""
    left, right = hila
    carina = (left + right) / 2 + np.array([0, 0, 28])
    top = carina + np.array([rng.uniform(-6, 6), rng.uniform(-25, -5), 400])
    steps = np.linspace(0, 1, 160)[:, None]
    trachea = carina + (top - carina) * steps
    starts, ends, radii = [trachea[:-1]], [trachea[1:]], [np.full(159, rng.uniform(7, 9.5))]
    for hilum in hila:
        path = carina + (hilum - carina) * np.linspace(0, 1, 30)[:, None]
        starts.append(path[:-1])
        ends.append(path[1:])
        radii.append(np.linspace(7, 5, 29))
    start, end, radius = (np.concatenate(part).astype(np.float32) for part in (starts, ends, radii))
    tubes = Tubes(start, end, radius)
    _paint(hu, draw_tubes(tubes.with_radius(radius + np.float32(1.6)), frame.geometry), 30.0)
    _paint(hu, draw_tubes(tubes, frame.geometry), AIR_HU)


def _table(frame: _Frame, hu: FloatArray, skin_mm: FloatArray) -> None:
    """A curved table top under the back, in the air only."""
    touching = (skin_mm > 0).any(axis=(0, 2))
    back = float(frame.y[0, np.flatnonzero(touching)[-1], 0]) + 8
    surface = frame.y - back + (frame.x / 40) ** 2
    shell = ramp(2.0 - np.abs(surface), frame.step_mm) + 0.12 * ramp(12 - np.abs(surface - 14), frame.step_mm)
    _paint(hu, np.clip(shell, 0, 1) * (skin_mm < 0), 40.0)
