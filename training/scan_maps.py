"""Maps of lobe chunks, averaged over several chunk sizes and put back into the scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from algorithm.images import Volume
from algorithm.lobes import LOBES
from algorithm.network import PERIOD
from algorithm.preprocess import resample
from training.chunks import LobeChunk, resize_chunk
from training.prepare import PreparedCase

SMALLEST_SIZE = 16  # voxels; two at the network's coarsest level
OUTSIDE_WEIGHT = 1e-3  # of voxels outside the lobe, against 1 inside

Predict = Callable[[Tensor, Tensor], Tensor]
"""Image and mask, float32 (1, 1, n, n, n) each, to a map of the same shape."""


@torch.inference_mode()
def scan_map(
    predict: Predict, case: PreparedCase, *, chunk_size: int, scales: Sequence[float], device: torch.device
) -> NDArray[np.float32]:
    """The map of a whole scan: each lobe's, averaged over the scales, on that lobe's voxels.

    A lobe's maps are resized to its chunk before resizing, edge to edge, averaged there as they are, and sampled at the
    scan's voxels: what is to be averaged as a probability, `predict` returns as a probability. Interpolation is
    weighted by the lobe's mask, for networks learn nothing outside the lobe, and their values there are not to leak in.

    Args:
        predict: the map of one resized chunk.
        case: caches of the scan; a lobe that it has not got is left out.
        chunk_size: voxels per side at scale 1.
        scales: of the chunk size, see `ensemble_sizes`.
        device: where to resize and predict.

    Returns:
        float32 (z, y, x) on the scan's grid, zero outside the lobes.
    """
    lobes, grid = case.array("scan_lobes"), case.geometry("scan")
    sizes = ensemble_sizes(chunk_size, scales)
    whole = np.zeros(lobes.shape, dtype=np.float32)
    for lobe in LOBES:
        inside = lobes == lobe.label
        if not inside.any():
            continue
        chunk = case.chunk(lobe.key)
        weighted, weights = _sums(predict, chunk, sizes, device)
        total = resample(Volume(weighted, chunk.geometry), grid, "linear").array[inside]
        whole[inside] = total / resample(Volume(weights, chunk.geometry), grid, "linear", fill=1.0).array[inside]
    return whole


def ensemble_sizes(chunk_size: int, scales: Sequence[float]) -> list[int]:
    """Voxels per side at each scale: the nearest multiple of 8, at least 16, every size once.

    Args:
        chunk_size: voxels per side at scale 1.
        scales: factors, at least one.
    """
    sizes = (max(SMALLEST_SIZE, PERIOD * round(chunk_size * scale / PERIOD)) for scale in scales)
    return list(dict.fromkeys(sizes))


def _sums(predict: Predict, chunk: LobeChunk, sizes: Sequence[int], device: torch.device) -> NDArray[np.float32]:
    """Sums over the sizes of map times weight, and of weight, (2, z, y, x) of the chunk before resizing."""
    sums = torch.zeros(2, *chunk.image.shape, device=device)
    for size in sizes:
        image, mask = resize_chunk(chunk, size, device=device)
        weight = mask.clamp(min=OUTSIDE_WEIGHT)
        parts = torch.cat([predict(image, mask).float() * weight, weight], dim=1)
        sums += functional.interpolate(parts, size=chunk.image.shape, mode="trilinear", align_corners=False)[0]
    arrays: NDArray[np.float32] = sums.cpu().numpy()
    return arrays
