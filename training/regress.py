"""Stage regress: a 3D U-Net whose mean over a lobe is its lesion percentage; its refined output is the dRAM.

python -m training regress --data DATA --run-dir RUN
torchrun --nproc-per-node 2 -m training regress --data DATA --run-dir RUN
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from algorithm.severity import SCORE_INTERVALS
from training.cases import of_split, read_cases
from training.crf import require_engine
from training.dram import DramNetwork, Drams
from training.equivariance import equivariance_loss, random_transform
from training.lobe_batches import (
    LobeBatch,
    LobeItem,
    augmented_batch,
    lobe_batches,
    plain_passes,
    score_counts,
    scored_lobes,
)
from training.loop import Terms, load_trained, make_fabric, train
from training.losses import entropy, interval_loss, intervals_of, lobe_mean, reverse_frequency_weights
from training.refinement import refinement_loss, refinement_target
from training.settings import Ramp, RegressSettings
from training.stages import Run
from training.validation import dram_validation

SMALLEST_SHARE = 1e-3


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms at a step."""

    interval: float
    equivariance: float
    entropy: float
    refinement: float


def regress(run: Run, folder: Path) -> dict[str, Any]:
    """Train the regression network on the scored lobes of the training cases."""
    return train_dram(run, run.config.regress, folder)


def train_dram(run: Run, settings: RegressSettings, folder: Path) -> dict[str, Any]:
    """Train a regression network with some settings in some folder, resuming from what lies there.

    Raises:
        InputError: a stage that the settings need is not done, no validation case has a score, or the engine of the
            dense CRF is not installed.
    """
    require_engine(settings.crf)
    fabric = make_fabric(run, settings.precision)
    seed, device = run.config.seed, fabric.device
    lobes = scored_lobes(run, of_split(read_cases(run.data), "train"))
    counts = score_counts(lobes)
    is_balanced = settings.weighting == "balanced-sampling"
    vessels = run if settings.needs_vessels else None
    batches = lobe_batches(lobes, size=settings.batch, seed=seed, vessels=vessels, balanced=is_balanced)
    score_weights = weights_of_scores(settings, counts)

    def terms(model: nn.Module, items: list[LobeItem], step: int) -> Terms:
        batch = augmented_batch(
            items, size=settings.chunk_size, jitter_mm=settings.spacing_jitter_mm, seed=seed, device=device
        )
        rng = np.random.default_rng([seed, 4, step])
        return dram_terms(model, batch, score_weights, weights_at(settings, step), settings, rng)

    train(
        fabric,
        new_network(settings),
        batches,
        terms,
        settings,
        folder,
        plain=plain_passes(batches, size=settings.chunk_size, device=device, settled=settings.settled),
        validation=dram_validation(run, settings, folder, device),
        readers=run.workers.count,
    )
    return {"lobes": len(lobes), "lobes_per_score": {str(score): counts[score] for score in sorted(counts)}}


def dram_terms(
    model: nn.Module,
    batch: LobeBatch,
    score_weights: dict[int, float],
    weights: Weights,
    settings: RegressSettings,
    rng: np.random.Generator,
) -> Terms:
    """The loss terms of a batch; those of weight 0 are not computed.

    Args:
        model: a `DramNetwork`.
        batch: chunks with scores and, where the settings want them, vessels.
        score_weights: weight of the interval loss per score.
        weights: of the terms.
        settings: of the terms.
        rng: draws the transform of the equivariance term, one for the whole batch.
    """
    drams: Drams = model(batch.image, batch.mask)
    raw = drams.raw.float().sigmoid()  # (B, 1, D, H, W)
    interval = _interval(raw, batch, score_weights)
    if settings.attention and not weights.refinement:
        interval = interval + 0.0 * drams.refined.float().mean()  # several processes need a gradient of every parameter
    return {
        "interval": (weights.interval, interval),
        "equivariance": (
            weights.equivariance,
            _equivariance(model, raw, batch, settings, rng) if weights.equivariance else None,
        ),
        "entropy": (weights.entropy, lobe_mean(entropy(raw), batch.mask).mean() if weights.entropy else None),
        "refinement": (weights.refinement, _refinement(drams, batch, settings) if weights.refinement else None),
    }


