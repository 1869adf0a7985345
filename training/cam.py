"""Stage cam: the baseline, class activation maps of a network that says whether a lobe has a lesion.

python -m training cam --data DATA --run-dir RUN
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from algorithm.errors import InputError
from algorithm.lobes import LOBES
from algorithm.network import PERIOD, UNet3D, require_legal_size
from training.cases import Case, of_split, read_cases
from training.chunks import resize_chunk
from training.files import save_array
from training.lobe_batches import LobeItem, ScoredLobe, augmented_batch, lobe_batches, plain_passes, scored_lobes
from training.loop import Terms, load_trained, make_fabric, train
from training.otsu import otsu_threshold
from training.parallel import console
from training.prepare import PreparedCase, prepared
from training.scan_maps import scan_map
from training.settings import CamSettings
from training.stages import Run

HEALTHY, DISEASED = 0, 1
CLASSES = 2


class CamNetwork(nn.Module):
    """The way down of the U-Net, a linear layer at every voxel of its coarsest level, and mean pooling over the lobe.

    Because the linear layer comes before the pooling, its output is the class activation map.

    Source: dRAM paper, IV-D; Zhou et al. (2016), Learning deep features for discriminative localization.
    """

    def __init__(self, *, width: int = 32) -> None:
        """Build the network; ``width`` is the number of filters of its first convolution."""
        super().__init__()
        unet = UNet3D(out_channels=1, width=width)
        self.down, self.bottom = unet.down, unet.bottom
        self.classify = nn.Conv3d(16 * width, CLASSES, kernel_size=1)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits of each lobe, and the map whose mean over the lobe they are.

        Args:
            image: intensity (B, 1, D, H, W), sizes that are multiples of 8.
            mask: the same shape, 1 inside the lobe and 0 outside; every chunk holds at least one lobe voxel.

        Returns:
            Logits (B, 2) and class map (B, 2, D / 8, H / 8, W / 8), healthy first.

        Raises:
            ValueError: a size is not a multiple of 8.
        """
        require_legal_size(tuple(image.shape[2:]), "same")
        x = image
        for block in self.down:
            x = functional.max_pool3d(block(x), 2)
        class_map = self.classify(self.bottom(x)).float()
        share = functional.avg_pool3d(mask, PERIOD)  # of each coarse voxel that is lobe, (B, 1, d, h, w)
        axes = (2, 3, 4)
        return (class_map * share).sum(dim=axes) / share.sum(dim=axes), class_map


def cam(run: Run, folder: Path) -> dict[str, Any]:
    """Train the classifier on the scored lobes of the training cases, and map the test cases.

    Writes <case>_cam.npy, float16 (z, y, x) in [0, 1] on the scan's grid.

    Raises:
        InputError: the scored lobes are all healthy or all diseased.
    """
    settings, seed = run.config.cam, run.config.seed
    fabric = make_fabric(run, settings.precision)
    cases = read_cases(run.data)
    lobes = scored_lobes(run, of_split(cases, "train"))
    diseased = _require_both_classes(lobes, run)

    def terms(model: nn.Module, items: list[LobeItem], step: int) -> Terms:
        batch = augmented_batch(
            items, size=settings.chunk_size, jitter_mm=settings.spacing_jitter_mm, seed=seed, device=fabric.device
        )
        logits, _ = model(batch.image, batch.mask)
        classes = torch.tensor([DISEASED if score > 0 else HEALTHY for score in batch.scores], device=fabric.device)
        return {"cross_entropy": (1.0, functional.cross_entropy(logits, classes))}

    batches = lobe_batches(lobes, size=settings.batch, seed=seed)
    plain = plain_passes(batches, size=settings.chunk_size, device=fabric.device, settled=settings.settled)
    untrained = CamNetwork(width=settings.width)
    train(fabric, untrained, batches, terms, settings, folder, plain=plain, readers=run.workers.count)
    network = load_trained(CamNetwork(width=settings.width), folder).to(fabric.device)
    mapped = of_split(cases, "test")
    with fabric.autocast():
        _write_maps(network, run, mapped[fabric.global_rank :: fabric.world_size], folder, fabric.device)
    fabric.barrier()
    return {"lobes": len(lobes), "diseased_lobes": diseased, "maps": len(mapped)}


