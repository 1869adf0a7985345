"""Stage ablate: the rows of the comparison on the test cases, as a table of lesion IoU and score agreement.

python -m training ablate --data DATA --run RUN
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from rich.progress import track

from algorithm.errors import InputError
from algorithm.images import Volume
from algorithm.lobes import LOBES
from algorithm.preprocess import bounding_box, crop, resample
from algorithm.segmenter import lesion_margin
from algorithm.severity import lobe_involvement
from evaluation.agreement import linear_weighted_kappa
from evaluation.metrics import iou
from training.cases import Case, Scan, of_split, read_cases, read_scan
from training.prepare import prepared
from training.segment import Labels, trained_network
from training.stages import Run, console

LOBE_KEYS = tuple(lobe.key for lobe in LOBES)
MEMORY_BYTES = 4e9

Predictor = Callable[[Case, Scan], NDArray[np.bool_]]


def ablate(run: Run, folder: Path) -> dict[str, Any]:
    """Compare every row on the test cases with reference lesions; writes per-scan values and the table.

    The comparison is made on each CT's own grid.
    """
    cases = [case for case in of_split(read_cases(run.data), "test") if case.lesions is not None]
    if not cases:
        raise InputError(f"{run.data}: no test case with reference lesions to compare with")
    rows = _rows(run)
    values = []
    for case in track(cases, "ablate", console=console):
        scan = read_scan(case)
        for row, predict in rows.items():
            values.append({"case": case.name, "row": row, **_measure(scan, predict(case, scan))})
    per_scan = pd.DataFrame(values)
    per_scan.to_csv(folder / "per_scan.csv", index=False)
    summary = [_summary(per_scan, row) for row in rows]
    pd.DataFrame(summary).to_csv(folder / "table.csv", index=False)
    (folder / "table.md").write_text(_markdown(summary), encoding="utf-8")
    console.print(_markdown(summary), soft_wrap=True)
    return {"test_cases": len(cases), "rows": summary}


def _rows(run: Run) -> dict[str, Predictor]:
    return {
        "threshold (Otsu in the lobes)": lambda case, scan: _otsu(scan),
        "dRAM raw": lambda case, scan: _raw_dram(run, case, scan),
        "dRAM + context": _network_row(run, "pseudo"),
        "supervised": _network_row(run, "reference"),
    }


def _otsu(scan: Scan) -> NDArray[np.bool_]:
    """What no learning achieves: the bright voxels of the lobes."""
    inside = scan.lobes.array > 0
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.GetImageFromArray(scan.ct.array[inside][None]))
    bright: NDArray[np.bool_] = inside & (scan.ct.array > otsu.GetThreshold())
    return bright


def _raw_dram(run: Run, case: Case, scan: Scan) -> NDArray[np.bool_]:
    dram = np.load(run.folder("pseudo") / f"{case.name}_dram.npy").astype(np.float32)
    margin = Volume(dram - run.config.pseudo.threshold, prepared(run, case).geometry("scan"))
    return _on_scan(margin, scan)


def _network_row(run: Run, labels: Labels) -> Predictor:
    network = trained_network(run, labels)

    def predict(case: Case, scan: Scan) -> NDArray[np.bool_]:
        cache = prepared(run, case)
        image = Volume(cache.array("scan_image").astype(np.float32), cache.geometry("scan"))
        inside = cache.array("scan_lobes") > 0
        margin = lesion_margin(
            network,
            image,
            inside,
            width=run.config.segment.width,
            memory_bytes=MEMORY_BYTES,
            device=torch.device("cpu"),
        )
        return _on_scan(margin, scan)

    return predict


def _on_scan(margin: Volume, scan: Scan) -> NDArray[np.bool_]:
    """Lesion on the CT's grid where the interpolated margin is positive, inside the lobes."""
    box = bounding_box(scan.lobes.array)
    lesions = np.zeros(scan.ct.array.shape, dtype=bool)
    lesions[box] = resample(margin, crop(scan.ct, box).geometry, "linear").array > 0
    return lesions & (scan.lobes.array > 0)


def _measure(scan: Scan, prediction: NDArray[np.bool_]) -> dict[str, Any]:
    if scan.lesions is None:
        raise InputError("a test case has no reference lesions")
    reference = (scan.lesions.array > 0) & (scan.lobes.array > 0)
    voxel_ml = scan.ct.geometry.voxel_ml
    measures: dict[str, Any] = {"iou": iou(reference, prediction)}
    for name, mask in (("reference", reference), ("predicted", prediction)):
        for entry in lobe_involvement(mask.astype(np.uint8), scan.lobes.array, voxel_ml=voxel_ml):
            measures[f"{name}_{entry.lobe.key}"] = entry.score
    return measures


def _summary(per_scan: pd.DataFrame, row: str) -> dict[str, Any]:
    values = per_scan[per_scan["row"] == row]
    pairs = pd.concat(
        [values[[f"reference_{k}", f"predicted_{k}"]].set_axis(["reference", "predicted"], axis=1) for k in LOBE_KEYS]
    ).dropna()
    kappa = linear_weighted_kappa(pairs["reference"].astype(int).tolist(), pairs["predicted"].astype(int).tolist())
    return {
        "row": row,
        "scans": len(values),
        "mean_iou": _rounded(values["iou"].mean()),
        "median_iou": _rounded(values["iou"].median()),
        "kappa": _rounded(kappa.kappa),
        "kappa_low": _rounded(kappa.ci_low),
        "kappa_high": _rounded(kappa.ci_high),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def _markdown(summary: list[dict[str, Any]]) -> str:
    lines = [list(summary[0]), ["---"] * len(summary[0])]
    lines += [["-" if value is None else str(value) for value in entry.values()] for entry in summary]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
