"""Stage fissures: a network that sees fissures, along which the borders of found lobes are drawn again.

python -m training fissures --data DATA --run-dir RUN
torchrun --nproc-per-node 2 -m training fissures --data DATA --run-dir RUN
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from algorithm.errors import InputError
from algorithm.fissures import fissure_input, lobe_borders
from algorithm.model import load_model
from algorithm.network import Padding, UNet3D
from training.appearance import draw_fissures, randomise
from training.batches import Batches
from training.chunks import take
from training.files import load_array, save_array
from training.lobe_scans import LobeScan, read_lobe_scan
from training.lobes import CACHE, about_the_start, cached_scans, cases_to_learn_from, measure_dice, validation_by_dice
from training.lobes import STAGE as LOBE_STAGE
from training.lobes import description as lobe_description
from training.lobes import trained as trained_chest_network
from training.logbook import Logbook
from training.loop import Terms, Validation, keep_best, load_trained, make_fabric, train
from training.parallel import over_scans
from training.settings import FissureSettings, LobeSettings
from training.settling import image_passes
from training.stages import Run
from training.vessels import vessel_terms

STAGE, BORDERS = "fissures", "borders"
PRIOR = 0.05  # share of voxels beside a fissure that the untrained network predicts


@dataclass(frozen=True)
class BorderedScan:
    """A training instance: a cached scan, and a file with the indices of its voxels beside a border of lobes."""

    scan: LobeScan
    borders: Path


@dataclass(frozen=True)
class Patch:
    """A cube of a scan in which lobes meet.

    Attributes:
        image: float32 (n, n, n), as `algorithm.fissures.fissure_input` gives it.
        borders: float32, 1 on either side of a border between two lobes.
        inside: float32, 1 in the lungs.
    """

    image: Tensor
    borders: Tensor
    inside: Tensor


def fissures(run: Run, folder: Path) -> dict[str, Any]:
    """Train on the scans of stage lobes; the best network is the one that its lobes gain most by.

    Returns:
        Dice of the validation cases, and as the lobe network alone has it.

    Raises:
        InputError: there is no training case, an image cannot be used, or `first_network` refuses.
    """
    settings, crops = run.config.fissures, run.config.lobes
    fabric, lobes_folder = make_fabric(run, settings.precision), run.folder(LOBE_STAGE)
    scans, validation = cached_scans(run, cases_to_learn_from(run.data), lobes_folder / CACHE, fabric)
    chest = trained_chest_network(crops, lobes_folder).to(fabric.device)
    network, started_from = first_network(settings, crops), about_the_start(settings.start_from, STAGE)

    def measure(network: nn.Module | None, step: int = 0, logbook: Logbook | None = None) -> dict[str, float]:
        copy = None
        if network is not None:
            copy = new_network(settings, "valid").eval()
            copy.load_state_dict(network.state_dict())
        return measure_dice(chest, validation, fabric.device, spacing_mm=crops.spacing_mm, fissures=copy)

    if settings.steps == 0:
        keep_best(fabric, network, 0, folder)
    else:
        bordered = [BorderedScan(scan, folder / BORDERS / f"{scan.name}.npy") for scan in scans]
        write_borders(bordered[fabric.global_rank :: fabric.world_size], run)
        fabric.barrier()
        judged = validation_by_dice(settings.validate_every, measure) if validation else None
        _train_on_patches(run, network, bordered, fabric, folder, judged)
    if not validation:
        return {"validation": {}, "without": {}} | started_from
    with torch.inference_mode(), fabric.autocast():
        return {"validation": measure(trained(settings, folder)), "without": measure(None)} | started_from


def _train_on_patches(
    run: Run, network: UNet3D, scans: list[BorderedScan], fabric: Fabric, folder: Path, judged: Validation | None
) -> None:
    settings, seed = run.config.fissures, run.config.seed
    patches = partial(random_patch, settings=settings, seed=seed)
    batches = Batches(scans, patches, size=settings.batch, seed=seed)
    as_they_are = Batches(scans, partial(patches, changed=False), size=settings.batch, seed=seed)

    def terms(model: nn.Module, patches: list[Patch], step: int) -> Terms:
        parts = zip(*((patch.image, patch.borders, patch.inside) for patch in patches), strict=True)
        image, target, inside = (torch.stack(part)[:, None].to(fabric.device) for part in parts)  # (B, 1, n, n, n)
        return vessel_terms(model(image.contiguous(memory_format=torch.channels_last_3d)), target, inside)

    train(
        fabric,
        network,
        batches,
        terms,
        settings,
        folder,
        plain=image_passes(as_they_are, device=fabric.device, settled=settings.settled),
        validation=judged,
        readers=run.workers.count,
    )


def new_network(settings: FissureSettings, padding: Padding = "same") -> UNet3D:
    """The untrained network; with either padding it has the same weights."""
    network = UNet3D(out_channels=1, width=settings.width, padding=padding)
    network.set_prior([PRIOR])
    return network


def first_network(settings: FissureSettings, lobes: LobeSettings) -> UNet3D:
    """The network that training begins with: an untrained one, or that of another model.

    Raises:
        InputError: the other model cannot be used, has no such network, or one that is built otherwise or sees another
            image than the lobe network's.
    """
    network = new_network(settings)
    if settings.start_from is None:
        return network
    model = load_model(settings.start_from)
    theirs, ours = model.description.lobe_network, lobe_description(lobes, fissure_width=settings.width)
    names = ("fissure_width", "spacing_mm", "window_hu")
    if model.lobe_networks is None or any(getattr(theirs, name) != getattr(ours, name) for name in names):
        raise InputError(
            f"fissures.start_from: {settings.start_from} has {theirs or 'no lobe network'}, expected "
            f"{', '.join(f'{name} {getattr(ours, name)}' for name in names)}; name another model, or set [lobes] and "
            "[fissures] as it was trained"
        )
    assert model.lobe_networks.fissures is not None
    network.load_state_dict(model.lobe_networks.fissures.state_dict())
    return network


def trained(settings: FissureSettings, folder: Path) -> UNet3D:
    """The network of a folder that the stage wrote, for use on the CPU, on whole scans."""
    return load_trained(new_network(settings, "valid"), folder)


def write_borders(scans: list[BorderedScan], run: Run) -> None:
    """Write where lobes meet in each scan, unless it is there already.

    Raises:
        InputError: lobes meet nowhere.
    """
    todo = [scan for scan in scans if not scan.borders.is_file()]
    over_scans("borders", _write_border, todo, run.workers)


def _write_border(scan: BorderedScan) -> None:
    found = np.flatnonzero(lobe_borders(read_lobe_scan(scan.scan).lobes.numpy()))
    if not found.size:
        raise InputError(
            f"case {scan.scan.name}: no two lobes of a lung meet, expected fissures to learn from; check its lobes, or "
            "take it out of the split train"
        )
    scan.borders.parent.mkdir(exist_ok=True)
    save_array(scan.borders, found)


def random_patch(
    bordered: BorderedScan, position: int, *, settings: FissureSettings, seed: int, changed: bool = True
) -> Patch:
    """A patch in which lobes meet, of random appearance.

    Args:
        bordered: where from.
        position: of the patch in the training.
        settings: of patches.
        seed: with the position, of all that is random.
        changed: whether fissures and lesions are put in, and the look is changed.
    """
    rng, size = np.random.default_rng([seed, 10, position]), settings.patch_size
    item, candidates = read_lobe_scan(bordered.scan), load_array(bordered.borders)
    centre = np.array(np.unravel_index(candidates[rng.integers(candidates.size)], item.lobes.shape))
    centre += rng.integers(-size // 4, size // 4 + 1, 3)
    image, lobes = (take(part.numpy(), tuple(centre), size) for part in (item.image, item.lobes))
    borders, shown = torch.from_numpy(lobe_borders(lobes)).float(), torch.from_numpy(image).float()
    if changed:
        if rng.random() < settings.drawn_share:
            shown = draw_fissures(shown, borders, rng)
        labels = torch.from_numpy(lobes).long()
        shown = randomise(shown, labels, rng, spotted_share=settings.spotted_share, consolidated_share=0.0)
    seen = fissure_input(shown.numpy(), lobes > 0)
    return Patch(torch.from_numpy(seen), borders, torch.from_numpy(lobes > 0).float())
