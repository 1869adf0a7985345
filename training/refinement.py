"""Refinement of the dRAM: the target that a dense CRF makes of it, and the loss against that target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from training.crf import dense_crf
from training.losses import lobe_mean
from training.settings import CrfSettings


@torch.no_grad()
def refinement_target(
    probability: Tensor,
    image: Tensor,
    mask: Tensor,
    vessels: Tensor | None,
    scores: Sequence[int],
    settings: CrfSettings,
) -> Tensor:
    """Labels that the refined dRAM is to learn: the raw dRAM off the vessels, cleaned up by a dense CRF.

    Args:
        probability: raw dRAM, (B, 1, D, H, W).
        image: intensities in [0, 1], the same shape.
        mask: more than 0 inside the lobe, the same shape.
        vessels: 1 on vessels, 0 elsewhere, the same shape; None leaves lesion on vessels.
        scores: of the lobes, B of them.
        settings: of the dense CRF.

    Returns:
        int64 (B, D, H, W), 1 on lesion and 0 elsewhere, without gradients; 0 outside the lobe, and throughout a chunk
        whose score is 0.

    Raises:
        InputError: the dense CRF refuses its input.

    Source: dRAM paper, III-A4 and Fig. 3.
    """
    target = torch.zeros_like(mask[:, 0], dtype=torch.int64)
    scored = [index for index, score in enumerate(scores) if score > 0]
    if scored:
        off_vessels = probability if vessels is None else probability * (1 - vessels)
        lesion = dense_crf(off_vessels[scored], image[scored], mask[scored], settings) > 0.5
        target[scored] = lesion[:, 0].long()
    return target


def refinement_loss(logits: Tensor, target: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Hard bootstrapping of one logit: cross-entropy against a blend of the target and the network's own decision.

    -s log q - (1 - s) log (1 - q) with s = beta t + (1 - beta) z, where q is the sigmoid of the logit, and
    z = [q > 0.5] carries no gradient.

    Args:
        logits: refined dRAM, (B, 1, D, H, W).
        target: t, 1 on lesion and 0 elsewhere, (B, D, H, W).
        mask: 1 inside the lobe and 0 outside, the shape of ``logits``; every chunk holds at least one lobe voxel.
        beta: weight of the target, in [0, 1].

    Returns:
        (B,), the mean over the lobe; float32 for logits of half precision.

    Source: dRAM paper, Eq. 4 with the missing minus sign and two classes; Reed et al. (2015).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own = (logits.detach() > 0).to(logits.dtype)  # z
    blend = beta * target[:, None] + (1 - beta) * own  # s
    loss = functional.binary_cross_entropy_with_logits(logits, blend, reduction="none")
    return lobe_mean(loss, mask)
