"""Stage regress: a 3D U-Net whose mean over a lobe is its lesion percentage; its output is the dRAM.

python -m training regress --data DATA --run RUN
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from algorithm.lobes import LOBES
from algorithm.network import UNet3D
from algorithm.severity import SCORE_INTERVALS
from training.augment import flip, stretch_contrast
from training.cases import Case, of_split, read_cases
from training.chunks import LobeChunk, resize_chunk
from training.config import RegressSettings
from training.loop import Terms, load_trained, make_fabric, shuffled, train
from training.losses import entropy, interval_loss, intervals_of, lobe_mean, reverse_frequency_weights
from training.prepare import PreparedCase, prepared
from training.stages import Run


@dataclass(frozen=True)
class ScoredLobe:
    """One training instance: a lobe and its score."""

    case: PreparedCase
    key: str
    score: int


class RegressSteps(Dataset[list[tuple[LobeChunk, int]]]):
    """Item k: the chunks and scores of step k."""

    def __init__(self, lobes: list[ScoredLobe], batch: int, seed: int) -> None:
        """Go through the lobes in a new random order every epoch."""
        self.lobes, self.batch, self.seed = lobes, batch, seed

    def __getitem__(self, step: int) -> list[tuple[LobeChunk, int]]:
        """Read the chunks of a step."""
        chosen = [self.lobes[i] for i in shuffled(len(self.lobes), self.batch, step, self.seed)]
        return [(lobe.case.chunk(lobe.key), lobe.score) for lobe in chosen]


def regress(run: Run, folder: Path) -> dict[str, Any]:
    """Train the regression network on the scored lobes of the training cases."""
    settings, seed = run.config.regress, run.config.seed
    fabric = make_fabric(run.device, settings.precision)
    fabric.seed_everything(seed, verbose=False)
    lobes = scored_lobes(run, of_split(read_cases(run.data), "train"))
    counts = Counter(lobe.score for lobe in lobes)
    weights = reverse_frequency_weights(counts)

    def terms(model: nn.Module, data: list[tuple[LobeChunk, int]], step: int) -> Terms:
        image, mask = _batch(data, settings, np.random.default_rng([seed, 1, step]), fabric.device)
        dram = model(image).float().sigmoid()  # (B, 1, D, H, W)
        scores = [score for _, score in data]
        lower, upper = (ends.to(fabric.device) for ends in intervals_of(scores, SCORE_INTERVALS))
        weight = torch.tensor([weights[score] for score in scores], device=fabric.device)
        return {
            "interval": (
                settings.interval_weight,
                (weight * interval_loss(lobe_mean(dram, mask), lower, upper)).mean(),
            ),
            "entropy": (entropy_weight(settings, step), lobe_mean(entropy(dram), mask).mean()),
        }

    train(fabric, new_network(settings), RegressSteps(lobes, settings.batch, seed), terms, settings, folder)
    return {"lobes": len(lobes), "lobes_per_score": {str(score): counts[score] for score in sorted(counts)}}


def scored_lobes(run: Run, cases: list[Case]) -> list[ScoredLobe]:
    """Every lobe of these cases that has a score."""
    return [
        ScoredLobe(prepared(run, case), lobe.key, case.scores[lobe.label])
        for case in cases
        for lobe in LOBES
        if lobe.label in case.scores
    ]


def new_network(settings: RegressSettings) -> UNet3D:
    """The untrained regression network."""
    network = UNet3D(out_channels=1, width=settings.width)
    network.set_prior([settings.prior])
    return network


def trained_network(run: Run) -> nn.Module:
    """The regression network of a finished stage."""
    return load_trained(new_network(run.config.regress), run.folder("regress"))


def entropy_weight(settings: RegressSettings, step: int) -> float:
    """Weight of the entropy term at a step: nothing at first, then rising to its full value.

    Before the interval loss has settled the term drives the map to an empty one, the trivial solution.
    """
    ends = (settings.entropy_start * settings.steps, settings.entropy_full * settings.steps)
    return settings.entropy_weight * float(np.interp(step, ends, (0.0, 1.0)))


def _batch(
    data: list[tuple[LobeChunk, int]], settings: RegressSettings, rng: np.random.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Resize and augment the chunks of a step; image and mask (B, 1, D, H, W)."""
    images, masks = [], []
    for chunk, _ in data:
        spacing_mm = chunk.geometry.spacing_zyx_mm[0]
        jitter = 1 + rng.uniform(-1, 1) * settings.spacing_jitter_mm / spacing_mm
        image, mask = resize_chunk(chunk, settings.chunk_size, device=device, jitter=jitter)
        image, mask = flip([image, mask], rng)
        images.append(stretch_contrast(image, rng))
        masks.append(mask)
    batch = torch.cat(images).contiguous(memory_format=torch.channels_last_3d)
    return batch, torch.cat(masks)
