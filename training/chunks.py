"""Lobe chunks, cut around a lobe and resized to a cube for the network; cubes cut out of a scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from algorithm.images import Geometry, Volume
from algorithm.preprocess import (
    bounding_box,
    covering_grid,
    crop,
    margin_voxels,
    masked_intensity,
    resample,
)


@dataclass(frozen=True)
class LobeChunk:
    """One lobe, cut out with a margin at an isotropic spacing.

    Attributes:
        image: float16 (z, y, x), windowed intensity, zero outside the lobe.
        mask: uint8, 1 inside the lobe.
        geometry: where the chunk lies.
    """

    image: NDArray[np.float16]
    mask: NDArray[np.uint8]
    geometry: Geometry


def cut_lobe(ct: Volume, lobes: Volume, label: int, *, spacing_mm: float, margin_mm: float) -> LobeChunk:
    """Cut a lobe out of a scan.

    Args:
        ct: HU.
        lobes: lobe labels on the same grid.
        label: the lobe; it must have voxels.
        spacing_mm: isotropic spacing of the chunk.
        margin_mm: margin around the lobe, clipped to the scan.
    """
    mask = lobes.array == label
    box = bounding_box(mask, margin_voxels(lobes.geometry, margin_mm))
    part, inside = crop(ct, box), crop(lobes.with_array(mask), box)
    grid = covering_grid(part.geometry, spacing_mm=spacing_mm)
    image = masked_intensity(part, inside.array, grid)
    return LobeChunk(image.array.astype(np.float16), resample(inside, grid, "nearest").array, grid)


def resize(image: Tensor, mask: Tensor, size: int, *, jitter: float = 1.0) -> tuple[Tensor, Tensor]:
    """Resize a chunk to a cube, edge to edge, so that a lobe's lesion fraction is kept.

    Args:
        image: intensity (z, y, x).
        mask: 1 inside the lobe, the same shape.
        size: voxels per side.
        jitter: factor on the chunk's spacing; anything but 1 resamples twice.

    Returns:
        Image and mask, float32 (1, 1, size, size, size); the image is zero outside the mask.
    """
    image, mask = image[None, None].float(), mask[None, None].float()
    if jitter != 1.0:
        between = [max(1, round(n / jitter)) for n in image.shape[2:]]
        image = functional.interpolate(image, size=between, mode="trilinear", align_corners=False)
    image = functional.interpolate(image, size=(size,) * 3, mode="trilinear", align_corners=False)
    mask = functional.interpolate(mask, size=(size,) * 3, mode="nearest-exact")
    return image * mask, mask


def resize_chunk(chunk: LobeChunk, size: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Resize a chunk on a device; see `resize`."""
    return resize(torch.from_numpy(chunk.image).to(device), torch.from_numpy(chunk.mask).to(device), size)


def take(array: NDArray[Any], centre_zyx: tuple[Any, ...], size: int) -> NDArray[Any]:
    """A cube around a voxel, filled with zeros outside the array."""
    cube = np.zeros((size,) * 3, dtype=array.dtype)
    starts = [int(centre) - size // 2 for centre in centre_zyx]
    source = tuple(slice(max(s, 0), max(min(s + size, n), 0)) for s, n in zip(starts, array.shape, strict=True))
    target = tuple(slice(part.start - s, part.stop - s) for part, s in zip(source, starts, strict=True))
    cube[target] = array[source]
    return cube
