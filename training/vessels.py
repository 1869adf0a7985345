"""Stage vessels: where the vessels of every scan run, learnt from healthy scans, lest they be taken for lesions.

python -m training vessels --data DATA --run-dir RUN
torchrun --nproc-per-node 2 -m training vessels --data DATA --run-dir RUN
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from algorithm.engine import make_network
from algorithm.errors import InputError
from algorithm.images import Volume
from algorithm.inference_network import InferenceNetwork
from algorithm.lobes import LOBES
from algorithm.model import LESION, VESSEL
from algorithm.network import Padding, UNet3D
from algorithm.preprocess import WINDOW_HU, resample
from algorithm.tiling import predict_scan
from evaluation.metrics import dice
from training.appearance import CONSOLIDATION_HU, add_lesions
from training.augment import flip, stretch_contrast
from training.batches import Batches
from training.cases import Case, of_split, read_cases
from training.chunks import take
from training.files import load_array, save_array, whole_folder
from training.loop import Terms, load_trained, make_fabric, train
from training.parallel import console, over_scans
from training.prepare import PreparedCase, prepared
from training.settings import VesselSettings
from training.settling import image_passes
from training.stages import Run
from training.vesselness import eroded, reference_vessels, without_thick

STAGE, MASKS = "vessels", "masks"
PRIOR = 0.05  # share of vessels that the untrained network predicts
VESSEL_SHARE = 0.5  # of patches that are centred on a vessel
DENSEST_LESION = (CONSOLIDATION_HU[1] - WINDOW_HU[0]) / (WINDOW_HU[1] - WINDOW_HU[0])  # vessels may be denser
TILE_MEMORY_BYTES = 4e9


@dataclass(frozen=True)
class HealthyScan:
    """A training instance: a prepared case, and a file with uint8 (2, z, y, x): reference vessels, eroded lungs."""

    case: PreparedCase
    reference: Path


@dataclass(frozen=True)
class Patch:
    """A cube of a healthy scan.

    Attributes:
        image: float32 (n, n, n), zero outside the lobes.
        vessels: float32, 1 on reference vessels.
        inside: float32, 1 in the eroded lungs; what lies beyond has no reference.
    """

    image: Tensor
    vessels: Tensor
    inside: Tensor


def vessels(run: Run, folder: Path) -> dict[str, Any]:
    """Make reference vessels of the healthy training cases, train a network on them, and apply it to all cases.

    Writes references/<case>.npy for the healthy cases, and for every case a folder masks/<case> with scan.npy and a
    file for each of its lobe chunks.

    Raises:
        InputError: no case is healthy, or a healthy case has no voxel that looks like a vessel.
    """
    cases = read_cases(run.data)
    references = folder / "references"
    references.mkdir(exist_ok=True)
    scans = [HealthyScan(prepared(run, case), references / f"{case.name}.npy") for case in healthy_cases(cases)]
    fabric = make_fabric(run, run.config.vessels.precision)
    mine = slice(fabric.global_rank, None, fabric.world_size)
    _write_references(run, scans[mine])
    fabric.barrier()
    _train(run, fabric, scans, folder)
    _predict(run, fabric, cases[mine], folder)
    fabric.barrier()
    return {"healthy_cases": len(scans), "cases": len(cases), **_measures(run, cases, folder)}


def scan_vessels(run: Run, case: Case | PreparedCase) -> NDArray[np.uint8]:
    """Vessel mask of a case on its scan's grid, uint8 (z, y, x), zero outside the lobes.

    Raises:
        InputError: the stage is not done, or the file is missing or damaged.
    """
    return load_array(run.folder(STAGE) / MASKS / case.name / "scan.npy")


def chunk_vessels(run: Run, case: Case | PreparedCase, key: str) -> NDArray[np.uint8]:
    """Vessel mask of a case on the grid of a lobe's chunk, uint8 (z, y, x), neighbouring lobes included.

    Raises:
        InputError: the stage is not done, or the file is missing or damaged.
    """
    return load_array(run.folder(STAGE) / MASKS / case.name / f"{key}.npy")


def healthy_cases(cases: list[Case]) -> list[Case]:
    """The healthy training cases.

    Raises:
        InputError: there is none.
    """
    healthy = [case for case in of_split(cases, "train") if case.is_healthy]
    if not healthy:
        raise InputError(
            "vessels: no healthy case to learn from, expected at least one with split train and score 0 in all five "
            "lobes; add scans of healthy lungs to cases.csv"
        )
    return healthy


def random_patch(
    scan: HealthyScan, position: int, *, settings: VesselSettings, seed: int, stretched: bool = True
) -> Patch:
    """A patch centred on a random reference vessel or, as often, on a random voxel of the eroded lungs, augmented.

    Some get lesions, lest all that is dense in diseased lungs be taken for vessels; vessels show in ground-glass, and
    consolidation hides them.

    Args:
        scan: where from.
        position: of the patch in the training.
        settings: of patches.
        seed: with the position, of all that is random.
        stretched: whether the contrast is changed.
    """
    rng = np.random.default_rng([seed, 6, position])
    reference, eroded_lungs = load_array(scan.reference)
    candidates = np.flatnonzero(reference if rng.random() < VESSEL_SHARE else eroded_lungs)
    centre = np.unravel_index(candidates[rng.integers(candidates.size)], reference.shape)
    arrays = (scan.case.mapped("scan_image"), reference, eroded_lungs)
    cubes = (take(array, centre, settings.patch_size) for array in arrays)
    image, vessel, inside = flip([torch.from_numpy(cube.astype(np.float32)) for cube in cubes], rng)
    if rng.random() < settings.spotted_share:
        lesions, hidden = add_lesions(image, (image > 0).float(), rng, window_hu=WINDOW_HU)
        image = torch.minimum(lesions, image.clamp(min=DENSEST_LESION))
        vessel = vessel * (hidden < 0.5)
    return Patch(image=stretch_contrast(image, rng) if stretched else image, vessels=vessel, inside=inside)


def vessel_terms(logits: Tensor, target: Tensor, inside: Tensor) -> Terms:
    """Cross-entropy and soft Dice loss over the voxels of a batch that have a reference, equally weighted.

    Args:
        logits: (B, 1, D, H, W).
        target: the same shape, 1 on vessels.
        inside: the same shape, 1 where there is a reference, at one voxel at least.
    """
    logits = logits.float()
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, target, inside, reduction="sum") / inside.sum()
    probability, target = logits.sigmoid() * inside, target * inside
    overlap = (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
    return {"cross_entropy": (1.0, cross_entropy), "dice": (1.0, 1 - overlap)}


def new_network(settings: VesselSettings, padding: Padding = "same") -> UNet3D:
    """The untrained vessel network; with either padding it has the same weights."""
    network = UNet3D(out_channels=1, width=settings.width, padding=padding)
    network.set_prior([PRIOR])
    return network


def vessel_probability(
    network: InferenceNetwork, image: NDArray[np.floating[Any]], lungs: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Vessel probability of a whole scan, in tiles that fit into memory and do not show in the result.

    Args:
        network: one logit.
        image: windowed intensity (z, y, x), zero outside the lobes.
        lungs: bool, the same shape; what lies far from them stays zero.
    """
    return predict_scan(
        network,
        image.astype(np.float32),
        lungs,
        lambda logits: logits[0].sigmoid(),
        memory_bytes=TILE_MEMORY_BYTES,
    )


