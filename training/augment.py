"""Random changes of image chunks in training; all randomness comes from the generator passed in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CONTRAST_PROBABILITY = 0.5
CONTRAST_LOW, CONTRAST_HIGH = (-0.03, 0.03), (0.95, 1.05)  # of a window of 1500 HU: by up to 45 and 75 HU


def flip(chunks: list[Tensor], rng: np.random.Generator) -> list[Tensor]:
    """Mirror each of the last three axes with probability 1/2, all chunks alike."""
    axes = [axis for axis in (-3, -2, -1) if rng.random() < 0.5]
    return [torch.flip(chunk, axes) for chunk in chunks] if axes else chunks


def stretch_contrast(image: Tensor, rng: np.random.Generator) -> Tensor:
    """With probability 1/2 move both ends of the window a little, (f - low) / (high - low) within [0, 1].

    A little, for HU are calibrated, and by how much a voxel is denser than healthy lung is what tells faint
    ground-glass.

    Args:
        image: intensities f in [0, 1]; zero, the background, stays zero.
        rng: draws both ends, in `CONTRAST_LOW` and `CONTRAST_HIGH`.
    """
    apply = rng.random() < CONTRAST_PROBABILITY
    low, high = rng.uniform(*CONTRAST_LOW), rng.uniform(*CONTRAST_HIGH)
    if not apply:
        return image
    return ((image - low) / (high - low)).clamp(0, 1) * (image > 0)
