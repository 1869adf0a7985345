"""The borders of found lobes, drawn again along the fissures that a network sees."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch.nn import functional

from algorithm.inference_network import InferenceNetwork
from algorithm.lobe_labels import hard_labels
from algorithm.lobes import LEFT, LOBES, RIGHT
from algorithm.preprocess import bounding_box
from algorithm.tiling import predict_scan

LUNG_WINDOW = 0.4  # of the lobe network's intensity: -454 HU, where 0 and 1 are -1024 and 400
BAND_MM = 10.0  # to either side of a border, in which it is drawn again
CORE_QUANTILE = 0.8  # of the distances in a lobe that lies in the band altogether
TILE_MEMORY_BYTES = 1.3e9  # so that most lungs are one tile
WALL = 2.0  # around a lung: higher than any fissure


def lobe_borders(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """The voxels on either side of a border between two lobes of one lung.

    Args:
        labels: of `algorithm.lobes.LOBES`, (z, y, x).
    """
    found, left = np.zeros(labels.shape, dtype=bool), labels <= max(LEFT)
    for axis in range(labels.ndim):
        below, above = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        lower, upper = labels[below], labels[above]
        border = (lower != upper) & (lower > 0) & (upper > 0) & (left[below] == left[above])
        found[below] |= border
        found[above] |= border
    return found


def fissure_input(image: NDArray[np.floating], lungs: NDArray[np.bool_]) -> NDArray[np.float32]:
    """What the fissure network sees: the lungs, in a window in which a fissure has contrast.

    Args:
        image: the lobe network's, (z, y, x).
        lungs: the same shape.

    Returns:
        In [0, 1], zero outside the lungs.
    """
    return np.where(lungs, np.minimum(image / LUNG_WINDOW, 1), 0).astype(np.float32)


def along_fissures(
    probability: NDArray[np.float32],
    image: NDArray[np.float32],
    network: InferenceNetwork,
    *,
    spacing_mm: float,
) -> NDArray[np.float32]:
    """Probability of lobes whose borders follow the fissures; that of the background stays as it is.

    Args:
        probability: of background and lobes by another network, (6, z, y, x).
        image: the lobe network's, (z, y, x).
        network: one logit, of a voxel beside a fissure.
        spacing_mm: of the image.
    """
    labels = hard_labels(probability)
    if not labels.any():
        return probability
    box = bounding_box(labels > 0, (1, 1, 1))
    distance_mm = distance_to_border_mm(labels[box], spacing_mm)
    redrawn = redraw(labels[box], fissure_probability(network, image[box], labels[box], distance_mm), distance_mm)
    members = torch.from_numpy(np.stack([redrawn == lobe.label for lobe in LOBES])).float()
    share = functional.avg_pool3d(members, 3, stride=1, padding=1).numpy()
    share /= np.maximum(share.sum(axis=0), np.finfo(np.float32).tiny)
    result = np.zeros_like(probability)
    result[0] = probability[0]
    result[(slice(1, None), *box)] = (1 - probability[0][box]) * share
    return result


def distance_to_border_mm(labels: NDArray[np.uint8], spacing_mm: float) -> NDArray[np.float32]:
    """Distance of each voxel to the nearest border between two lobes of a lung; infinite where there is none."""
    borders = lobe_borders(labels)
    if not borders.any():
        return np.full(labels.shape, np.inf, dtype=np.float32)
    image = sitk.GetImageFromArray(borders.astype(np.uint8))
    image.SetSpacing((spacing_mm,) * 3)
    signed = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)  # negative inside
    distance_mm: NDArray[np.float32] = np.maximum(sitk.GetArrayFromImage(signed), 0)
    return distance_mm


def fissure_probability(
    network: InferenceNetwork,
    image: NDArray[np.float32],
    labels: NDArray[np.uint8],
    distance_mm: NDArray[np.float32],
) -> NDArray[np.float32]:
    """How likely each voxel near a border of the lobes lies beside a fissure; zero far from them.

    Args:
        network: one logit.
        image: the lobe network's, (z, y, x).
        labels: of the lobes, the same shape.
        distance_mm: to the nearest border, the same shape.
    """
    lungs = labels > 0
    near = lungs & (distance_mm <= BAND_MM)
    if not near.any():
        return np.zeros(image.shape, dtype=np.float32)
    return predict_scan(
        network,
        fissure_input(image, lungs),
        near,
        lambda logits: logits[0].sigmoid(),
        memory_bytes=TILE_MEMORY_BYTES,
    )


def redraw(
    labels: NDArray[np.uint8], fissure: NDArray[np.float32], distance_mm: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Let lobes grow from their cores until they meet, at a fissure where there is one: a watershed, lung by lung.

    Args:
        labels: of the lobes, (z, y, x).
        fissure: how likely a voxel lies beside one, the same shape.
        distance_mm: to the nearest border of the lobes, the same shape; cores are farther than `BAND_MM`.

    Returns:
        Labels of the same lungs.

    Source: Lassen et al. (2013), Automatic segmentation of the pulmonary lobes from chest CT scans based on fissures,
    vessels, and bronchi: of their cost image the fissures, by a network in place of a filter.
    """
    result = labels.copy()
    for side in (LEFT, RIGHT):
        lung = np.isin(labels, side)
        if not (lung & (distance_mm <= BAND_MM)).any():
            continue
        box = bounding_box(lung, (0, 0, 0))
        height = np.where(lung, fissure, WALL)[box].astype(np.float32)
        cores = np.where(lung, _cores(np.where(lung, labels, 0), distance_mm), 0)[box].astype(np.uint8)
        grown = sitk.MorphologicalWatershedFromMarkers(
            sitk.GetImageFromArray(height), sitk.GetImageFromArray(cores), markWatershedLine=False
        )
        result[box][lung[box]] = sitk.GetArrayFromImage(grown)[lung[box]]
    return result


def _cores(labels: NDArray[np.uint8], distance_mm: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The part of each lobe that is its own in any case: what is far from borders, or farthest, if nothing is far."""
    cores = np.where(distance_mm > BAND_MM, labels, 0).astype(np.uint8)
    for lobe in LOBES:
        own = labels == lobe.label
        if own.any() and not (cores == lobe.label).any():
            cores[own & (distance_mm >= np.quantile(distance_mm[own], CORE_QUANTILE))] = lobe.label
    return cores
