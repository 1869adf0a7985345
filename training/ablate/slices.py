"""The picture of the comparison: one axial slice of a few cases, with the reference and every row's lesions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from algorithm.preprocess import bounding_box, margin_voxels
from training.ablate.measures import reference_labels
from training.ablate.rows import Row
from training.cases import Case, Scan, read_scan
from training.files import load_array, save_array, write_whole

CASES = 3
COLUMNS = 5
DISPLAY_HU = (-1350.0, 150.0)
MARGIN_MM = 5.0
REFERENCE, PREDICTION = "#56b4e9", "#e69f00"  # Okabe and Ito's, told apart by all
OPACITY = 0.5
WIDTH_INCHES = 7.2  # two columns of print


def pictured_cases(cases: Sequence[Case]) -> list[Case]:
    """Up to three cases: a mild, a middling and a severe one by the sum of their scores; healthy ones if all are.

    Args:
        cases: test cases.
    """
    by_score = sorted(cases, key=lambda case: sum(case.scores.values()))
    diseased = [case for case in by_score if sum(case.scores.values())] or by_score
    places = sorted({len(diseased) * (2 * k + 1) // (2 * CASES) for k in range(CASES)})
    return [diseased[place] for place in places]


def slice_path(folder: Path, case: str) -> Path:
    """Where a row's lesions are kept of a case that is shown."""
    return folder / f"{case}_slice.npy"


def save_slice(folder: Path, case: Case, scan: Scan, lesions: NDArray[np.bool_]) -> None:
    """Keep a row's lesions in the slice that is shown of a case.

    Args:
        folder: the row's.
        case: the case.
        scan: its images.
        lesions: bool (z, y, x) on the CT's grid.
    """
    z, _ = _shown_slice(case, scan)
    save_array(slice_path(folder, case.name), lesions[z])


def draw_slices(rows: Sequence[Row], cases: Sequence[Case], per_scan: pd.DataFrame, folder: Path) -> None:
    """Write slices.png: the reference as an outline, and the lesions of each row as a translucent area.

    Slices are shown as radiologists see them: the patient's right is on the left, anterior on top. The number in a
    panel is the IoU of the whole scan.

    Args:
        rows: all rows; `save_slice` has been called for each of these cases.
        cases: what `pictured_cases` chose.
        per_scan: a line per row and scan, with columns ``row``, ``case`` and ``iou``.
        folder: of the stage, with the rows' folders.
    """
    ious = per_scan.set_index(["case", "row"])["iou"]
    lines = math.ceil(len(rows) / COLUMNS)
    with rc_context({"font.size": 7}):
        figure = Figure(figsize=(WIDTH_INCHES, 0.3 + len(cases) * (0.25 + 1.3 * lines)), layout="constrained")
        parts = figure.subfigures(len(cases), 1, squeeze=False)[:, 0]
        for part, case in zip(parts, cases, strict=True):
            shown = _Slice.of(case, read_scan(case))
            part.suptitle(f"case {case.name}", fontweight="bold")
            panels = part.subplots(lines, COLUMNS, squeeze=False).ravel()
            for panel, row in zip_longest(panels, rows):
                panel.set_axis_off()
                if row is not None:
                    lesions = load_array(slice_path(folder / row.slug, case.name))
                    _draw_panel(panel, shown, lesions, title=row.name, iou=float(ious[case.name, row.name]))
        figure.legend(handles=_legend(), loc="outside lower center", ncols=2, frameon=False)
        write_whole(folder / "slices.png", lambda file: figure.savefig(file, format="png", dpi=300))


@dataclass(frozen=True)
class _Slice:
    """The axial slice that is shown of a case.

    Attributes:
        hu: (y, x), to posterior and to the patient's left.
        reference: bool, reference lesions in the lobes.
        box: the lobes with a margin, which is all that is drawn.
        aspect: height of a pixel over its width.
    """

    hu: NDArray[np.integer | np.floating]
    reference: NDArray[np.bool_]
    box: tuple[slice, slice]
    aspect: float

    @classmethod
    def of(cls, case: Case, scan: Scan) -> _Slice:
        z, reference = _shown_slice(case, scan)
        _, *box = bounding_box(scan.lobes.array, margin_voxels(scan.lobes.geometry, MARGIN_MM))
        _, height_mm, width_mm = scan.ct.geometry.spacing_zyx_mm
        return cls(scan.ct.array[z].copy(), reference, (box[0], box[1]), height_mm / width_mm)


def _draw_panel(panel: Axes, shown: _Slice, lesions: NDArray[np.bool_], *, title: str, iou: float) -> None:
    hu, reference, predicted = (array[shown.box] for array in (shown.hu, shown.reference, lesions))
    panel.imshow(hu, cmap="gray", vmin=DISPLAY_HU[0], vmax=DISPLAY_HU[1], aspect=shown.aspect)
    area = ListedColormap(["none", PREDICTION])
    panel.imshow(predicted, cmap=area, vmin=0, vmax=1, alpha=OPACITY, aspect=shown.aspect, interpolation="nearest")
    if reference.any():
        panel.contour(reference, levels=[0.5], colors=[REFERENCE], linewidths=0.8)
    panel.set_title(title, fontsize=6.5, pad=2)
    patch = {"facecolor": "black", "linewidth": 0, "pad": 1.5}
    panel.text(0.02, 0.04, f"{iou:.2f}", color="white", fontsize=6, bbox=patch, transform=panel.transAxes)


def _legend() -> list[Artist]:
    outline = Line2D([], [], color=REFERENCE, linewidth=1.2, label="reference lesions")
    area = Patch(facecolor=PREDICTION, alpha=OPACITY, label="lesions of the row; number: IoU of the whole scan")
    return [outline, area]


def _shown_slice(case: Case, scan: Scan) -> tuple[int, NDArray[np.bool_]]:
    """The axial slice with most reference lesion, or without any with most lung, and its reference lesions."""
    reference = reference_labels(case, scan) > 0
    shown = reference if reference.any() else scan.lobes.array > 0
    z = int(shown.sum(axis=(1, 2)).argmax())
    return z, reference[z].copy()
