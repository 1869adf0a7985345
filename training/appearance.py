"""Random changes of how a whole chest looks, under which its lobes stay where they are.

What is learnt from phantoms must hold for real scans, of any scanner and with any disease: density, contrast, noise,
sharpness and field of view vary far beyond what is real, and lesions fill anything from a spot to a lung.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from algorithm.lobes import LEFT, LOBES, RIGHT

WINDOW_HU = (-1024.0, 400.0)  # of the lobe network's input, for which all else is meant
CONSOLIDATION_HU = (-140.0, 90.0)
GLASS_GAIN_HU = (100.0, 570.0)
FISSURE_GAIN_HU = (15.0, 150.0)  # of the voxels on either side of a border, of the lobe network's 1.5 mm
CELL_VOXELS = (6, 32)  # between the independent values of a random field


def randomise(
    image: Tensor, lobes: Tensor, rng: np.random.Generator, *, spotted_share: float, consolidated_share: float
) -> Tensor:
    """Give a chest lesions and another look.

    Args:
        image: windowed intensity in [0, 1], (D, H, W).
        lobes: labels of `algorithm.lobes.LOBES`, (D, H, W).
        rng: draws everything.
        spotted_share: probability of lesions, anything from a spot to a lobe.
        consolidated_share: probability of consolidation of one lung, or of both, on one side of a plane. Where most
            chests have either, lung is expected behind any dense edge.

    Returns:
        The same shape, in [0, 1].
    """
    lungs = (lobes > 0).float()
    if rng.random() < spotted_share:
        image, _ = add_lesions(image, _some_lobes(lobes, rng), rng, window_hu=WINDOW_HU)
    if rng.random() < consolidated_share:
        image = _consolidate_side(image, lobes, rng)
    image = _change_contrast(image, lungs, rng)
    image = torch.lerp(image, functional.avg_pool3d(image[None], 3, 1, 1)[0], float(rng.uniform(-0.4, 1.0)))
    if rng.random() < 0.25:
        image = _thicken_slices(image, rng)
    image = image + _noise(image, rng)
    return _narrow_view(image.clamp(0, 1), rng)


def random_field(shape: tuple[int, ...], rng: np.random.Generator, device: torch.device) -> Tensor:
    """A smooth random field (D, H, W) of mean about 0 and deviation about 0.5, with structure of a random size."""
    cell = rng.uniform(*CELL_VOXELS)
    coarse = rng.standard_normal([max(2, round(n / cell)) for n in shape], dtype=np.float32)
    values = torch.from_numpy(coarse).to(device)[None, None]
    return functional.interpolate(values, size=shape, mode="trilinear", align_corners=False)[0, 0]


def draw_fissures(image: Tensor, borders: Tensor, rng: np.random.Generator) -> Tensor:
    """Put faint to bright sheets where lobes meet, absent in places.

    Args:
        image: windowed intensity, (D, H, W).
        borders: 1 on either side of a border between two lobes, else 0, the same shape.
        rng: draws everything.
    """
    low, high = (math.log(gain / (WINDOW_HU[1] - WINDOW_HU[0])) for gain in FISSURE_GAIN_HU)
    whole = (random_field(tuple(image.shape), rng, image.device) * 2 + float(rng.uniform(0.2, 1.6))).clamp(0, 1)
    return image + borders * whole * math.exp(rng.uniform(low, high))


def _some_lobes(lobes: Tensor, rng: np.random.Generator) -> Tensor:
    """1 where some of the lobes are, one at least, else 0."""
    chosen = rng.random(len(LOBES)) < rng.uniform(0.2, 1.0)
    chosen[rng.integers(len(LOBES))] = True
    return _members(lobes, [lobe.label for lobe, taken in zip(LOBES, chosen, strict=True) if taken])


def _members(lobes: Tensor, labels: Sequence[int]) -> Tensor:
    return torch.isin(lobes, torch.tensor(labels, device=lobes.device)).float()


def add_lesions(
    image: Tensor, where: Tensor, rng: np.random.Generator, *, window_hu: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Put ground-glass, and as often as not consolidation, into a random share of a region.

    Args:
        image: windowed intensity, (D, H, W).
        where: 1 in the region, else 0, the same shape.
        rng: draws everything.
        window_hu: HU that are 0 and 1 in the image.

    Returns:
        The image, and the share of consolidation, which hides what is in it, both (D, H, W).
    """
    field = random_field(tuple(image.shape), rng, image.device)
    soft = ((field - _quantile(field, where, float(rng.uniform(0.1, 0.95)))) * rng.uniform(3, 20) + 0.5).clamp(0, 1)
    texture = 1 + 0.3 * random_field(tuple(image.shape), rng, image.device)
    low, high = window_hu
    image = image + soft * where * float(rng.uniform(*GLASS_GAIN_HU) / (high - low)) * texture
    if rng.random() < 0.5:
        return image, torch.zeros_like(image)
    core = ((field - _quantile(field, where, float(rng.uniform(0.5, 0.98)))) * 10 + 0.5).clamp(0, 1) * where
    return torch.lerp(image, _solid(image, rng, window_hu), core), core


