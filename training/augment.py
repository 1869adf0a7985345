"""Random changes of image chunks in training; all randomness comes from the generator passed in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CONTRAST_PROBABILITY = 0.5
CONTRAST_MIDDLE = (0.3, 0.7)
CONTRAST_EXPONENT = (0.5, 2.0)


def flip(chunks: list[Tensor], rng: np.random.Generator) -> list[Tensor]:
    """Mirror each of the last three axes with probability 1/2, all chunks alike."""
    axes = [axis for axis in (-3, -2, -1) if rng.random() < 0.5]
    return [torch.flip(chunk, axes) for chunk in chunks] if axes else chunks


def stretch_contrast(image: Tensor, rng: np.random.Generator) -> Tensor:
    """With probability 1/2 pass intensities through a random sigmoid, 1 / (1 + (m / f)^E).

    Args:
        image: intensities f in [0, 1]; zero, the background, stays zero.
        rng: draws m in [0.3, 0.7] and E in [0.5, 2].
    """
    apply = rng.random() < CONTRAST_PROBABILITY
    middle, exponent = rng.uniform(*CONTRAST_MIDDLE), rng.uniform(*CONTRAST_EXPONENT)
    if not apply:
        return image
    powered = image**exponent  # f^E / (f^E + m^E) is the same function without the division by f
    stretched: Tensor = powered / (powered + middle**exponent)
    return stretched
