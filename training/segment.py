"""Stage segment: the final network, a valid-padding 3D U-Net on crops of whole scans.

python -m training segment --data DATA --run-dir RUN                      # on pseudo labels
python -m training segment --data DATA --run-dir RUN --labels reference   # the supervised upper bound
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from algorithm.engine import make_network
from algorithm.errors import InputError
from algorithm.images import Volume
from algorithm.inference_network import InferenceNetwork
from algorithm.margin import lesion_margin
from algorithm.model import CLASSES, LESION
from algorithm.network import CONTEXT, UNet3D
from training.augment import flip, stretch_contrast
from training.batches import Batches
from training.borders import MARGIN_BORDERS, best_border
from training.cases import of_split, read_cases
from training.chunks import take
from training.files import load_array
from training.loop import Terms, load_trained, make_fabric, train
from training.losses import bootstrapping_loss
from training.parallel import console
from training.prepare import PreparedCase, prepared
from training.settings import SegmentSettings
from training.settling import image_passes
from training.stages import Run

Labels = Literal["pseudo", "reference"]
CLASS_PRIOR = (0.9, 0.02, 0.08)
MEMORY_BYTES = 4e9  # for a tile of the network over a scan


@dataclass(frozen=True)
class LabelledScan:
    """A prepared case and the file with its classes, 0 background, 1 vessel, 2 lesion."""

    case: PreparedCase
    labels: Path


@dataclass(frozen=True)
class Crop:
    """Input and target of one place in a scan.

    Attributes:
        image: float32 (n, n, n).
        labels: int64 (n - 88,) * 3.
        inside: bool, the same shape, whether the voxel lies in a lobe.
        position: in the sequence of all crops of the training; seeds what is random about it.
    """

    image: Tensor
    labels: Tensor
    inside: Tensor
    position: int


def segment(run: Run, folder: Path) -> dict[str, Any]:
    """Train the final network on pseudo labels of the training cases."""
    return _train(run, folder, "pseudo")


def segment_reference(run: Run, folder: Path) -> dict[str, Any]:
    """Train the final network on reference labels of the training cases: the supervised upper bound."""
    return _train(run, folder, "reference")


def _train(run: Run, folder: Path, labels: Labels) -> dict[str, Any]:
    """Returns the number of ``scans``, the ``labels``, and ``lesion_margin``, the border that inference takes."""
    settings, seed = run.config.segment, run.config.seed
    fabric = make_fabric(run, settings.precision)
    scans = labelled_scans(run, labels)
    crops = partial(random_crop, settings=settings, seed=seed)
    batches = Batches(scans, crops, size=settings.batch, seed=seed)

    def terms(model: nn.Module, crops: list[Crop], step: int) -> Terms:
        image, target, inside = augmented_crops(crops, seed=seed, device=fabric.device)
        return {"bootstrapping": (1.0, mean_loss(model(image), target, inside, beta=settings.beta))}

    plain = image_passes(batches, device=fabric.device, settled=settings.settled)
    train(fabric, new_network(settings), batches, terms, settings, folder, plain=plain, readers=run.workers.count)
    network = make_network(load_trained(new_network(settings), folder), device=fabric.device)
    return {"scans": len(scans), "labels": labels, "lesion_margin": _chosen_margin(run, network)}


def _chosen_margin(run: Run, network: InferenceNetwork) -> float:
    """The margin of the settings, or the one under which the validation lobes' scores agree best."""
    if run.config.segment.lesion_margin is not None:
        return run.config.segment.lesion_margin
    cases = track(of_split(read_cases(run.data), "validation"), "lesion margin", console=console)
    maps = (
        (scan_margin(network, cache).array, cache.array("scan_lobes"), case.scores)
        for case, cache in ((case, prepared(run, case)) for case in cases)
    )
    return best_border(maps, MARGIN_BORDERS, otherwise=0.0)


def scan_margin(network: InferenceNetwork, case: PreparedCase) -> Volume:
    """By how much lesion is likelier than any other class, on the scan's grid (`algorithm.margin.lesion_margin`)."""
    image = Volume(case.array("scan_image").astype(np.float32), case.geometry("scan"))
    return lesion_margin(network, image, case.array("scan_lobes") > 0, memory_bytes=MEMORY_BYTES)


