"""Stage pseudo: dRAMs of all lobes put back into the scan and thresholded: the labels of the final network.

python -m training pseudo --data DATA --run RUN
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import nn

from algorithm.lobes import LOBES
from algorithm.segmenter import LESION
from training.cases import Case, read_cases
from training.chunks import resize_chunk, to_scan
from training.loop import make_fabric
from training.prepare import PreparedCase, prepared
from training.regress import trained_network
from training.stages import Run, console


def pseudo(run: Run, folder: Path) -> dict[str, Any]:
    """Write dRAM and pseudo labels of every case that has not got them."""
    fabric = make_fabric(run.device, run.config.regress.precision)
    network = fabric.setup_module(trained_network(run)).eval()
    cases = read_cases(run.data)
    for case in track(cases, "pseudo", console=console):
        if (folder / f"{case.name}_labels.npy").is_file():
            continue
        dram = scan_dram(network, prepared(run, case), run.config.regress.chunk_size, fabric.device)
        labels = pseudo_labels(dram, case, prepared(run, case).array("scan_lobes"), run.config.pseudo.threshold)
        _save(folder / f"{case.name}_dram.npy", dram.astype(np.float16))
        _save(folder / f"{case.name}_labels.npy", labels)
    return {"cases": len(cases)}


@torch.inference_mode()
def scan_dram(network: nn.Module, case: PreparedCase, chunk_size: int, device: torch.device) -> NDArray[np.float32]:
    """The dRAM of a whole scan: each lobe's, on that lobe's voxels.

    Returns:
        float32 probability (z, y, x) on the scan's grid, zero outside the lobes.
    """
    lobes = case.array("scan_lobes")
    grid = case.geometry("scan")
    whole = np.zeros(lobes.shape, dtype=np.float32)
    for lobe in LOBES:
        inside = lobes == lobe.label
        if not inside.any():
            continue
        chunk = case.chunk(lobe.key)
        image, _ = resize_chunk(chunk, chunk_size, device=device)
        dram = network(image).float().sigmoid()[0, 0].cpu().numpy()
        whole[inside] = to_scan(dram, chunk.geometry, grid)[inside]
    return whole


def pseudo_labels(
    dram: NDArray[np.float32], case: Case, lobes: NDArray[np.uint8], threshold: float
) -> NDArray[np.uint8]:
    """Network classes from a dRAM: lesion above the threshold, but none in a training lobe that scored 0.

    Args:
        dram: probability (z, y, x).
        case: its scores are used only where they may be: in training cases.
        lobes: lobe labels.
        threshold: probability above which a voxel becomes lesion.
    """
    healthy = [label for label, score in case.scores.items() if score == 0 and case.split == "train"]
    lesion = (dram > threshold) & ~np.isin(lobes, healthy)
    return np.where(lesion, np.uint8(LESION), np.uint8(0))


def _save(path: Path, array: NDArray[Any]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.save(file, array)
    os.replace(temporary, path)