def _consolidate_side(image: Tensor, lobes: Tensor, rng: np.random.Generator) -> Tensor:
    """Consolidation of one lung, or of both, on one side of a rough plane."""
    side = (LEFT, RIGHT)[rng.integers(2)]
    where = _members(lobes, side if rng.random() < 0.8 else LEFT + RIGHT)
    normal = rng.normal(size=3) + (-0.7, 0.7, 0.0)  # rather low and at the back
    ramps = (torch.linspace(-1, 1, n, device=image.device) for n in image.shape)
    z, y, x = torch.meshgrid(*ramps, indexing="ij")
    height = normal[0] * z + normal[1] * y + normal[2] * x + 0.3 * random_field(tuple(image.shape), rng, image.device)
    level = _quantile(height, where, float(rng.uniform(0.1, 0.8)))
    share = ((height - level) * float(rng.uniform(5, 40)) + 0.5).clamp(0, 1)
    return torch.lerp(image, _solid(image, rng, WINDOW_HU), share * where)


def _solid(image: Tensor, rng: np.random.Generator, window_hu: tuple[float, float]) -> Tensor:
    """Consolidated lung, in places with air left in it."""
    low, high = window_hu
    solid = float((rng.uniform(*CONSOLIDATION_HU) - low) / (high - low)) + 0.03 * random_field(
        tuple(image.shape), rng, image.device
    )
    return torch.lerp(image, solid, float(rng.uniform(0.75, 1.0)))


def _quantile(values: Tensor, where: Tensor, share: float) -> float:
    """What a share of the values in a region lies below; 0 where there is no region."""
    inside = values[where > 0.5]
    return float(inside[:: max(1, len(inside) // 20_000)].quantile(share)) if len(inside) else 0.0


def _change_contrast(image: Tensor, lungs: Tensor, rng: np.random.Generator) -> Tensor:
    """Density of lungs and tissue, uneven brightness, and a gamma curve."""
    uneven = 0.05 * rng.random() * random_field(tuple(image.shape), rng, image.device)
    tissue = (image > 0.5) * (1 - lungs)
    image = image + lungs * float(rng.uniform(-0.06, 0.10)) + tissue * (float(rng.uniform(-0.08, 0.12)) + uneven)
    gained = image.clamp(0, 1) ** float(np.exp(rng.uniform(-0.35, 0.35)))
    return gained * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(-0.04, 0.04))


def _thicken_slices(image: Tensor, rng: np.random.Generator) -> Tensor:
    """The mean of 3 or 5 slices in each."""
    slices = 3 if rng.random() < 0.6 else 5
    return functional.avg_pool3d(image[None], (slices, 1, 1), 1, (slices // 2, 0, 0), count_include_pad=False)[0]


def _noise(image: Tensor, rng: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32)).to(image.device)
    if rng.random() < 0.5:
        noise = 2 * functional.avg_pool3d(noise[None], 3, 1, 1)[0]
    return noise * float(0.06 * rng.random() ** 2)


def _narrow_view(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Now and then a round field of view, empty outside, or a box that shows nothing."""
    depth, height, width = image.shape
    if rng.random() < 0.3:
        y, x = (torch.arange(n, device=image.device) - n * float(rng.uniform(0.42, 0.58)) for n in (height, width))
        radius = float(rng.uniform(0.42, 0.6)) * max(height, width)
        image = image * (torch.hypot(y[:, None], x[None]) < radius)
    if rng.random() < 0.2:
        starts = [int(rng.integers(n)) for n in (depth, height, width)]
        box = tuple(slice(start, start + int(rng.integers(8, 60))) for start in starts)
        image = image.clone()
        image[box] = float(rng.random())
    return image
