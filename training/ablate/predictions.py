"""The lesion mask of each row for a scan, on the CT's own grid."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from algorithm.engine import make_network
from algorithm.images import Volume
from algorithm.preprocess import bounding_box, crop, resample
from training.ablate.rows import Row
from training.cam import raw_mask, refined_mask
from training.cases import Case, Scan
from training.files import load_array
from training.loop import make_fabric
from training.otsu import otsu_threshold
from training.prepare import PreparedCase, prepared
from training.pseudo import chosen_threshold, dram_of_case, scan_dram
from training.regress import load_dram, train_dram
from training.segment import Labels, lesion_border, scan_margin, trained_network
from training.settings import RegressSettings
from training.stages import Run
from training.vessels import scan_vessels

Predictor = Callable[[Case, Scan], NDArray[np.bool_]]
"""A case and its images to the lesion mask (z, y, x) on the CT's grid, inside the lobes."""


def make_predictor(run: Run, row: Row, folder: Path) -> Predictor:
    """The predictor of a row, after its training where the row has one of its own.

    Args:
        run: the run.
        row: one of `table_rows`.
        folder: the row's, for its training.

    Raises:
        InputError: a stage that the row needs is not done.
    """
    if row.settings is not None:
        return _dram_of_row(run, row.settings, folder)
    makers: dict[str, Callable[[Run], Predictor]] = {
        "threshold": _threshold,
        "cam-raw": _cam_raw,
        "cam-refinement": _cam_refined,
        "dram-vessel-suppression": _dram_of_run,
        "dram-context": lambda run: _network(run, "pseudo"),
        "supervised": lambda run: _network(run, "reference"),
    }
    return makers[row.slug](run)


def on_ct_grid(margin: Volume, scan: Scan) -> NDArray[np.bool_]:
    """Lesion on the CT's grid where the linearly interpolated margin is positive, inside the lobes.

    Args:
        margin: float32 (z, y, x) on any grid, positive where there is lesion.
        scan: the case's images.
    """
    box = bounding_box(scan.lobes.array)
    lesions = np.zeros(scan.ct.array.shape, dtype=bool)
    lesions[box] = resample(margin, crop(scan.ct, box).geometry, "linear").array > 0
    return lesions & (scan.lobes.array > 0)


def margin_of_mask(mask: NDArray[np.bool_], cache: PreparedCase) -> Volume:
    """What `on_ct_grid` takes, of a mask on the grid of a prepared scan: 0.5 in it, -0.5 elsewhere in the lobes."""
    return _margin_in_lobes(mask.astype(np.float32) - np.float32(0.5), cache)


def _margin_in_lobes(margin: NDArray[np.float32], cache: PreparedCase) -> Volume:
    """A margin of 0 outside the lobes, where nothing is known: it decides nothing of the voxels at their rim."""
    return Volume(np.where(cache.array("scan_lobes") > 0, margin, np.float32(0)), cache.geometry("scan"))


def _threshold(run: Run) -> Predictor:
    """The bright voxels of the lobes, without vessels."""

    def predict(case: Case, scan: Scan) -> NDArray[np.bool_]:
        vessels = margin_of_mask(scan_vessels(run, case) > 0, prepared(run, case))
        inside = (scan.lobes.array > 0) & ~on_ct_grid(vessels, scan)
        bright: NDArray[np.bool_] = inside & (scan.ct.array > otsu_threshold(scan.ct.array[inside]))
        return bright

    return predict


def _cam(folder: Path, case: Case) -> NDArray[np.float32]:
    return load_array(folder / f"{case.name}_cam.npy").astype(np.float32)


def _cam_raw(run: Run) -> Predictor:
    folder = run.folder("cam")

    def predict(case: Case, scan: Scan) -> NDArray[np.bool_]:
        cache = prepared(run, case)
        mask = raw_mask(_cam(folder, case), cache.array("scan_lobes"))
        return on_ct_grid(margin_of_mask(mask, cache), scan)

    return predict


def _cam_refined(run: Run) -> Predictor:
    folder = run.folder("cam")

    def predict(case: Case, scan: Scan) -> NDArray[np.bool_]:
        cache = prepared(run, case)
        mask = refined_mask(
            _cam(folder, case),
            cache.array("scan_lobes"),
            intensity=cache.array("scan_image").astype(np.float32),
            vessels=scan_vessels(run, case),
            factor=run.config.cam.attenuation_factor,
        )
        return on_ct_grid(margin_of_mask(mask, cache), scan)

    return predict


def _dram_of_run(run: Run) -> Predictor:
    """The dRAM that the pseudo labels were made of, above their threshold."""
    return _above(run, partial(dram_of_case, run), run.record("pseudo")["results"]["threshold"])


def _dram_of_row(run: Run, settings: RegressSettings, folder: Path) -> Predictor:
    """The dRAM of a network that is trained in the row's folder."""
    train_dram(run, settings, folder)
    fabric = make_fabric(run, settings.precision)
    network = load_dram(settings, folder).to(fabric.device)
    size, scales = settings.chunk_size, run.config.pseudo.scales

    def dram(case: Case) -> NDArray[np.float32]:
        with fabric.autocast():
            return scan_dram(network, prepared(run, case), chunk_size=size, scales=scales, device=fabric.device)

    return _above(run, dram, chosen_threshold(run, dram))


def _above(run: Run, dram: Callable[[Case], NDArray[np.float32]], threshold: float) -> Predictor:
    """Where a dRAM is above a threshold."""

    def predict(case: Case, scan: Scan) -> NDArray[np.bool_]:
        cache = prepared(run, case)
        return on_ct_grid(_margin_in_lobes(dram(case) - np.float32(threshold), cache), scan)

    return predict


def _network(run: Run, labels: Labels) -> Predictor:
    """The final network, trained on pseudo labels or on reference labels."""
    fabric = make_fabric(run, run.config.segment.precision)
    network = make_network(trained_network(run, labels), device=fabric.device)
    border = np.float32(lesion_border(run, labels))

    def predict(case: Case, scan: Scan) -> NDArray[np.bool_]:
        margin = scan_margin(network, prepared(run, case))
        return on_ct_grid(margin.with_array(margin.array - border), scan)

    return predict
