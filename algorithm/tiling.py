"""A whole scan through the network, in tiles and parts of tiles, with a result that does not depend on them.

Three poolings make the network periodic in 8 voxels, so tiles keep multiples of 8. Where a tile meets the end of the
scan it needs nothing beyond, see `algorithm.inference_network`; where it meets another it sees `HALO` voxels of it,
which only the encoder computes. The last level, more than half of the arithmetic, is computed in small parts around
the lobes, each turned into what is wanted of it at once; the level before it where these parts look at it.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from algorithm.errors import InputError
from algorithm.inference_network import LEAD, InferenceNetwork, interpolated, output_size
from algorithm.network import PERIOD
from algorithm.preprocess import Box, bounding_box

HALO = 56  # voxels of the next tile that a tile sees: what an output voxel depends on, to a multiple of 8
PART_ZYX = (24, 40, 40)  # output voxels of the last level computed at once; small enough to fit between the lobes
SLAB = 16  # slices of the other levels computed at once
ROWS = 24  # rows of these slices that are left out together
SHRINK = 0.6  # of the memory that was not there
REACH = 2  # voxels around the lobes that resampling back to the scan can look at

# Multiplications per voxel that encoder and decoder see, in units of 27 width^2; the last level costs the same
# whatever the tiles.
ENCODER_COST, DECODER_COST = 4.6, 12.0
# Peak values per unit of width: for each voxel that the encoder sees, and of one part of the last level.
VALUES_PER_VOXEL = 3.4
VALUES_OF_PARTS = 2.5e6

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Span:
    """What a tile keeps along one axis of a scan: the voxels from start to stop of size, start a multiple of 8."""

    start: int
    stop: int
    size: int

    @property
    def low(self) -> int:
        """Voxels before the kept ones that are another tile's."""
        return HALO if self.start > 0 else 0

    @property
    def high(self) -> int:
        """Voxels behind the kept ones that are another tile's."""
        return HALO if self.stop < self.size else 0

    @property
    def decoder(self) -> int:
        """Voxels that the decoder sees: `LEAD` more than are kept at either end, to a multiple of 8."""
        return PERIOD * math.ceil((self.stop - self.start + 2 * LEAD) / PERIOD)

    @property
    def encoder(self) -> int:
        """Voxels that the encoder sees."""
        return self.low + self.decoder + self.high

    @property
    def first(self) -> int:
        """The first voxel that the encoder sees; may lie outside the scan."""
        return self.start - LEAD - self.low


Tile = tuple[Span, Span, Span]


@dataclass(frozen=True)
class TilePlan:
    """Tiles that keep every voxel of a scan once.

    Attributes:
        shape_zyx: voxels of the scan.
        kept_zyx: what a tile keeps per axis, multiples of 8; the last one of an axis less.
    """

    shape_zyx: tuple[int, int, int]
    kept_zyx: tuple[int, int, int]

    def spans(self) -> list[list[Span]]:
        """What tiles keep, axis by axis."""
        return [
            [Span(start, min(start + kept, n), n) for start in range(0, n, kept)]
            for n, kept in zip(self.shape_zyx, self.kept_zyx, strict=True)
        ]

    def tiles(self) -> Iterator[Tile]:
        """The tiles in order."""
        z, y, x = self.spans()
        return itertools.product(z, y, x)

    @property
    def cost(self) -> float:
        """Arithmetic of all tiles, in units of 27 width^2 multiplications."""
        encoder = math.prod(sum(span.encoder for span in spans) for spans in self.spans())
        decoder = math.prod(sum(span.decoder for span in spans) for spans in self.spans())
        return ENCODER_COST * encoder + DECODER_COST * decoder

    def memory_bytes(self, *, width: int, value_bytes: int) -> float:
        """Peak memory of the largest tile's features, as `test/benchmarks` measures it."""
        voxels: int = math.prod(max(span.encoder for span in spans) for spans in self.spans())
        return width * value_bytes * (VALUES_PER_VOXEL * voxels + VALUES_OF_PARTS)


