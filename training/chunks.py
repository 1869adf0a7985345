"""Lobe chunks: cut around a lobe, resized to a cube for the network, and the way back to the scan."""

from __future__ import annotations

from dataclasses import dataclass

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
    resized_grid,
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


def resize_chunk(chunk: LobeChunk, size: int, *, device: torch.device, jitter: float = 1.0) -> tuple[Tensor, Tensor]:
    """Resize a chunk to a cube, edge to edge, so that a lobe's lesion fraction is kept.

    Args:
        chunk: what `cut_lobe` returned.
        size: voxels per side.
        device: where to resize.
        jitter: factor on the chunk's spacing; anything but 1 resamples twice.

    Returns:
        Image and mask, float32 (1, 1, size, size, size); the image is zero outside the mask.
    """
    image = torch.from_numpy(chunk.image).to(device)[None, None].float()
    mask = torch.from_numpy(chunk.mask).to(device)[None, None].float()
    if jitter != 1.0:
        between = [max(1, round(n / jitter)) for n in chunk.image.shape]
        image = functional.interpolate(image, size=between, mode="trilinear", align_corners=False)
    image = functional.interpolate(image, size=(size,) * 3, mode="trilinear", align_corners=False)
    mask = functional.interpolate(mask, size=(size,) * 3, mode="nearest-exact")
    return image * mask, mask


def to_scan(dram: NDArray[np.float32], chunk_geometry: Geometry, scan: Geometry) -> NDArray[np.float32]:
    """A dRAM of a resized chunk on the grid of the scan; the inverse of `cut_lobe` and `resize_chunk`.

    Args:
        dram: probability, (size, size, size).
        chunk_geometry: of the `LobeChunk` before resizing.
        scan: grid of the result.

    Returns:
        float32 (z, y, x), zero outside the chunk.
    """
    size = (dram.shape[0], dram.shape[1], dram.shape[2])
    return resample(Volume(dram, resized_grid(chunk_geometry, size)), scan, "linear").array
