"""Mini-batches of lobe chunks for the networks that learn from lobe scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from algorithm.lobes import LOBES
from training.augment import flip, stretch_contrast
from training.batches import Batches
from training.cases import Case
from training.chunks import resize
from training.prepare import PreparedCase, prepared
from training.settling import PlainPasses
from training.stages import Run
from training.vessels import chunk_vessels


@dataclass(frozen=True)
class ScoredLobe:
    """One training instance: a lobe and its score."""

    case: PreparedCase
    key: str
    score: int


@dataclass(frozen=True)
class LobeItem:
    """A lobe chunk as it is read from disk.

    Attributes:
        image: float16 (z, y, x), zero outside the lobe.
        mask: uint8, 1 inside the lobe.
        vessels: uint8, 1 on vessels; None where they are not asked for.
        spacing_mm: of the chunk, isotropic.
        score: of the lobe.
        position: in the sequence of all items of the training; seeds what is random about it.
    """

    image: Tensor
    mask: Tensor
    vessels: Tensor | None
    spacing_mm: float
    score: int
    position: int


@dataclass(frozen=True)
class LobeBatch:
    """Resized chunks on the device.

    Attributes:
        image: float32 (B, 1, n, n, n), zero outside the lobes.
        plain: the image before its contrast was stretched: what grey levels mean something in.
        mask: float32, the same shape.
        vessels: float32, the same shape, or None.
        scores: one a chunk.
    """

    image: Tensor
    plain: Tensor
    mask: Tensor
    vessels: Tensor | None
    scores: list[int]


class BalancedBatches(Batches[ScoredLobe, LobeItem]):
    """Draws a score first and then one of its lobes, with replacement: all scores come equally often."""

    def index(self, position: int) -> int:
        """Which lobe stands at a position of the sequence."""
        rng = np.random.default_rng([self.seed, 5, position])
        return int(rng.choice(self._by_score[rng.integers(len(self._by_score))]))

    @cached_property
    def _by_score(self) -> list[list[int]]:
        scores = sorted({lobe.score for lobe in self.items})
        return [[index for index, lobe in enumerate(self.items) if lobe.score == score] for score in scores]


def lobe_batches(
    lobes: list[ScoredLobe], *, size: int, seed: int, vessels: Run | None = None, balanced: bool = False
) -> Batches[ScoredLobe, LobeItem]:
    """Batches of lobe chunks.

    Args:
        lobes: the training instances.
        size: chunks a batch.
        seed: of the order.
        vessels: run whose vessel masks are read as well.
        balanced: whether all scores come equally often.
    """
    kind = BalancedBatches if balanced else Batches[ScoredLobe, LobeItem]
    return kind(lobes, partial(read_item, vessels=vessels), size=size, seed=seed)


def scored_lobes(run: Run, cases: list[Case]) -> list[ScoredLobe]:
    """Every lobe of these cases that has a score."""
    return [
        ScoredLobe(prepared(run, case), lobe.key, case.scores[lobe.label])
        for case in cases
        for lobe in LOBES
        if lobe.label in case.scores
    ]


def score_counts(lobes: list[ScoredLobe]) -> Counter[int]:
    """Number of lobes per score."""
    return Counter(lobe.score for lobe in lobes)


def read_item(lobe: ScoredLobe, position: int, vessels: Run | None = None) -> LobeItem:
    """Read a lobe's chunk, with its vessels if a run is given that has them."""
    chunk = lobe.case.chunk(lobe.key)
    return LobeItem(
        image=torch.from_numpy(chunk.image),
        mask=torch.from_numpy(chunk.mask),
        vessels=torch.from_numpy(chunk_vessels(vessels, lobe.case, lobe.key)) if vessels else None,
        spacing_mm=chunk.geometry.spacing_zyx_mm[0],
        score=lobe.score,
        position=position,
    )


def augmented_batch(
    items: list[LobeItem], *, size: int, jitter_mm: float, seed: int, device: torch.device
) -> LobeBatch:
    """Resize chunks with a jitter of their spacing, mirror them and stretch their contrast, on the device.

    Args:
        items: the chunks of a step.
        size: voxels per side.
        jitter_mm: largest change of the spacing.
        seed: with an item's position, of its randomness.
        device: where the work is done.
    """
    parts = []
    for item in items:
        rng = np.random.default_rng([seed, 1, item.position])
        jitter = 1 + rng.uniform(-1, 1) * jitter_mm / item.spacing_mm
        chunks = flip(_resized(item, size, device, jitter), rng)
        parts.append([stretch_contrast(chunks[0], rng), *chunks])
    return _stacked(parts, items)


def plain_batch(items: list[LobeItem], *, size: int, device: torch.device) -> LobeBatch:
    """Resize chunks, and no more."""
    parts = [_resized(item, size, device, 1.0) for item in items]
    return _stacked([[chunks[0], *chunks] for chunks in parts], items)


def plain_passes(
    batches: Batches[ScoredLobe, LobeItem], *, size: int, device: torch.device, settled: float
) -> PlainPasses:
    """Batches without augmentation for a network of image and mask."""

    def through(model: nn.Module, number: int) -> object:
        batch = plain_batch(batches[number], size=size, device=device)
        return model(batch.image, batch.mask)

    return PlainPasses(through, settled)


def _resized(item: LobeItem, size: int, device: torch.device, jitter: float) -> list[Tensor]:
    """Image, mask and, where known, vessels, (1, 1, size, size, size) each."""
    image, mask = resize(item.image.to(device), item.mask.to(device), size, jitter=jitter)
    if item.vessels is None:
        return [image, mask]
    vessels = item.vessels.to(device)[None, None].float()
    return [image, mask, functional.interpolate(vessels, size=(size,) * 3, mode="nearest-exact")]


def _stacked(parts: list[list[Tensor]], items: list[LobeItem]) -> LobeBatch:
    image, plain, mask, *vessels = (torch.cat(chunks) for chunks in zip(*parts, strict=True))
    return LobeBatch(
        image=image.contiguous(memory_format=torch.channels_last_3d),
        plain=plain,
        mask=mask,
        vessels=vessels[0] if vessels else None,
        scores=[item.score for item in items],
    )