def weights_of_scores(settings: RegressSettings, counts: Mapping[int, int]) -> dict[int, float]:
    """Weight of the interval loss of a lobe by its score; all alike where rare scores are drawn more often instead.

    Args:
        settings: how rare scores are made up for.
        counts: number of training lobes per score.
    """
    alike = dict.fromkeys(range(len(SCORE_INTERVALS)), 1.0)
    return alike if settings.weighting == "balanced-sampling" else alike | reverse_frequency_weights(counts)


def weights_at(settings: RegressSettings, step: int) -> Weights:
    """Weights of the terms at a step.

    Before the interval loss has settled, entropy drives the map to an empty one, the trivial solution, and refinement
    copies a target that says nothing; both are ramped in.
    """
    at = partial(ramped, step=step, steps=settings.steps)
    return Weights(
        interval=settings.interval_weight,
        equivariance=at(settings.equivariance),
        entropy=at(settings.entropy),
        refinement=at(settings.refinement),
    )


def ramped(ramp: Ramp, *, step: int, steps: int) -> float:
    """Weight of a ramped term at one of the steps."""
    if ramp.full == ramp.start:
        return ramp.weight if step >= ramp.start * steps else 0.0
    return ramp.weight * float(np.interp(step / steps, (ramp.start, ramp.full), (0.0, 1.0)))


def new_network(settings: RegressSettings) -> DramNetwork:
    """The untrained regression network."""
    network = DramNetwork(width=settings.width, attention=settings.attention, norm=settings.norm)
    network.set_prior(settings.prior)
    return network


def load_dram(settings: RegressSettings, folder: Path) -> nn.Module:
    """The trained `DramNetwork` of a folder that `train_dram` wrote, for use on the CPU."""
    return load_trained(new_network(settings), folder)


def trained_network(run: Run) -> nn.Module:
    """The `DramNetwork` of a finished stage."""
    return load_dram(run.config.regress, run.folder("regress"))


def _interval(dram: Tensor, batch: LobeBatch, score_weights: dict[int, float]) -> Tensor:
    lower, upper = (ends.to(dram.device) for ends in intervals_of(batch.scores, SCORE_INTERVALS))
    weight = torch.tensor([score_weights[score] for score in batch.scores], device=dram.device)
    return (weight * interval_loss(lobe_mean(dram, batch.mask), lower, upper)).mean()


def _equivariance(
    model: nn.Module, dram: Tensor, batch: LobeBatch, settings: RegressSettings, rng: np.random.Generator
) -> Tensor:
    """L1 norm of F(A(I)) - A(F(I)) over the transformed lobe, with gradients through both (Eq. 2).

    Interpolation leaves out what lies outside the lobe, which nothing has trained.
    """
    transform = random_transform(
        rng,
        size=settings.chunk_size,
        scale_range=settings.scale_range,
        free_angle_degrees=settings.free_angle_degrees,
    )
    mask = transform.apply(batch.mask, nearest=True)
    image = (transform.apply(batch.image, nearest=False) * mask).contiguous(memory_format=torch.channels_last_3d)
    of_transformed: Drams = model(image, mask, refined=False)
    share = transform.apply(batch.mask, nearest=False).clamp(min=SMALLEST_SHARE)  # of a voxel inside the lobe
    transformed = transform.apply(dram * batch.mask, nearest=False) / share
    return equivariance_loss(of_transformed.raw.float().sigmoid(), transformed, mask).mean()


def _refinement(drams: Drams, batch: LobeBatch, settings: RegressSettings) -> Tensor:
    """Mean over the lobes; 0 for a diseased one whose target is empty.

    The CRF empties faint maps, and a map that learns from that is fainter still: all of them end empty. The score says
    that such a target is wrong.
    """
    raw = drams.raw.detach().float().sigmoid()
    target = refinement_target(raw, batch.plain, batch.mask, batch.vessels, batch.scores, settings.crf)
    is_healthy = torch.tensor(batch.scores, device=target.device) == 0
    counts = is_healthy | (target > 0).flatten(start_dim=1).any(dim=1)
    return (refinement_loss(drams.refined, target, batch.mask, beta=settings.beta) * counts).mean()
