"""Lobes from the CT alone: a network over the whole scan, and smooth borders at the CT's own voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from algorithm.engine import make_network
from algorithm.errors import InputError
from algorithm.fissures import along_fissures
from algorithm.folded_network import FoldedUNet
from algorithm.images import Volume
from algorithm.lobe_checks import doubts_about_found, doubts_about_given, require_lungs
from algorithm.lobe_input import lobe_network_input
from algorithm.lobe_labels import expected_dice, keep_lungs, keep_main_parts, labels_at
from algorithm.lobes import check_lobes
from algorithm.model import Model
from algorithm.orientation import from_canonical, to_canonical
from algorithm.preprocess import bounding_box, covering_grid

Source = Literal["given", "model", "lungmask"]
LUNG_MARGIN_MM = 12.0  # around the lungs, when the network is given them alone
LARGEST_IMAGE_VOXELS = 80_000_000  # of the network's image; each takes 90 bytes at the most


@dataclass(frozen=True)
class FoundLobes:
    """Lobes of a scan, and how far to trust them.

    Attributes:
        labels: uint8, labels of `algorithm.lobes.LOBES`, on the CT's grid.
        source: who drew them.
        confidence: by label, the Dice that the network expects of its own lobe, before borders are drawn again along
            fissures, 0 to 1; empty where lobes were given.
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
            probability = along_fissures(probability, image.array, self.fissures, spacing_mm=spacing_mm)
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
