"""Stage pseudo: dRAMs of all lobes put back into the scan and thresholded, and vessels: labels of the final network.

python -m training pseudo --data DATA --run-dir RUN
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from algorithm.model import LESION, VESSEL
from algorithm.severity import SCORE_INTERVALS
from training.cases import Case, read_cases
from training.files import save_array
from training.loop import make_fabric
from training.parallel import over_scans
from training.prepare import PreparedCase, prepared
from training.regress import trained_network
from training.scan_maps import scan_map
from training.settings import PseudoSettings
from training.stages import Run
from training.vessels import scan_vessels

UNLIKELY = 0.25  # of a score's interval, at either end: readers err near it, and most lobes lie further inside


def pseudo(run: Run, folder: Path) -> dict[str, Any]:
    """Write dRAM and pseudo labels of every case that has not got both.

    Writes <case>_dram.npy, float16 probability, and <case>_labels.npy, uint8 classes, (z, y, x) on the scan's grid.
    """
    cases = read_cases(run.data)
    todo = [case for case in cases if not all(path.is_file() for path in _paths(folder, case))]
    on_gpu = make_fabric(run, run.config.regress.precision).device.type == "cuda"
    workers = replace(run.workers, count=1) if on_gpu else run.workers  # one network at a time on this machine's GPU
    over_scans("pseudo", partial(_write_case, run, folder), todo, workers)
    return {"cases": len(cases)}


def _write_case(run: Run, folder: Path, case: Case) -> None:
    fabric = make_fabric(run, run.config.regress.precision)
    network = trained_network(run).to(fabric.device)
    cache, settings = prepared(run, case), run.config.pseudo
    with fabric.autocast():
        dram = scan_dram(
            network,
            cache,
            chunk_size=run.config.regress.chunk_size,
            scales=settings.scales,
            device=fabric.device,
        )
    vessels, lobes = scan_vessels(run, case), cache.array("scan_lobes")
    labels = pseudo_labels(dram, case, lobes=lobes, vessels=vessels, settings=settings)
    dram_path, labels_path = _paths(folder, case)
    save_array(dram_path, dram.astype(np.float16))
    save_array(labels_path, labels)


def _paths(folder: Path, case: Case) -> tuple[Path, Path]:
    return folder / f"{case.name}_dram.npy", folder / f"{case.name}_labels.npy"


def scan_dram(
    network: nn.Module, case: PreparedCase, *, chunk_size: int, scales: Sequence[float], device: torch.device
) -> NDArray[np.float32]:
    """The refined dRAM of a whole scan: each lobe's, averaged over the scales, on that lobe's voxels.

    Args:
        network: a trained `DramNetwork`.
        case: caches of the scan.
        chunk_size: voxels per side at scale 1.
        scales: of the chunk size.
        device: of the network.

    Returns:
        float32 probability (z, y, x) on the scan's grid, zero outside the lobes.
    """

    def probability(image: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = network(image, mask).refined
        return logits.float().sigmoid()

    return scan_map(probability, case, chunk_size=chunk_size, scales=scales, device=device)


def pseudo_labels(
    dram: NDArray[np.float32],
    case: Case,
    *,
    lobes: NDArray[np.uint8],
    vessels: NDArray[np.uint8],
    settings: PseudoSettings,
) -> NDArray[np.uint8]:
    """Network classes from a dRAM: lesion above the threshold, but none on vessels.

    A score is used only where it may be, in training cases: a lobe of score 0 has no lesion, and with
    ``settings.fit_scores`` the threshold of every other scored lobe is moved as little as makes its share of lesion
    one that its score stands for. (Not in the paper: a mean over the lobe that has just reached its interval leaves
    labels that fall short of it.)

    Args:
        dram: probability (z, y, x).
        case: split and scores.
        lobes: lobe labels, the same shape.
        vessels: 1 on vessels, the same shape.
        settings: threshold, and whether it is moved.

    Returns:
        uint8 (z, y, x), 0 background, 1 vessel, 2 lesion.
    """
    labels = np.where(dram > settings.threshold, np.uint8(LESION), np.uint8(0))
    labels[vessels > 0] = VESSEL
    for label, score in case.scores.items() if case.split == "train" else ():
        lobe = lobes == label
        own = labels[lobe]
        if score == 0:
            own[own == LESION] = 0
        elif settings.fit_scores:
            own = _fitted(own, dram[lobe], score)
        labels[lobe] = own
    return labels


def _fitted(labels: NDArray[np.uint8], probability: NDArray[np.float32], score: int) -> NDArray[np.uint8]:
    """Labels of a lobe's voxels, (n,), with the likeliest ones lesion, as many as suit the score; vessels stay."""
    candidates = np.flatnonzero(labels != VESSEL)
    low, high = SCORE_INTERVALS[score]
    unlikely = UNLIKELY * (high - low)
    least, most = (round(share * labels.size) for share in (low + unlikely, high - unlikely))
    count = min(max(int((labels == LESION).sum()), least), most)
    likeliest = np.argsort(-probability[candidates], kind="stable")[:count]
    fitted = np.where(labels == VESSEL, labels, np.uint8(0))
    fitted[candidates[likeliest]] = LESION
    return fitted