def plan_tiles(shape_zyx: tuple[int, int, int], *, width: int, value_bytes: int, memory_bytes: float) -> TilePlan:
    """The plan with the least arithmetic among those whose tiles fit into memory.

    Args:
        shape_zyx: voxels of the scan.
        width: the network's width.
        value_bytes: 4 for float32, 2 for bfloat16.
        memory_bytes: what the features of one tile may take.

    Raises:
        InputError: not even the smallest tiles fit.
    """
    options = [_kept_sizes(n) for n in shape_zyx]
    plans = [TilePlan(shape_zyx, (z, y, x)) for z, y, x in itertools.product(*options)]
    needs = [plan.memory_bytes(width=width, value_bytes=value_bytes) for plan in plans]
    if min(needs) > memory_bytes:
        raise InputError(
            f"memory for one tile: got {memory_bytes / 1e9:.2f} GB, expected at least {min(needs) / 1e9:.2f} GB; "
            "allow more memory (--memory-gb) or use a narrower model"
        )
    return min((plan for plan, need in zip(plans, needs, strict=True) if need <= memory_bytes), key=lambda p: p.cost)


@torch.inference_mode()
def predict_scan(
    network: InferenceNetwork,
    image: NDArray[np.float32],
    inside: NDArray[np.bool_],
    reduce: Callable[[Tensor], Tensor],
    *,
    outside: float = 0.0,
    memory_bytes: float,
    progress: Callable[[float], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> NDArray[np.float32]:
    """Run the network over a scan; where memory runs out, again in smaller tiles.

    Args:
        network: where and in which precision it computes is its own matter.
        image: float32 (z, y, x); what lies outside it counts as zero.
        inside: bool (z, y, x); no more than a few voxels around these are computed.
        reduce: maps logits (classes, D, H, W) to one value per voxel.
        outside: value where nothing is computed.
        memory_bytes: what the features of one tile may take.
        progress: told the finished fraction.
        warn: told that memory ran out.

    Returns:
        float32 (z, y, x).

    Raises:
        InputError: not even the smallest tiles fit into memory.
    """
    while True:
        plan = plan_tiles(image.shape, width=network.width, value_bytes=network.value_bytes, memory_bytes=memory_bytes)
        try:
            with _reference_arithmetic():
                result = torch.full(image.shape, outside, dtype=torch.float32, device=network.device)
                _predict_tiles(network, image, inside, reduce, plan, result, progress or (lambda fraction: None))
                return result.cpu().numpy()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        used = plan.memory_bytes(width=network.width, value_bytes=network.value_bytes)
        memory_bytes = SHRINK * used
        message = (
            f"memory ran out in tiles that take {used / 1e9:.2f} GB; went on in tiles of {memory_bytes / 1e9:.2f} GB"
        )
        log.warning("%s", message)
        if warn is not None:
            warn(message)
        if network.device.type == "cuda":
            torch.cuda.empty_cache()


def _reference_arithmetic() -> AbstractContextManager[None]:
    """On a GPU, in a training whose own arithmetic is another: float32 as it is, and the same result each time."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch, or of what computes for it, says that an allocation failed."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "allocate memory", "bad_alloc", "could not create a memory")
    )


def _predict_tiles(
    network: InferenceNetwork,
    image: NDArray[np.float32],
    inside: NDArray[np.bool_],
    reduce: Callable[[Tensor], Tensor],
    plan: TilePlan,
    result: Tensor,
    progress: Callable[[float], None],
) -> None:
    tiles = [(tile, parts) for tile in plan.tiles() if (parts := list(lobe_parts(tile, inside)))]
    for done, (tile, parts) in enumerate(tiles):
        x, skip = _coarse_features(network, tile, image, parts)
        for number, part in enumerate(parts, start=1):
            start, size = _in_tile(part, tile)
            values = reduce(network.logits(network.decode(0, x, skip, start, size))[0])
            result[part] = values[tuple(slice(0, p.stop - p.start) for p in part)]
            progress((done + number / len(parts)) / len(tiles))
        del x, skip


def _in_tile(part: Box, tile: Tile) -> tuple[list[int], list[int]]:
    """Where a part of a scan begins in the decoder's finest features, and its voxels there, even numbers."""
    start = [p.start - span.start for p, span in zip(part, tile, strict=True)]
    return start, [p.stop - p.start + (p.stop - p.start) % 2 for p in part]


def _coarse_features(
    network: InferenceNetwork, tile: Tile, image: NDArray[np.float32], parts: list[Box]
) -> tuple[Tensor, Tensor]:
    """What these parts of the decoder's last level take: the next coarser features, and the encoder's finest."""
    features = network.encode(network.tensor(seen_by(tile, image)))
    skips, x = features.cropped([span.low for span in tile], [span.high for span in tile])
    for level in (2, 1):
        size = [output_size(level, span.decoder) for span in tile]
        boxes = boxes_around(_looked_at(parts, tile, size)) if level == 1 else _slabs(size)
        x = network.decode_where(level, x, skips[level], size, boxes)
        skips.pop()
    return x, skips[0]


def _slabs(size: list[int]) -> list[Box]:
    """Boxes that together hold everything."""
    depth, height, width = size
    return [(slice(z, min(z + SLAB, depth)), slice(0, height), slice(0, width)) for z in range(0, depth, SLAB)]


def _looked_at(parts: list[Box], tile: Tile, size: list[int]) -> NDArray[np.bool_]:
    """Which of the features before the last level these parts of it depend on."""
    needed = np.zeros(size, dtype=bool)
    for part in parts:
        needed[interpolated(0, *_in_tile(part, tile))] = True
    return needed


def boxes_around(needed: NDArray[np.bool_]) -> Iterator[Box]:
    """Boxes that together hold all that is needed, each voxel in one at most; starts and sizes are even numbers.

    Args:
        needed: bool (z, y, x) of even sizes.
    """
    depth, height, width = needed.shape
    half = width // 4 * 2  # a lung each
    corners = itertools.product(range(0, depth, SLAB), range(0, height, ROWS), (slice(0, half), slice(half, width)))
    for z, y, columns in corners:
        block = needed[z : z + SLAB, y : y + ROWS, columns]
        if block.any():
            places = zip((z, y, columns.start), bounding_box(block), strict=True)
            box = [slice(at + part.start // 2 * 2, at + part.stop + part.stop % 2) for at, part in places]
            yield box[0], box[1], box[2]


def seen_by(tile: Tile, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the encoder sees of a scan (z, y, x), with zeros where there is none."""
    seen = np.zeros([span.encoder for span in tile], dtype=np.float32)
    spans = [(max(span.first, 0), min(span.first + span.encoder, span.size)) for span in tile]
    target = tuple(slice(a - span.first, b - span.first) for span, (a, b) in zip(tile, spans, strict=True))
    seen[target] = image[tuple(slice(a, b) for a, b in spans)]
    return seen


def lobe_parts(tile: Tile, inside: NDArray[np.bool_]) -> Iterator[Box]:
    """The boxes of a scan in which the last level is computed: together they hold each lobe voxel's surroundings.

    Args:
        tile: only what it keeps.
        inside: bool (z, y, x).
    """
    corners = itertools.product(*(range(s.start, s.stop, n) for s, n in zip(tile, PART_ZYX, strict=True)))
    for corner in corners:
        stop = [min(c + n, span.stop) for c, n, span in zip(corner, PART_ZYX, tile, strict=True)]
        near = [slice(max(a - REACH, 0), b + REACH) for a, b in zip(corner, stop, strict=True)]
        if not inside[tuple(near)].any():
            continue
        box = bounding_box(inside[tuple(near)], (REACH,) * 3)
        z, y, x = (
            slice(max(n.start + b.start, a) // 2 * 2, min(n.start + b.stop, e))
            for n, b, a, e in zip(near, box, corner, stop, strict=True)
        )
        yield z, y, x


def _kept_sizes(voxels: int) -> list[int]:
    """What a tile may keep along an axis: for each number of tiles the least multiple of 8 that covers the axis."""
    periods = math.ceil(voxels / PERIOD)
    return sorted({PERIOD * math.ceil(periods / count) for count in range(1, periods + 1)})
