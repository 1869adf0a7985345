"""Mini-batches of lobe chunks for the networks that learn from lobe scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from algorithm.lobes import LOBES
from training.augment import flip, stretch_contrast
from training.cases import Case
from training.chunks import resize
from training.loop import shuffled
from training.prepare import PreparedCase, prepared
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


class LobeSteps(Dataset[list[LobeItem]]):
    """Item k: the chunks of step k for one of several processes."""

    def __init__(
        self,
        lobes: list[ScoredLobe],
        *,
        batch: int,
        seed: int,
        balanced: bool = False,
        vessels: Run | None = None,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """Go through the lobes in a new random order every epoch, or draw all scores equally often.

        Args:
            lobes: the training instances.
            batch: chunks per step and process.
            seed: of the order.
            balanced: draw a score first and then one of its lobes, with replacement.
            vessels: run whose vessel masks are read as well.
            process: number of this process.
            processes: how many there are.
        """
        self.lobes, self.batch, self.seed = lobes, batch, seed
        self.balanced, self.vessels = balanced, vessels
        self.process, self.processes = process, processes
        self.by_score = [[i for i, lobe in enumerate(lobes) if lobe.score == s] for s in range(6)]

    def __getitem__(self, step: int) -> list[LobeItem]:
        """Read the chunks of a step."""
        chosen = shuffled(len(self.lobes), self.batch, step * self.processes + self.process, self.seed)
        return [
            read_item(self.lobes[self._drawn(position) if self.balanced else index], position, self.vessels)
            for position, index in chosen
        ]

    def _drawn(self, position: int) -> int:
        rng = np.random.default_rng([self.seed, 5, position])
        of_score = [indices for indices in self.by_score if indices]
        return int(rng.choice(of_score[rng.integers(len(of_score))]))


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


def read_item(lobe: ScoredLobe, position: int, vessels: Run | None) -> LobeItem:
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