def _write_references(run: Run, scans: list[HealthyScan]) -> None:
    todo = [scan for scan in scans if not scan.reference.is_file()]
    over_scans("vessel references", partial(_write_reference, run.config.vessels), todo, run.workers)


def _write_reference(settings: VesselSettings, scan: HealthyScan) -> None:
    lungs, spacing_mm = scan.case.array("scan_lobes") > 0, scan.case.geometry("scan").spacing_zyx_mm[0]
    inner = eroded(lungs, spacing_mm=spacing_mm, erosion_mm=settings.erosion_mm)
    reference = reference_vessels(
        scan.case.array("scan_image"),
        lungs,
        inner,
        spacing_mm=spacing_mm,
        sigmas_mm=settings.sigmas_mm,
        alpha=settings.alpha,
        beta=settings.beta,
    )
    if not reference.any():
        raise InputError(
            f"case {scan.case.name}: no vessel found {settings.erosion_mm} mm or more inside the lungs, expected a "
            "healthy scan with visible vessels; check its CT and lobes, or take it out of the split train"
        )
    save_array(scan.reference, np.stack([reference, inner]))


def _train(run: Run, fabric: Fabric, scans: list[HealthyScan], folder: Path) -> None:
    settings, device = run.config.vessels, fabric.device
    patches = partial(random_patch, settings=settings, seed=run.config.seed)
    batches = Batches(scans, patches, size=settings.batch, seed=run.config.seed)

    def terms(model: nn.Module, patches: list[Patch], step: int) -> Terms:
        parts = zip(*((patch.image, patch.vessels, patch.inside) for patch in patches), strict=True)
        image, target, inside = (torch.stack(part)[:, None].to(device) for part in parts)  # (B, 1, n, n, n)
        return vessel_terms(model(image.contiguous(memory_format=torch.channels_last_3d)), target, inside)

    as_they_are = Batches(scans, partial(patches, stretched=False), size=settings.batch, seed=run.config.seed)
    plain = image_passes(as_they_are, device=device, settled=settings.settled)
    train(fabric, new_network(settings), batches, terms, settings, folder, plain=plain, readers=run.workers.count)


