"""Stage pseudo: dRAMs of all lobes put back into the scan and thresholded, and vessels: labels of the final network.

python -m training pseudo --data DATA --run-dir RUN
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from algorithm.model import LESION, VESSEL
from training.borders import PROBABILITY_BORDERS, best_border
from training.cases import Case, of_split, read_cases
from training.files import load_array, save_array
from training.loop import make_fabric
from training.parallel import over_scans
from training.prepare import PreparedCase, prepared
from training.regress import trained_network
from training.scan_maps import scan_map
from training.stages import Run
from training.vessels import scan_vessels


def pseudo(run: Run, folder: Path) -> dict[str, Any]:
    """Write the dRAM of every case, and the pseudo labels of those to learn from, that have not got them.

    Writes <case>_dram.npy, float16 probability, and <case>_labels.npy, uint8 classes, (z, y, x) on the scan's grid.

    Returns:
        ``cases``, and ``threshold``, the probability above which a voxel is lesion.
    """
    cases = read_cases(run.data)
    on_gpu = make_fabric(run, run.config.regress.precision).device.type == "cuda"
    workers = replace(run.workers, count=1) if on_gpu else run.workers  # one network at a time on this machine's GPU
    without = [case for case in cases if not _dram_path(folder, case).is_file()]
    over_scans("dRAMs", partial(_write_dram, run, folder), without, workers)
    threshold = chosen_threshold(run, lambda case: load_array(_dram_path(folder, case)))
    todo = [case for case in cases if case.split != "test" and not _labels_path(folder, case).is_file()]
    over_scans("pseudo labels", partial(_write_labels, run, folder, threshold), todo, run.workers)
    return {"cases": len(cases), "threshold": threshold}


def chosen_threshold(run: Run, dram: Callable[[Case], NDArray[np.floating[Any]]]) -> float:
    """The threshold of the settings, or the one under which the validation lobes' scores agree best.

    Args:
        run: with settings and caches.
        dram: of a case, on its scan's grid.
    """
    if run.config.pseudo.threshold is not None:
        return run.config.pseudo.threshold
    cases = of_split(read_cases(run.data), "validation")
    maps = ((dram(case), prepared(run, case).array("scan_lobes"), case.scores) for case in cases)
    return best_border(maps, PROBABILITY_BORDERS, otherwise=0.5)


def dram_of_case(run: Run, case: Case) -> NDArray[np.float32]:
    """The dRAM that the stage wrote, probability (z, y, x) on the scan's grid."""
    return load_array(_dram_path(run.folder("pseudo"), case)).astype(np.float32)


def _write_dram(run: Run, folder: Path, case: Case) -> None:
    fabric = make_fabric(run, run.config.regress.precision)
    network = trained_network(run).to(fabric.device)
    size, scales = run.config.regress.chunk_size, run.config.pseudo.scales
    with fabric.autocast():
        dram = scan_dram(network, prepared(run, case), chunk_size=size, scales=scales, device=fabric.device)
    save_array(_dram_path(folder, case), dram.astype(np.float16))


def _write_labels(run: Run, folder: Path, threshold: float, case: Case) -> None:
    vessels, lobes = scan_vessels(run, case), prepared(run, case).array("scan_lobes")
    dram = load_array(_dram_path(folder, case))
    vessel_wins = run.config.pseudo.vessel_wins
    labels = pseudo_labels(dram, case, lobes=lobes, vessels=vessels, threshold=threshold, vessel_wins=vessel_wins)
    save_array(_labels_path(folder, case), labels)


def _dram_path(folder: Path, case: Case) -> Path:
    return folder / f"{case.name}_dram.npy"


def _labels_path(folder: Path, case: Case) -> Path:
    return folder / f"{case.name}_labels.npy"


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
    dram: NDArray[np.floating[Any]],
    case: Case,
    *,
    lobes: NDArray[np.uint8],
    vessels: NDArray[np.uint8],
    threshold: float,
    vessel_wins: bool,
) -> NDArray[np.uint8]:
    """Network classes from a dRAM: lesion above the threshold, but none in training lobes of score 0.

    Args:
        dram: probability (z, y, x).
        case: its scores are used only where they may be: in training cases.
        lobes: lobe labels, the same shape.
        vessels: 1 on vessels, the same shape.
        threshold: probability above which a voxel becomes lesion.
        vessel_wins: whether a voxel of both is vessel, or lesion.

    Returns:
        uint8 (z, y, x), 0 background, 1 vessel, 2 lesion.
    """
    healthy = [label for label, score in case.scores.items() if score == 0 and case.split == "train"]
    lesions = (dram > threshold) & ~np.isin(lobes, healthy)
    labels = np.where(lesions, np.uint8(LESION), np.uint8(0))
    labels[(vessels > 0) & (vessel_wins | ~lesions)] = VESSEL
    return labels
