"""Stage lobes: a network that finds the lobes of a scan that comes without, learnt from any scans that have them.

python -m training lobes --data DATA --run-dir RUN
torchrun --nproc-per-node 2 -m training lobes --data DATA --run-dir RUN
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

from algorithm.engine import make_network
from algorithm.errors import InputError
from algorithm.fissures import along_fissures
from algorithm.folded_network import FoldedUNet
from algorithm.lobe_labels import hard_labels
from algorithm.lobe_segmenter import lobe_probability
from algorithm.lobes import LOBES
from algorithm.model import LobeNetwork, load_model
from algorithm.network import UNet3D
from evaluation.metrics import dice
from training.batches import Batches
from training.cases import Case, of_split, read_table
from training.lobe_scans import LobeScan, LobeScanItem, cache_scan, random_crop, read_lobe_scan
from training.logbook import Logbook
from training.loop import Terms, Validation, keep_best, load_trained, make_fabric, train
from training.parallel import over_scans
from training.settings import LobeSettings
from training.stages import Run

STAGE, CACHE = "lobes", "cache"
PRIOR = (0.8, *(0.04 for _ in LOBES))


def lobes(run: Run, folder: Path) -> dict[str, Any]:
    """Train on the CTs and lobe masks of the training cases; those of the validation cases choose the best network.

    Returns:
        The numbers of ``training_cases`` and ``validation_cases``, Dice of the latter, and of a network that did not
        begin untrained, what it was ``started_from``.

    Raises:
        InputError: there is no training case, an image cannot be used, or the model to start from is of another kind.
    """
    settings, seed, spacing = run.config.lobes, run.config.seed, run.config.lobes.spacing_mm
    cases = cases_to_learn_from(run.data)
    fabric = make_fabric(run, settings.precision)
    network, started_from = first_network(settings), about_the_start(settings.start_from, STAGE)
    scans, validation = cached_scans(run, cases, folder / CACHE, fabric)

    def terms(model: nn.Module, items: list[LobeScanItem], step: int) -> Terms:
        crops = (random_crop(item, settings, seed=seed, device=fabric.device) for item in items)
        image, target = (torch.cat(part) for part in zip(*crops, strict=True))
        return lobe_terms(model(image), target)

    def measure(network: nn.Module, step: int, logbook: Logbook) -> dict[str, float]:
        assert isinstance(network, FoldedUNet)
        return measure_dice(network, validation, fabric.device, spacing_mm=spacing)

    if settings.steps == 0:
        keep_best(fabric, network, 0, folder)
    else:
        batches = Batches(scans, read_lobe_scan, size=settings.batch, seed=seed)
        judged = validation_by_dice(settings.validate_every, measure) if validation else None
        train(fabric, network, batches, terms, settings, folder, validation=judged, readers=run.workers.count)
    best = trained(settings, folder).to(fabric.device)
    with torch.inference_mode(), fabric.autocast():
        results = measure_dice(best, validation, fabric.device, spacing_mm=spacing) if validation else {}
    numbers = {"training_cases": len(scans), "validation_cases": len(validation), "validation": results}
    return numbers | started_from


def validation_by_dice(every: int, measure: Callable[[nn.Module, int, Logbook], dict[str, float]]) -> Validation:
    """The best network is the one of the greatest mean Dice."""
    return Validation(every, 0, measure, lambda values: (values["dice"],))


def cached_scans(run: Run, cases: list[Case], folder: Path, fabric: Fabric) -> tuple[list[LobeScan], list[LobeScan]]:
    """The scans of the training and of the validation cases; processes share the work of caching them in a folder."""
    train, validation = (of_split(cases, split) for split in ("train", "validation"))
    mine = [*train, *validation][fabric.global_rank :: fabric.world_size]
    over_scans("scans", partial(cache_scan, folder=folder, settings=run.config.lobes), mine, run.workers)
    fabric.barrier()
    return [LobeScan(case.name, folder) for case in train], [LobeScan(case.name, folder) for case in validation]


def cases_to_learn_from(data: Path) -> list[Case]:
    """The cases of a data directory, some training ones among them.

    Raises:
        InputError: there is no training case, or the table cannot be used.
    """
    cases = read_table(data)
    if not of_split(cases, "train"):
        raise InputError(f"{data}: got no case with split train, expected some with CT and lobes to learn from")
    return cases


def description(settings: LobeSettings, *, fissure_width: int | None = None) -> LobeNetwork:
    """What model.json says of the network, and of the one that follows fissures, where there is one."""
    return LobeNetwork(
        width=settings.width,
        spacing_mm=settings.spacing_mm,
        fold=settings.fold,
        fissure_width=fissure_width,
        window_hu=settings.window_hu,
    )


def new_network(settings: LobeSettings) -> FoldedUNet:
    """The untrained network."""
    network = description(settings).untrained().chest
    network.set_prior(PRIOR)
    return network


def first_network(settings: LobeSettings) -> FoldedUNet:
    """The network that training begins with: an untrained one, or that of another model.

    Raises:
        InputError: the other model cannot be used, has no lobe network, or one that is built otherwise.
    """
    if settings.start_from is None:
        return new_network(settings)
    model = load_model(settings.start_from)
    theirs = model.description.lobe_network
    ours = description(settings, fissure_width=theirs.fissure_width if theirs else None)
    if model.lobe_networks is None or theirs != ours:
        raise InputError(
            f"lobes.start_from: {settings.start_from} has {theirs or 'no lobe network'}, expected {ours}; "
            "name another model, or set [lobes] as it was trained"
        )
    return model.lobe_networks.chest.train()


def about_the_start(start_from: Path | None, stage: str) -> dict[str, Any]:
    """Which network of another model the training of a stage began with, and how that one was trained."""
    if start_from is None:
        return {}
    about = load_model(start_from).description
    return {
        "started_from": {"lobe_weights_sha256": about.identity.lobe_weights_sha256, **about.training.get(stage, {})}
    }


def trained(settings: LobeSettings, folder: Path) -> FoldedUNet:
    """The network of a folder that the stage wrote, for use on the CPU."""
    return load_trained(new_network(settings), folder)


def lobe_terms(logits: Tensor, target: Tensor) -> Terms:
    """Cross-entropy of all classes, and inside the lungs a Dice loss over the lobes.

    The outline of the lungs is left to cross-entropy alone: where it is uncertain, a Dice loss moves it outward.

    Args:
        logits: (B, 6, D, H, W), background first.
        target: labels, (B, D, H, W).
    """
    inside = target > 0
    cross_entropy = functional.cross_entropy(logits.float(), target)
    lobes = logits[:, 1:].movedim(1, 0)[:, inside].float()  # (5, voxels of the lungs)
    probability, member = lobes.softmax(dim=0), functional.one_hot(target[inside] - 1, len(LOBES)).T
    dices = (2 * (probability * member).sum(dim=1) + 1) / (probability.sum(dim=1) + member.sum(dim=1) + 1)
    return {"cross_entropy": (1.0, cross_entropy), "dice": (1.0, 1 - dices.mean())}


def measure_dice(
    network: FoldedUNet,
    scans: list[LobeScan],
    device: torch.device,
    *,
    spacing_mm: float,
    fissures: UNet3D | None = None,
) -> dict[str, float]:
    """Mean Dice of each lobe, by its key, and over all lobes, on the network's own grid.

    Args:
        network: finds the lobes.
        scans: to measure on.
        device: where to compute.
        spacing_mm: of the network.
        fissures: sees the fissures along which borders are drawn again, with valid padding; None leaves them.
    """
    per_lobe: dict[str, list[float]] = {lobe.key: [] for lobe in LOBES}
    sees_fissures = make_network(fissures, device=device) if fissures is not None else None
    for scan in scans:
        item = read_lobe_scan(scan)
        image = item.image.float().numpy()
        probability = lobe_probability(network, image, device, spacing_mm=spacing_mm)
        if sees_fissures is not None:
            probability = along_fissures(probability, image, sees_fissures, spacing_mm=spacing_mm)
        found, reference = hard_labels(probability), item.lobes.numpy()
        for lobe in LOBES:
            if (reference == lobe.label).any():
                per_lobe[lobe.key].append(dice(reference == lobe.label, found == lobe.label))
    means = {key: float(np.mean(values)) for key, values in per_lobe.items() if values}
    return {"dice": float(np.mean(list(means.values()))), **means}
