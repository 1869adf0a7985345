"""Lobes from the CT alone: a network over the whole scan, and smooth borders at the CT's own voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from algorithm.engine import make_network
from algorithm.errors import InputError
from algorithm.fissures import along_fissures
from algorithm.folded_network import FoldedUNet
from algorithm.images import Geometry, Volume
from algorithm.lobe_checks import doubts_about_found, doubts_about_given, require_lungs
from algorithm.lobe_input import lobe_network_input
from algorithm.lobes import LEFT, LOBES, RIGHT, check_lobes
from algorithm.model import Model
from algorithm.orientation import from_canonical, to_canonical
from algorithm.preprocess import Box, bounding_box, covering_grid, crop, cropped, resample

Source = Literal["given", "model", "lungmask"]
LUNG_MARGIN_MM = 12.0  # around the lungs, when the network is given them alone
SMALLEST_PROBABILITY = 0.02  # below which a lobe is not looked for
LARGEST_IMAGE_VOXELS = 80_000_000  # of the network's image; each takes 90 bytes at the most


@dataclass(frozen=True)
class FoundLobes:
    """Lobes of a scan, and how far to trust them.

    Attributes:
        labels: uint8, labels of `algorithm.lobes.LOBES`, on the CT's grid.
        source: who drew them.
        confidence: by label, the Dice that the network expects of its own lobe, 0 to 1; empty where lobes were given.
        warnings: what is implausible about them.
    """

    labels: Volume
    source: Source
    confidence: dict[int, float]
    warnings: list[str]


def given_lobes(lobes: Volume, ct: Volume) -> FoundLobes:
    """Lobes that came with the scan; they are trusted, and what is odd about them is said.

    Raises:
        InputError: they do not fit the CT.
    """
    labels = check_lobes(lobes, ct)
    return FoundLobes(labels, "given", {}, doubts_about_given(labels, ct))


def found_lobes(labels: Volume, ct: Volume, source: Source, confidence: dict[int, float]) -> FoundLobes:
    """Lobes that were found in a scan, on its grid, after a check of what is plausible.

    Raises:
        InputError: there are no lungs.
    """
    require_lungs(labels, ct)
    return FoundLobes(labels, source, confidence, doubts_about_found(to_canonical(labels), confidence))


class LobeSegmenter:
    """The lobe networks of a loaded model on a device."""

    def __init__(self, model: Model, device: torch.device) -> None:
        """Put the networks on a device.

        Raises:
            InputError: the model holds no lobe network.
        """
        if model.lobe_networks is None or model.description.lobe_network is None:
            raise InputError(
                "got a CT without lobes, and this model cannot find them; give a lobe mask (--lobes, or the socket "
                "pulmonary-lobes), or use a model with a lobe network"
            )
        self.settings = model.description.lobe_network
        chest, fissures = model.lobe_networks.chest, model.lobe_networks.fissures
        self.network = chest.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.fissures = make_network(fissures, device=device) if fissures is not None else None
        self.device = device

    def segment(self, ct: Volume) -> FoundLobes:
        """Find the lobes.

        Args:
            ct: HU, (z, y, x), any orientation.

        Raises:
            InputError: there are no lungs, or the scan is too large for the network.
        """
        canonical = to_canonical(ct)
        voxels = math.prod(covering_grid(ct.geometry, spacing_mm=self.settings.spacing_mm).size_zyx)
        if voxels > LARGEST_IMAGE_VOXELS:
            extent_mm = [f"{n * s:.0f}" for n, s in zip(ct.geometry.size_zyx, ct.geometry.spacing_zyx_mm, strict=True)]
            raise InputError(
                f"got a scan of {' x '.join(extent_mm)} mm (z, y, x), {voxels / 1e6:.0f} million voxels at "
                f"{self.settings.spacing_mm:g} mm, expected {LARGEST_IMAGE_VOXELS / 1e6:.0f} million at most to find "
                "lobes in; crop it to the chest, or give a lobe mask"
            )
        image = lobe_network_input(canonical, spacing_mm=self.settings.spacing_mm, window_hu=self.settings.window_hu)
        spacing_mm = self.settings.spacing_mm
        probability = lobe_probability(self.network, image.array, self.device, spacing_mm=spacing_mm)
        confidence = expected_dice(probability)
        if self.fissures is not None:
            found = hard_labels(probability)
            probability = along_fissures(probability, found, image.array, self.fissures, spacing_mm=spacing_mm)
        labels = labels_at(probability, image.geometry, canonical.geometry)
        return found_lobes(from_canonical(canonical.with_array(labels), ct.geometry), ct, "model", confidence)


def lobe_probability(
    network: FoldedUNet, image: NDArray[np.float32], device: torch.device, *, spacing_mm: float
) -> NDArray[np.float32]:
    """Probability of background and of each lobe, by label: of the whole scan, and again of the box around the lungs.

    Normalisation sees all that the network is given, and what lies around the lungs differs from scan to scan; the
    second time there is as much of it as in training.

    Args:
        network: six logits, same padding, in evaluation mode on ``device``.
        image: a whole scan as `algorithm.lobe_input.lobe_network_input` makes it, (z, y, x).
        device: where to compute.
        spacing_mm: of the image.

    Returns:
        float32 (6, z, y, x).
    """
    probability = probability_at_once(network, image, device)
    keep_lungs(probability)
    lungs = probability[0] < 0.5
    if not lungs.any():
        return probability
    box = bounding_box(lungs, (math.ceil(LUNG_MARGIN_MM / spacing_mm),) * 3)
    around_lungs = probability_at_once(network, np.ascontiguousarray(image[box]), device)
    keep_main_parts(around_lungs)
    probability[0], probability[1:] = 1, 0
    probability[(slice(None), *box)] = around_lungs
    return probability


@torch.inference_mode()
def probability_at_once(network: FoldedUNet, image: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
    """What `lobe_probability` gives, of a scan or a part of it as it is."""
    least = 2 * network.period  # instance normalisation needs more than one voxel at the coarsest level
    missing = [max(-n % network.period, least - n) for n in image.shape]
    padded = functional.pad(torch.from_numpy(image), [k for n in missing[::-1] for k in (0, n)])
    depth, height, width = image.shape
    logits = network(padded[None, None].to(device))[0, :, :depth, :height, :width]
    probability: NDArray[np.float32] = logits.float().softmax(dim=0).cpu().numpy()
    return probability


def hard_labels(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The likeliest lobe of each voxel that is rather lung than background, uint8 (z, y, x).

    Args:
        probability: (6, z, y, x), background first.
    """
    labels, best = np.ones(probability.shape[1:], dtype=np.uint8), probability[1].copy()
    for lobe in LOBES[1:]:  # NumPy's argmax over the first axis takes fifteen times as long
        own = probability[lobe.label]
        labels[own > best] = lobe.label
        np.maximum(own, best, out=best)
    labels[probability[0] >= 0.5] = 0
    return labels