def _predict(run: Run, fabric: Fabric, cases: list[Case], folder: Path) -> None:
    """Write the masks of the cases that have not got them."""
    settings = run.config.vessels
    network = make_network(load_trained(new_network(settings, "valid"), folder), device=fabric.device)
    todo = [case for case in (prepared(run, case) for case in cases) if not _has_masks(case, folder / MASKS)]
    for case in track(todo, "vessels", console=console):
        image, lungs, grid = case.array("scan_image"), case.array("scan_lobes") > 0, case.geometry("scan")
        probability = vessel_probability(network, image, lungs)
        mask = (probability > settings.threshold) & lungs
        mask = without_thick(mask, spacing_mm=grid.spacing_zyx_mm[0], thickest_mm=settings.thickest_mm)
        _write_masks(case, Volume(mask.astype(np.uint8), grid), folder / MASKS)


def _has_masks(case: PreparedCase, folder: Path) -> bool:
    return all((folder / case.name / f"{grid}.npy").is_file() for grid in _grids(case))


def _write_masks(case: PreparedCase, mask: Volume, folder: Path) -> None:
    """The masks of scan and chunks, in a folder that appears when it is complete."""
    shutil.rmtree(folder / case.name, ignore_errors=True)
    with whole_folder(folder / case.name) as unnamed:
        for grid in _grids(case):
            on_grid = mask if grid == "scan" else resample(mask, case.geometry(grid), "nearest")
            save_array(unnamed / f"{grid}.npy", on_grid.array)


def _grids(case: PreparedCase) -> list[str]:
    """The scan and the chunks that a case has."""
    return ["scan", *(lobe.key for lobe in LOBES if case.has(f"{lobe.key}_mask"))]


def _measures(run: Run, cases: list[Case], folder: Path) -> dict[str, float]:
    """Mean vessel share of the lungs; where references are known, what the masks are worth in validation cases.

    That is the share of the masks that is lesion, and, where vessels are known, the mean Dice beside lesions.
    """
    shares, dices, mistaken = [], [], []
    for case in cases:
        caches = prepared(run, case)
        lungs = caches.array("scan_lobes") > 0
        mask = load_array(folder / MASKS / case.name / "scan.npy") > 0
        shares.append(mask[lungs].mean())
        if case.split != "validation" or not caches.has("scan_classes"):
            continue
        classes = caches.array("scan_classes")
        mistaken.append(classes[mask] == LESION)
        if case.vessels is not None:
            counted = lungs & (classes != LESION)
            dices.append(dice(classes[counted] == VESSEL, mask[counted]))
    measures = {"vessel_share": float(np.mean(shares))}
    if any(part.size for part in mistaken):
        measures["lesion_share"] = float(np.concatenate(mistaken).mean())
    if dices:
        measures["dice_against_reference"] = float(np.mean(dices))
    return measures
