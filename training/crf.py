"""The fully connected CRF of two labels, by mean field, that cleans up a lesion probability."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from algorithm.errors import InputError
from training.settings import CrfSettings

SMALLEST_PROBABILITY = 1e-4  # of either label, before the logarithm
TOLERANCE = 1e-3  # by which rounding may lead out of [0, 1]
SMALLEST_SUM = 1e-6  # of a kernel far outside a lobe, where it is of no use
GREY_LEVELS = 255.0
CELLS_PER_SIGMA = 4  # of space
LEVELS_PER_SIGMA = 2  # of grey level

Kernel = Callable[[Tensor], Tensor]
"""Sums a map (B, D, H, W) over all voxels of a chunk, weighted by their similarity to each voxel."""


@torch.no_grad()
def dense_crf(probability: Tensor, image: Tensor, mask: Tensor, settings: CrfSettings) -> Tensor:
    """Lesion probability after mean field in a CRF that connects all voxels of a lobe with each other.

    The unary energies are -log of the probabilities of lesion and background. Every pair of voxels with different
    labels costs the weighted sum of two Gaussian kernels: one of their distance, in voxels, the other of their
    distance and their difference in grey level. A kernel is divided by the square roots of its sums over the lobe,
    taken at the two of the pair. What lies outside the lobe says nothing: a lesion at the pleura has no healthy
    neighbours there.

    Args:
        probability: of lesion, in [0, 1], (B, 1, D, H, W).
        image: intensities in [0, 1], 1 being grey level 255; same shape and device.
        mask: more than 0 inside the lobe; same shape and device.
        settings: kernels, their weights, iterations, and the engine. Both engines mean the same, and approximate the
            appearance kernel: ``torch`` by a bilateral grid on any device, ``pydensecrf2`` by a permutohedral lattice.

    Returns:
        float32 in [0, 1], the same shape, without gradients; 0 outside the lobe. No iterations leave ``probability``,
        clipped to 1e-4.

    Raises:
        InputError: shapes differ, values are outside [0, 1] or not finite, or pydensecrf2 is not installed.

    Source: Kraehenbuehl and Koltun (2011), Efficient inference in fully connected CRFs with Gaussian edge potentials.
    """
    _check(probability, image, mask)
    infer = _mean_field if settings.engine == "torch" else _pydensecrf2
    device = probability.device.type
    together = 1 if device == "cpu" else len(probability)  # a chunk fits a CPU's cache, a batch fills a GPU
    batches = zip(*(torch.split(values[:, 0].float(), together) for values in (probability, image, mask)), strict=True)
    with torch.autocast(device, enabled=False):  # half precision is too coarse for sums over a chunk
        parts = [infer(p.clamp(0, 1), GREY_LEVELS * f.clamp(0, 1), (m > 0).float(), settings) for p, f, m in batches]
    return torch.cat(parts)[:, None]


def require_engine(settings: CrfSettings) -> None:
    """Check that the engine is there.

    Raises:
        InputError: pydensecrf2 is asked for and not installed.
    """
    if settings.engine == "pydensecrf2" and find_spec("pydensecrf") is None:
        raise InputError(
            "dense CRF: the engine pydensecrf2 is not installed; run `pip install pydensecrf2`, or set engine to torch"
        )


def _check(probability: Tensor, image: Tensor, mask: Tensor) -> None:
    shapes = [tuple(values.shape) for values in (probability, image, mask)]
    if len(set(shapes)) > 1 or probability.ndim != 5 or probability.shape[1] != 1 or not len(probability):
        raise InputError(
            f"dense CRF: got probability, image and mask of shapes {shapes[0]}, {shapes[1]} and {shapes[2]}, expected "
            "the same (B, 1, D, H, W); resample them to one grid"
        )
    for name, values in {"probability": probability, "image": image}.items():
        low, high = (end.item() for end in values.aminmax())
        if not -TOLERANCE <= low <= high <= 1 + TOLERANCE:  # so too where a value is NaN
            raise InputError(f"dense CRF: got a {name} from {low:g} to {high:g}, expected 0 to 1; window or clip it")


def _mean_field(probability: Tensor, grey: Tensor, mask: Tensor, settings: CrfSettings) -> Tensor:
    """Mean field of two labels, written for the log-odds of lesion; tensors (B, D, H, W)."""
    smoothness = _normalised(_smoothness(grey, settings.smoothness_sigma), mask)
    appearance = _normalised(_appearance(grey, settings.appearance_sigma, settings.appearance_sigma_grey), mask)
    evidence = torch.logit(probability, eps=SMALLEST_PROBABILITY)
    log_odds = evidence
    for _ in range(settings.iterations):
        belief = 2 * log_odds.sigmoid() - 1  # probability of lesion less that of background
        smooth, similar = smoothness(belief), appearance(belief)
        log_odds = evidence + settings.smoothness_weight * smooth + settings.appearance_weight * similar
    return mask * log_odds.sigmoid()


def _normalised(kernel: Kernel, mask: Tensor) -> Kernel:
    scale = mask * kernel(mask).clamp(min=SMALLEST_SUM).rsqrt()
    return lambda values: scale * kernel(scale * values)


def _smoothness(grey: Tensor, sigma: float) -> Kernel:
    """Gaussian kernel of the distance, exact."""
    matrices = [_gaussian(length, sigma, grey.device) for length in grey.shape[1:]]
    return lambda values: _along_axes(values, matrices)


def _appearance(grey: Tensor, sigma: float, sigma_grey: float) -> Kernel:
    """Gaussian kernel of distance and grey level on a bilateral grid: splat, blur, slice.

    Voxels of a cell, a quarter of a standard deviation wide, share their place in the grid. Along the grey level each
    is split linearly between two neighbouring levels, once to enter the grid and once to leave it. That alone adds a
    third of their squared distance to the variance, so the blur lacks as much.
    """
    width = max(1, round(sigma / CELLS_PER_SIGMA))
    places = [torch.arange(length, device=grey.device) // width for length in grey.shape[1:]]
    level = grey.flatten() * (LEVELS_PER_SIGMA / sigma_grey)
    levels = math.ceil(GREY_LEVELS * LEVELS_PER_SIGMA / sigma_grey) + 2
    shape = (len(grey), *(math.ceil(length / width) for length in grey.shape[1:]), levels)

    matrices = [_gaussian(length, sigma / width, grey.device) for length in shape[1:-1]]
    matrices.append(_gaussian(shape[-1], math.sqrt(LEVELS_PER_SIGMA**2 - 1 / 3), grey.device))

    z, y, x = places
    cell = torch.arange(math.prod(shape[:-1]), device=grey.device).view(shape[:-1])[:, z[:, None, None], y[:, None], x]
    nodes = cell.flatten() * shape[-1] + torch.stack([level.long(), level.long() + 1])  # (2, B D H W)
    weights = torch.stack([1 - level.frac(), level.frac()])

    def sum_over_pairs(values: Tensor) -> Tensor:
        grid = values.new_zeros(math.prod(shape))
        grid.index_add_(0, nodes.flatten(), (weights * values.flatten()).flatten())
        grid = _along_axes(grid.view(shape), matrices).flatten()
        return (weights * grid.take(nodes)).sum(dim=0).view_as(values)

    return sum_over_pairs


def _gaussian(length: int, sigma: float, device: torch.device) -> Tensor:
    """Gaussian of the distance between any two of the integers below ``length``; (length, length)."""
    positions = torch.arange(length, dtype=torch.float32, device=device)
    return torch.exp(-0.5 * ((positions[:, None] - positions) / sigma) ** 2)


def _along_axes(values: Tensor, matrices: list[Tensor]) -> Tensor:
    """Multiply each axis but the first by its matrix."""
    for matrix in matrices:  # each time the second axis goes and comes back as the last
        values = torch.tensordot(values, matrix, dims=([1], [0]))
    return values


def _pydensecrf2(probability: Tensor, grey: Tensor, mask: Tensor, settings: CrfSettings) -> Tensor:
    chunks = zip(probability.cpu().numpy(), grey.cpu().numpy(), mask.cpu().numpy() > 0, strict=True)
    return torch.stack([_pydensecrf2_chunk(*chunk, settings) for chunk in chunks]).to(probability.device)


def _pydensecrf2_chunk(
    probability: NDArray[np.float32], grey: NDArray[np.float32], mask: NDArray[np.bool_], settings: CrfSettings
) -> Tensor:
    require_engine(settings)
    from pydensecrf import densecrf, utils

    inside, result = mask.ravel(), np.zeros(grey.shape, dtype=np.float32)
    if not inside.any():
        return torch.from_numpy(result)
    softmax = np.stack([1 - probability[mask], probability[mask]])
    crf = densecrf.DenseCRF(softmax.shape[1], 2)
    crf.setUnaryEnergy(utils.unary_from_softmax(softmax, clip=SMALLEST_PROBABILITY))
    smoothness = utils.create_pairwise_gaussian(3 * [settings.smoothness_sigma], grey.shape)
    crf.addPairwiseEnergy(np.ascontiguousarray(smoothness[:, inside]), compat=settings.smoothness_weight)
    sigmas = 3 * [settings.appearance_sigma], settings.appearance_sigma_grey
    appearance = utils.create_pairwise_bilateral(*sigmas, grey)
    crf.addPairwiseEnergy(np.ascontiguousarray(appearance[:, inside]), compat=settings.appearance_weight)
    result[mask] = np.array(crf.inference(settings.iterations), dtype=np.float32)[1]
    return torch.from_numpy(result)