def keep_main_parts(probability: NDArray[np.float32]) -> None:
    """Take out what is apart from the bulk of either lung, and give strays of a lobe to their surroundings, in place.

    Args:
        probability: (6, z, y, x), background first.
    """
    keep_lungs(probability)
    labels = hard_labels(probability)
    for lobe in LOBES:
        member = labels == lobe.label
        stray = member & (cc3d.largest_k(member, k=1, connectivity=6) == 0)
        others = probability[1:, stray]
        others[lobe.label - 1] = 0
        others *= (1 - probability[0, stray]) / np.maximum(others.sum(axis=0), np.finfo(np.float32).tiny)
        probability[1:, stray] = others


def keep_lungs(probability: NDArray[np.float32]) -> None:
    """Take out what is apart from the bulk of either lung, in place.

    Args:
        probability: (6, z, y, x), background first.
    """
    labels = hard_labels(probability)
    for side in (LEFT, RIGHT):
        lung = np.isin(labels, side)
        stray = lung & (cc3d.largest_k(lung, k=1, connectivity=6) == 0)
        probability[:, stray] = 0
        probability[0, stray] = 1


def expected_dice(probability: NDArray[np.float32]) -> dict[int, float]:
    """Dice of each lobe that is there, by label, if every probability were right.

    Args:
        probability: (6, z, y, x), background first.
    """
    labels = hard_labels(probability)
    expected = {}
    for lobe in LOBES:
        member = labels == lobe.label
        if member.any():
            own = probability[lobe.label]
            expected[lobe.label] = float(2 * own[member].sum() / (member.sum() + own.sum()))
    return expected


def labels_at(probability: NDArray[np.float32], coarse: Geometry, fine: Geometry) -> NDArray[np.uint8]:
    """The likeliest lobe at the voxels of another grid, by linear interpolation of the probabilities.

    Args:
        probability: (6, z, y, x), background first, on ``coarse``.
        coarse: a grid that covers ``fine`` edge to edge (`algorithm.preprocess.covering_grid`).
        fine: the CT's grid.

    Returns:
        uint8 (z, y, x) on ``fine``.
    """
    labels = np.zeros(fine.size_zyx, dtype=np.uint8)
    if not (probability[0] < 0.5).any():
        return labels
    lungs_box = _box_on(_box_of(probability[1:].max(axis=0)), coarse, fine)
    inside = labels[lungs_box]
    best, lung = (np.zeros(inside.shape, dtype=np.float32) for _ in range(2))
    for lobe in LOBES:
        own = probability[lobe.label]
        if not (own > SMALLEST_PROBABILITY).any():
            continue
        box = _box_of(own)
        target = _box_on(box, coarse, fine)
        value = resample(crop(Volume(own, coarse), box), cropped(fine, target), "linear").array
        local = tuple(
            slice(part.start - whole.start, part.stop - whole.start)
            for part, whole in zip(target, lungs_box, strict=True)
        )
        inside[local][value > best[local]] = lobe.label
        np.maximum(best[local], value, out=best[local])
        lung[local] += value
    inside[lung <= 0.5] = 0
    return labels


def _box_of(probability: NDArray[np.float32]) -> Box:
    return bounding_box(probability > SMALLEST_PROBABILITY, (1, 1, 1))


def _box_on(box: Box, coarse: Geometry, fine: Geometry) -> Box:
    """The voxels of a fine grid that a box of voxels of the coarse grid that covers it reaches into."""
    parts = []
    for axis, part in enumerate(box):
        ratio, size = coarse.spacing_zyx_mm[axis] / fine.spacing_zyx_mm[axis], fine.size_zyx[axis]
        start = min(math.floor(part.start * ratio), size - 1)
        parts.append(slice(start, max(start + 1, min(math.ceil(part.stop * ratio), size))))
    return parts[0], parts[1], parts[2]