def stage_name(labels: Labels) -> str:
    """The stage's folder: the upper bound has its own."""
    return "segment" if labels == "pseudo" else "segment-reference"


def new_network(settings: SegmentSettings) -> UNet3D:
    """The untrained final network."""
    network = UNet3D(out_channels=len(CLASSES), width=settings.width, padding="valid")
    network.set_prior(CLASS_PRIOR)
    return network


def trained_network(run: Run, labels: Labels = "pseudo") -> UNet3D:
    """The final network of a finished stage."""
    return load_trained(new_network(run.config.segment), run.folder(stage_name(labels)))


def lesion_border(run: Run, labels: Labels = "pseudo") -> float:
    """The margin above which a finished stage's network says lesion."""
    return float(run.record(stage_name(labels))["results"]["lesion_margin"])


def labelled_scans(run: Run, labels: Labels) -> list[LabelledScan]:
    """The training cases with the labels to learn from.

    Raises:
        InputError: reference labels are asked for and a training case has none.
    """
    cases = [prepared(run, case) for case in of_split(read_cases(run.data), "train")]
    if labels == "pseudo":
        folder = run.folder("pseudo")
        return [LabelledScan(case, folder / f"{case.name}_labels.npy") for case in cases]
    without = [case.name for case in cases if not case.has("scan_classes")]
    if without:
        raise InputError(f"reference labels: {', '.join(without)} have none in cases.csv; fill the column lesions")
    return [LabelledScan(case, case.folder / "scan_classes.npy") for case in cases]


def random_crop(scan: LabelledScan, position: int, *, settings: SegmentSettings, seed: int) -> Crop:
    """A crop centred on a random lesion voxel or, else, on a random lobe voxel.

    Args:
        scan: where from.
        position: of the crop in the training.
        settings: of crops.
        seed: with the position, of all that is random.
    """
    rng = np.random.default_rng([seed, 2, position])
    lobes = scan.case.array("scan_lobes")
    classes = load_array(scan.labels)
    wants_lesion = rng.random() < settings.lesion_share
    candidates = np.flatnonzero(classes == LESION if wants_lesion else lobes)
    if not candidates.size:
        candidates = np.flatnonzero(lobes)
    centre = np.unravel_index(candidates[rng.integers(candidates.size)], lobes.shape)
    size, out = settings.crop_size, settings.crop_size - 2 * CONTEXT
    image = take(scan.case.mapped("scan_image"), centre, size)
    return Crop(
        image=torch.from_numpy(image.astype(np.float32)),
        labels=torch.from_numpy(take(classes, centre, out).astype(np.int64)),
        inside=torch.from_numpy(take(lobes, centre, out) > 0),
        position=position,
    )


def augmented_crops(crops: list[Crop], *, seed: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror crops and stretch their contrast, on the device.

    Args:
        crops: of a step.
        seed: with a crop's position, of its randomness.
        device: where the work is done.

    Returns:
        Image (B, 1, n, n, n), labels and inside (B, n - 88, ...).
    """
    images, labels, inside = [], [], []
    for crop in crops:
        rng = np.random.default_rng([seed, 3, crop.position])
        image, target, lobe = flip([part.to(device) for part in (crop.image, crop.labels, crop.inside)], rng)
        images.append(stretch_contrast(image, rng)[None])
        labels.append(target)
        inside.append(lobe)
    batch = torch.stack(images).contiguous(memory_format=torch.channels_last_3d)
    return batch, torch.stack(labels), torch.stack(inside)


def mean_loss(logits: Tensor, labels: Tensor, inside: Tensor, *, beta: float) -> Tensor:
    """Mean over the crops of the bootstrapping loss of each, however much of it lies in a lobe.

    Args:
        logits: (B, K, D, H, W).
        labels: (B, D, H, W).
        inside: the same shape, voxels that count.
        beta: weight of the label.
    """
    crops = zip(logits, labels, inside, strict=True)
    return torch.stack([bootstrapping_loss(*(part[None] for part in crop), beta=beta) for crop in crops]).mean()
