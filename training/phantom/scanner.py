"""The scanner: which grid a scan has, how it blurs, and its noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from algorithm.images import Geometry
from training.phantom.lobes import LobeFields
from training.phantom.texture import FloatArray

LOWEST_HU = -1024

FieldOfView = Literal["lungs", "wide"]


class _Margins(NamedTuple):
    """Around the lungs, in mm."""

    side: float
    below: float
    above: float


_WIDEST_MARGINS_MM: dict[FieldOfView, _Margins] = {"lungs": _Margins(42, 30, 25), "wide": _Margins(80, 130, 80)}


@dataclass(frozen=True)
class Protocol:
    """How a scan is taken.

    Attributes:
        spacing_zyx_mm: voxel size.
        tilt: (3, 3) directions of the x, y, z index axes as columns.
        blur_mm: standard deviation of the point spread in the slice.
        noise_hu: standard deviation of the noise inside the lungs.
        grain: standard deviation, in voxels in the slice, of the noise's correlation.
        sharpened: whether the kernel enhances edges, which gives the noise dark rims.
        breathing_mm: blur along z at the lung bases.
        blood_hu: density of blood; high with contrast medium.
    """

    spacing_zyx_mm: tuple[float, float, float]
    tilt: NDArray[np.float64]
    blur_mm: float
    noise_hu: float
    grain: float
    sharpened: bool
    breathing_mm: float
    blood_hu: float


def draw_protocol(rng: np.random.Generator, coarseness: float) -> Protocol:
    """A random protocol; coarseness multiplies the voxel size in each axis."""
    in_plane = rng.uniform(0.6, 0.9) * coarseness
    slices = rng.choice([1.0, 1.25, 1.5, 2.0, 2.5, 3.0], p=(0.15, 0.15, 0.2, 0.25, 0.15, 0.1)) * coarseness
    tilt = np.eye(3)
    if rng.random() < 0.2:
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        turn = sitk.VersorTransform(axis.tolist(), float(np.deg2rad(rng.uniform(2, 10))))
        tilt = np.asarray(turn.GetMatrix()).reshape(3, 3)
    sharpened = bool(rng.random() < 0.35)
    return Protocol(
        spacing_zyx_mm=(float(slices), float(in_plane), float(in_plane)),
        tilt=tilt,
        blur_mm=rng.uniform(0.25, 0.45) if sharpened else rng.uniform(0.45, 0.75),
        noise_hu=float(np.clip(np.exp(rng.normal(np.log(26), 0.4)), 15, 60)),
        grain=rng.uniform(0.5, 0.7) if sharpened else rng.uniform(0.7, 1.1),
        sharpened=sharpened,
        breathing_mm=rng.uniform(2, 5) if rng.random() < 0.15 else 0.0,
        blood_hu=rng.uniform(110, 300) if rng.random() < 0.25 else rng.uniform(30, 55),
    )


def field_of_view(
    rng: np.random.Generator, protocol: Protocol, lobes: LobeFields, field: FieldOfView = "lungs"
) -> Geometry:
    """A grid that holds the lungs with a random margin, along the protocol's directions."""
    most = _WIDEST_MARGINS_MM[field]
    points = lobes.positions(lobes.labels > 0)[::5].astype(np.float64)
    along = points @ protocol.tilt
    side = rng.uniform(12, most.side)
    low = along.min(axis=0) - (side, side, rng.uniform(8, most.below))
    high = along.max(axis=0) + (side, side + rng.uniform(0, 20), rng.uniform(8, most.above))
    spacing_xyz = np.asarray(protocol.spacing_zyx_mm[::-1])
    size = np.ceil((high - low) / spacing_xyz).astype(int)
    origin = protocol.tilt @ low
    return Geometry(
        size_zyx=(int(size[2]), int(size[1]), int(size[0])),
        spacing_zyx_mm=protocol.spacing_zyx_mm,
        origin_xyz_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=tuple(float(v) for v in protocol.tilt.ravel()),
    )


def blur(hu: FloatArray, protocol: Protocol) -> FloatArray:
    """The point spread in the slice; thick slices have averaged already where thin things were drawn."""
    sigma = protocol.blur_mm / np.asarray(protocol.spacing_zyx_mm)
    out: FloatArray = ndimage.gaussian_filter(hu, (0.0, sigma[1], sigma[2]), truncate=3.0)
    return out


def breathe(hu: FloatArray, protocol: Protocol) -> None:
    """Blur the lowest third along z, most at the bottom, in place."""
    if protocol.breathing_mm <= 0:
        return
    third = len(hu) // 3
    low = hu[:third]
    moved = ndimage.gaussian_filter1d(low, protocol.breathing_mm / protocol.spacing_zyx_mm[0], axis=0)
    weight = np.linspace(1, 0, third, dtype=np.float32)[:, None, None]
    low += weight * (moved - low)


def add_noise(rng: np.random.Generator, hu: FloatArray, protocol: Protocol) -> None:
    """Correlated noise, stronger behind more tissue, in place."""
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    # neighbouring slices share data: about 1 mm, and never less than interpolation between them leaves
    sigma_z = float(np.clip(1.0 / protocol.spacing_zyx_mm[0], 0.5, 0.7))
    noise = ndimage.gaussian_filter(noise, (sigma_z, protocol.grain, protocol.grain), truncate=3.0, mode="wrap")
    if protocol.sharpened:
        wide = ndimage.gaussian_filter(noise, (0, 1.5, 1.5), truncate=2.5, mode="wrap")
        noise -= np.float32(0.7) * wide
    noise *= np.float32(protocol.noise_hu / noise[:: max(1, len(noise) // 8)].std())
    thick = (hu[:, ::4, ::4] > -500).mean(axis=(1, 2), dtype=np.float32)  # shoulders and belly
    noise *= (0.75 + 0.6 * thick)[:, None, None]
    hu += noise


def to_int16(hu: FloatArray) -> NDArray[np.int16]:
    """Whole HU within what scanners write."""
    return np.rint(np.clip(hu, LOWEST_HU, 3071)).astype(np.int16)


def smallest_component_voxels(geometry: Geometry) -> int:
    """Fewest voxels of a lesion that counts: a ball of 3 mm, at least 3 voxels."""
    return max(3, round(14.0 / (geometry.voxel_ml * 1000)))
