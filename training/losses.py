"""Losses of the dRAM and of the final network; pure functions on tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST_PROBABILITY = 1e-7


def lobe_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the voxels of the lobe (lobe-wise mean pooling).

    Args:
        values: (B, 1, D, H, W).
        mask: the same shape, 1 inside the lobe and 0 outside; every chunk holds at least one lobe voxel.

    Returns:
        (B,), the lesion fraction where ``values`` is a dRAM.
    """
    axes = (1, 2, 3, 4)
    return (values * mask).sum(dim=axes) / mask.sum(dim=axes)


def interval_loss(fraction: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Distance of a lesion fraction from the interval of its score: max(0, (y - middle)^2 - halfwidth^2).

    It is zero inside the interval and d (d + upper - lower) at the distance d outside it.

    Args:
        fraction: predicted lesion fraction, (B,).
        lower: lower ends, (B,).
        upper: upper ends, (B,).

    Returns:
        (B,), before any weighting.

    Source: dRAM paper, Eq. 1.
    """
    middle = 0.5 * (lower + upper)
    half_width = 0.5 * (upper - lower)
    return functional.relu((fraction - middle) ** 2 - half_width**2)


def reverse_frequency_weights(counts: Mapping[int, int]) -> dict[int, float]:
    """Weight of each score, inverse to its frequency and 1 on average over the lobes.

    Args:
        counts: number of training lobes per score; scores with none are left out of the result.
    """
    present = {score: count for score, count in counts.items() if count > 0}
    total = sum(present.values())
    return {score: total / (count * len(present)) for score, count in present.items()}


def entropy(probability: Tensor) -> Tensor:
    """Binary entropy of each voxel in nats, the same shape.

    Source: dRAM paper, Eq. 3.
    """
    p = probability.clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return -p * p.log() - (1 - p) * (1 - p).log()


def bootstrapping_loss(logits: Tensor, labels: Tensor, mask: Tensor, *, beta: float = 0.8) -> Tensor:
    """Hard bootstrapping: cross-entropy against a blend of the label and the network's own decision.

    -sum_k [beta t_k + (1 - beta) z_k] log q_k, where z is the one-hot argmax of q and carries no gradient.

    Args:
        logits: (B, K, D, H, W).
        labels: integer class per voxel, (B, D, H, W).
        mask: voxels that count, (B, D, H, W).
        beta: weight of the label.

    Returns:
        The mean over the voxels that count; 0 if none does.

    Source: dRAM paper, Eq. 4 with the missing minus sign; Reed et al. (2015).
    """
    log_q = functional.log_softmax(logits.float(), dim=1)
    label_term = functional.nll_loss(log_q, labels, reduction="none")
    own_term = -log_q.amax(dim=1)  # log q at z, the argmax; differentiable through q alone
    loss = beta * label_term + (1 - beta) * own_term
    return (loss * mask).sum() / mask.sum().clamp(min=1)


def intervals_of(scores: Sequence[int], intervals: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """Lower and upper ends, (B,) each, of the intervals of a batch of scores."""
    ends = torch.tensor([intervals[score] for score in scores])
    return ends[:, 0], ends[:, 1]
