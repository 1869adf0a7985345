"""A whole scan through the valid-padding network, tile by tile, with a result that does not depend on the tiles.

Three poolings make the network periodic in 8 voxels, and interpolation at a tile's edge is clamped there, which the
outermost 7 output voxels feel. So tiles start at multiples of 8, give up 8 output voxels per side, and any legal tile
size returns the same scan to float tolerance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from algorithm.errors import InputError
from algorithm.network import CONTEXT, PERIOD

DROPPED = 8  # output voxels per side that a tile's border can reach
MARGIN = CONTEXT + DROPPED  # input voxels before a tile's first kept output voxel

# Peak bytes per input voxel and unit of network width in float32: activations, concatenations and workspace.
# `python -m pytest test/algorithm/test_tiling.py -k memory` measures it.
BYTES_PER_VOXEL_AND_WIDTH = 32


@dataclass(frozen=True)
class TilePlan:
    """Equal tiles over a scan.

    Attributes:
        shape_zyx: voxels of the scan.
        kept_zyx: output voxels that each tile contributes per axis, multiples of 8.
    """

    shape_zyx: tuple[int, int, int]
    kept_zyx: tuple[int, int, int]

    @property
    def counts_zyx(self) -> tuple[int, int, int]:
        """Tiles per axis."""
        z, y, x = (math.ceil(n / kept) for n, kept in zip(self.shape_zyx, self.kept_zyx, strict=True))
        return z, y, x

    @property
    def input_zyx(self) -> tuple[int, int, int]:
        """Input voxels of a tile per axis: the smallest legal size, 4 (mod 8), that yields what is kept."""
        z, y, x = (kept + 2 * MARGIN + 4 for kept in self.kept_zyx)
        return z, y, x

    @property
    def input_voxels(self) -> int:
        """Input voxels of one tile."""
        return int(np.prod(self.input_zyx))

    @property
    def cost_voxels(self) -> int:
        """Input voxels of all tiles: proportional to the arithmetic."""
        return int(np.prod(self.counts_zyx)) * self.input_voxels

    def starts(self) -> Iterator[tuple[int, int, int]]:
        """First kept voxel of every tile."""
        z, y, x = (range(0, n, kept) for n, kept in zip(self.shape_zyx, self.kept_zyx, strict=True))
        return itertools.product(z, y, x)


def plan_tiles(shape_zyx: tuple[int, int, int], *, width: int, memory_bytes: float) -> TilePlan:
    """The plan with the least arithmetic among those whose tile fits into memory.

    Args:
        shape_zyx: voxels of the scan.
        width: the network's width.
        memory_bytes: what the activations of one tile may take.

    Raises:
        InputError: not even the smallest tile fits.
    """
    options = [_kept_sizes(n) for n in shape_zyx]
    plans = [TilePlan(shape_zyx, (z, y, x)) for z, y, x in itertools.product(*options)]
    fitting = [p for p in plans if p.input_voxels * width * BYTES_PER_VOXEL_AND_WIDTH <= memory_bytes]
    if not fitting:
        least = min(p.input_voxels for p in plans) * width * BYTES_PER_VOXEL_AND_WIDTH
        raise InputError(
            f"memory for one tile: got {memory_bytes / 1e9:.2f} GB, expected at least {least / 1e9:.2f} GB; "
            "allow more memory (--memory-gb) or use a narrower model"
        )
    return min(fitting, key=lambda p: (p.cost_voxels, p.input_voxels))


def predict_tiled(
    predict: Callable[[Tensor], Tensor],
    image: NDArray[np.float32],
    inside: NDArray[np.bool_],
    plan: TilePlan,
    *,
    device: torch.device,
    progress: Callable[[float], None] | None = None,
) -> NDArray[np.float32]:
    """Run a valid-padding predictor over a scan.

    Args:
        predict: maps an image tile (1, 1, D, H, W) to one value per voxel (D - 88, H - 88, W - 88).
        image: float32 (z, y, x); what lies outside it counts as zero.
        inside: bool (z, y, x); tiles that keep none of these voxels are skipped.
        plan: tiles for this shape.
        device: where tiles are computed.
        progress: told the finished fraction after every tile.

    Returns:
        float32 (z, y, x), zero in skipped tiles.
    """
    padding = [(MARGIN, count * kept - n + MARGIN + 4) for n, kept, count in _axes(plan)]
    padded = np.pad(image, padding)
    result = np.zeros(image.shape, dtype=np.float32)
    starts = [start for start in plan.starts() if inside[_box(start, plan.kept_zyx)].any()]
    for done, start in enumerate(starts, start=1):
        tile = torch.from_numpy(np.ascontiguousarray(padded[_box(start, plan.input_zyx)]))
        values = predict(tile[None, None].to(device))
        kept = values[_box((DROPPED,) * 3, plan.kept_zyx)].float().cpu().numpy()
        target = result[_box(start, plan.kept_zyx)]
        target[:] = kept[tuple(slice(0, n) for n in target.shape)]
        if progress is not None:
            progress(done / len(starts))
    return result


def _axes(plan: TilePlan) -> Iterator[tuple[int, int, int]]:
    return zip(plan.shape_zyx, plan.kept_zyx, plan.counts_zyx, strict=True)


def _kept_sizes(voxels: int) -> list[int]:
    """What a tile may keep along an axis: for each number of tiles the least multiple of 8 that covers the axis."""
    periods = math.ceil(voxels / PERIOD)
    return sorted({PERIOD * math.ceil(periods / count) for count in range(1, periods + 1)})


def _box(start_zyx: tuple[int, ...], size_zyx: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(start_zyx, size_zyx, strict=True))
