"""Real scans whose readers said, slice by slice and lobe by lobe, where disease is to be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import track

from algorithm.errors import InputError, one_line
from algorithm.images import Volume, read_ct, read_geometry, read_labels, write_labels
from algorithm.lobes import LOBES, check_lobes
from algorithm.overview import draw_overview
from algorithm.segmenter import LesionSegmenter
from training.ablate.tables import markdown
from training.files import write_text
from training.parallel import console

CT, LOBE_MAP, PRESENCE = "ct.mha", "lobes.mha", "presence.csv"
SMALLEST_MM2 = 20.0  # of lesion in a lobe's slice, to be found there


def compare_presence(segmenter: LesionSegmenter, directory: Path, out: Path) -> pd.DataFrame:
    """Segment real scans, and compare where lesion was found with where readers saw disease.

    Writes presence.csv, presence.md, and for each scan its lesions and an overview picture.

    Args:
        segmenter: a loaded model.
        directory: a folder for each scan with ct.mha, lobes.mha and, where readers labelled it, presence.csv: columns
            ``slice`` (index along z) and, by a lobe's key, 1 where disease is visible
            and 0 elsewhere.
        out: where to.

    Returns:
        A line per scan: ``case``, ``total`` score, ``percent`` of the lungs, and, where labelled, ``sensitivity`` and
        ``specificity`` over slice x lobe with their numbers ``diseased`` and ``healthy``.

    Raises:
        InputError: there is no scan, or one cannot be used.
    """
    folders = real_scans(directory)
    out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame([_compared(segmenter, folder, out) for folder in track(folders, "real", console=console)])
    write_text(out / "presence.csv", table.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    write_text(out / "presence.md", _markdown(table))
    console.print(_markdown(table), soft_wrap=True, markup=False)
    return table


def real_scans(directory: Path) -> list[Path]:
    """The folders of the scans.

    Raises:
        InputError: there is none, one has no lobe map, or readers' labels do not fit their scan.
    """
    folders = sorted(path.parent for path in directory.glob(f"*/{CT}"))
    if not folders:
        raise InputError(f"{directory}: got no folder with {CT}, expected one for each scan")
    missing = [folder.name for folder in folders if not (folder / LOBE_MAP).is_file()]
    if missing:
        raise InputError(f"{directory}: {', '.join(missing)}: no {LOBE_MAP}, expected the scan's lobes in it")
    for folder in folders:
        if (folder / PRESENCE).is_file():
            _read_presence(folder / PRESENCE, depth=read_geometry(folder / CT).size_zyx[0])
    return folders


def presence_of(lesions: NDArray[np.uint8], lobes: NDArray[np.uint8], pixel_mm2: float) -> dict[str, NDArray[np.bool_]]:
    """In which slices each lobe has lesion, by the lobe's key.

    Args:
        lesions: any label but 0 is lesion, (z, y, x).
        lobes: lobe labels, the same shape.
        pixel_mm2: area of a pixel in a slice.
    """
    areas = {lobe.key: ((lesions > 0) & (lobes == lobe.label)).sum(axis=(1, 2)) * pixel_mm2 for lobe in LOBES}
    return {key: area >= SMALLEST_MM2 for key, area in areas.items()}


def _compared(segmenter: LesionSegmenter, folder: Path, out: Path) -> dict[str, object]:
    ct = read_ct(folder / CT)
    lobes = check_lobes(read_labels(folder / LOBE_MAP), ct)
    segmentation = segmenter.segment(ct, lobes)
    target = out / folder.name
    target.mkdir(exist_ok=True)
    write_labels(segmentation.labels, target / "lesions.mha")
    draw_overview(ct, segmentation, target / "overview.png")
    report = segmentation.report
    percent = 100 * report.lesion_ml / sum(entry.volume_ml for entry in report.lobes)
    row: dict[str, object] = {"case": folder.name, "total": report.total_score, "percent": percent}
    if (folder / PRESENCE).is_file():
        row |= _agreement(segmentation.labels, lobes, folder / PRESENCE)
    return row


def _agreement(lesions: Volume, lobes: Volume, path: Path) -> dict[str, object]:
    """Sensitivity and specificity over the slices of all lobes; slices without the lobe are left out."""
    labels = _read_presence(path, depth=lesions.array.shape[0])
    _, height, width = lesions.geometry.spacing_zyx_mm
    found = presence_of(lesions.array, lobes.array, height * width)
    there = {lobe.key: (lobes.array == lobe.label).any(axis=(1, 2)) for lobe in LOBES}
    seen = np.concatenate([labels[key].to_numpy()[where] == 1 for key, where in there.items()])
    predicted = np.concatenate([found[key][where] for key, where in there.items()])
    return {
        "sensitivity": predicted[seen].mean() if seen.any() else float("nan"),
        "specificity": (~predicted[~seen]).mean() if (~seen).any() else float("nan"),
        "diseased": int(seen.sum()),
        "healthy": int((~seen).sum()),
    }


def _read_presence(path: Path, *, depth: int) -> pd.DataFrame:
    """A line per slice, in the order of slices."""
    try:
        table = pd.read_csv(path)
    except ValueError as error:  # no table, or not in UTF-8
        raise InputError(f"{path}: cannot be read as a table ({one_line(error)}); save it as CSV, in UTF-8") from error
    missing = [name for name in ("slice", *(lobe.key for lobe in LOBES)) if name not in table]
    if missing:
        raise InputError(f"{path}: got no column {', '.join(missing)}; expected slice and a column for each lobe")
    table = table.set_index("slice").sort_index()
    if list(table.index) != list(range(depth)):
        raise InputError(f"{path}: got {len(table)} slices, expected one line for each of the CT's {depth}")
    odd = [lobe.key for lobe in LOBES if not table[lobe.key].isin([0, 1]).all()]
    if odd:
        raise InputError(f"{path}: got other values than 0 and 1, or none, in {', '.join(odd)}; expected 1 for disease")
    return table


def _markdown(table: pd.DataFrame) -> str:
    header = ["scan", "total score", "lesion, % of the lungs", "sensitivity", "specificity"]
    lines = []
    for row in table.to_dict("records"):
        rates = []
        for rate, number in (("sensitivity", "diseased"), ("specificity", "healthy")):
            known = rate in row and pd.notna(row[rate])
            rates.append(f"{row[rate]:.2f} (n = {int(row[number])})" if known else "-")
        lines.append([str(row["case"]), str(row["total"]), f"{row['percent']:.1f}", *rates])
    note = (
        f"\nOver all pairs of a slice and a lobe in it; found is {SMALLEST_MM2:g} mm2 of lesion or more. Readers said "
        "whether disease is to be seen, not how much.\n"
    )
    return markdown(header, lines) + note