def scan_cam(
    network: nn.Module, case: PreparedCase, settings: CamSettings, *, scales: Sequence[float], device: torch.device
) -> NDArray[np.float32]:
    """The class activation map of a whole scan for lesions, scaled to [0, 1] over all its lobes together.

    Args:
        network: a trained `CamNetwork`.
        case: caches of the scan.
        settings: chunk size, and whether lobes that are classified as healthy are zeroed.
        scales: of the chunk size; the maps are averaged.
        device: of the network.

    Returns:
        float32 (z, y, x) on the scan's grid, zero outside the lobes, and everywhere if the map is constant.
    """

    def lesion_map(image: Tensor, mask: Tensor) -> Tensor:
        _, class_map = network(image, mask)
        lesion = class_map[:, DISEASED : DISEASED + 1]
        return functional.interpolate(lesion, size=image.shape[2:], mode="trilinear", align_corners=False)

    lobes = case.array("scan_lobes")
    activation = scan_map(lesion_map, case, chunk_size=settings.chunk_size, scales=scales, device=device)
    scaled = min_max(activation, lobes > 0)
    if settings.skip_negative_lobes:
        scaled[np.isin(lobes, healthy_lobes(network, case, chunk_size=settings.chunk_size, device=device))] = 0
    return scaled


@torch.inference_mode()
def healthy_lobes(network: nn.Module, case: PreparedCase, *, chunk_size: int, device: torch.device) -> list[int]:
    """Labels of the lobes that the network takes for healthy."""
    present = np.unique(case.array("scan_lobes"))
    labels = []
    for lobe in LOBES:
        if lobe.label in present:
            logits, _ = network(*resize_chunk(case.chunk(lobe.key), chunk_size, device=device))
            if logits.argmax(dim=1).item() == HEALTHY:
                labels.append(lobe.label)
    return labels


def min_max(values: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scale the values inside a mask to [0, 1]: their minimum subtracted, then divided by their maximum.

    Args:
        values: (z, y, x).
        inside: the same shape.

    Returns:
        A new array, zero outside the mask; all zero where no two values inside differ.
    """
    scaled = np.zeros_like(values)
    if inside.any():
        shifted = values[inside] - values[inside].min()
        scaled[inside] = shifted / (shifted.max() or 1)
    return scaled


def raw_mask(cam: NDArray[np.floating[Any]], lobes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Lesion where a class activation map exceeds Otsu's threshold of its values in the lobes.

    Args:
        cam: scan-level map (z, y, x).
        lobes: lobe labels, the same shape.

    Returns:
        bool (z, y, x); empty if the map is constant or there is no lobe.
    """
    inside = lobes > 0
    mask: NDArray[np.bool_] = inside & (cam > otsu_threshold(cam[inside]))
    return mask


def refined_mask(
    cam: NDArray[np.floating[Any]],
    lobes: NDArray[np.uint8],
    *,
    intensity: NDArray[np.floating[Any]],
    vessels: NDArray[np.uint8],
    factor: float,
) -> NDArray[np.bool_]:
    """The raw mask where the attenuation is high and no vessel is.

    Args:
        cam: scan-level map (z, y, x).
        lobes: lobe labels, the same shape.
        intensity: windowed attenuation, 0 at -1200 HU and 1 at 300 HU, the same shape.
        vessels: 1 on vessels, the same shape.
        factor: of Otsu's threshold of the intensity in the lobes, that is of its height above -1200 HU.

    Returns:
        bool (z, y, x); empty if the map or the intensity is constant, or there is no lobe.
    """
    dense = intensity > factor * otsu_threshold(intensity[lobes > 0])
    mask: NDArray[np.bool_] = raw_mask(cam, lobes) & dense & (vessels == 0)
    return mask


def _require_both_classes(lobes: list[ScoredLobe], run: Run) -> int:
    """The number of diseased lobes, if it is neither none nor all."""
    diseased = sum(lobe.score > 0 for lobe in lobes)
    if diseased in (0, len(lobes)):
        raise InputError(
            f"{run.data}: {diseased} of {len(lobes)} scored training lobes have a lesion, expected some with and some "
            "without; the classifier of stage cam needs both"
        )
    return diseased


def _write_maps(network: nn.Module, run: Run, cases: list[Case], folder: Path, device: torch.device) -> None:
    for case in track(cases, "class activation maps", console=console):
        path = folder / f"{case.name}_cam.npy"
        if not path.is_file():
            scales = run.config.pseudo.scales
            scaled = scan_cam(network, prepared(run, case), run.config.cam, scales=scales, device=device)
            save_array(path, scaled.astype(np.float16))
