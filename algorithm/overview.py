"""The picture of a result: slices with lobe outlines and lesions, and the table of the lobes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from algorithm.images import Volume
from algorithm.lobes import LOBES
from algorithm.orientation import to_canonical
from algorithm.preprocess import bounding_box, crop, margin_voxels
from algorithm.report import SeverityReport, or_dash
from algorithm.segmenter import Segmentation
from algorithm.subtypes import SUBTYPES

SUBTYPE_COLOURS = {1: "#ffd23f", 2: "#ff3b30", 3: "#c04bff"}
LOBE_COLOURS = {1: "#4cc9f0", 2: "#80ed99", 3: "#f4a261", 4: "#b5e48c", 5: "#f7aef8"}
DISPLAY_HU = (-1350.0, 150.0)
SLICES = 4
MARGIN_MM = 12.0


def draw_overview(ct: Volume, segmentation: Segmentation, path: Path) -> None:
    """Write a PNG with axial and coronal slices, and the table of lobes.

    Slices are shown as radiologists see them: the patient's right is on the left, anterior or superior on top.

    Args:
        ct: HU.
        segmentation: the result for this scan.
        path: where the PNG goes.
    """
    parts = parts_of(ct, segmentation.lobes, segmentation.labels)
    figure = Figure(figsize=(14, 10.5), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, SLICES, height_ratios=(1, 1, 0.62))
    _draw_row(figure, grid, parts, axis=0, row=0)
    _draw_row(figure, grid, parts, axis=1, row=1)
    _draw_legend(figure.add_subplot(grid[2, 0]))
    _draw_table(figure.add_subplot(grid[2, 1:]), segmentation.report)
    with matplotlib.rc_context({"font.size": 10}):
        figure.savefig(path, dpi=100)


@dataclass(frozen=True)
class Parts:
    """What a picture shows of the lung box in LPS order: z to superior, y to posterior, x to the patient's left."""

    hu: NDArray[np.integer]
    lobes: NDArray[np.integer]
    labels: NDArray[np.uint8]
    spacing_zyx_mm: tuple[float, float, float]


def parts_of(ct: Volume, lobes: Volume, labels: Volume) -> Parts:
    """The box around the lobes of a CT, its lobes and its lesions, all on one grid."""
    ct, lobes, labels = (to_canonical(volume) for volume in (ct, lobes, labels))
    box = bounding_box(lobes.array > 0, margin_voxels(ct.geometry, MARGIN_MM))
    hu, lobe_labels, lesion_labels = (crop(volume, box).array for volume in (ct, lobes, labels))
    return Parts(hu, lobe_labels, lesion_labels, ct.geometry.spacing_zyx_mm)


def _draw_row(figure: Figure, grid: GridSpec, parts: Parts, *, axis: int, row: int) -> None:
    name = {0: "axial", 1: "coronal"}[axis]
    for column, index in enumerate(_informative_slices(parts, axis)):
        axes = figure.add_subplot(grid[row, column])
        draw_slice(axes, parts, axis, index)
        axes.set_title(f"{name} {index * parts.spacing_zyx_mm[axis]:.0f} mm", fontsize=9)
        for x, side in ((0.02, "R"), (0.98, "L")):
            ha = "left" if side == "R" else "right"
            axes.text(x, 0.98, side, transform=axes.transAxes, color="white", va="top", ha=ha)


def draw_slice(axes: Axes, parts: Parts, axis: int, index: int) -> None:
    """Draw a slice across an axis, with outlines of the lobes and coloured lesions."""
    hu, lobes, labels = (np.take(array, index, axis=axis) for array in (parts.hu, parts.lobes, parts.labels))
    spacing = [s for a, s in enumerate(parts.spacing_zyx_mm) if a != axis]
    if axis > 0:  # z grows upwards in the picture
        hu, lobes, labels = (picture[::-1] for picture in (hu, lobes, labels))
    axes.imshow(hu, cmap="gray", vmin=DISPLAY_HU[0], vmax=DISPLAY_HU[1], aspect=spacing[0] / spacing[1])
    colours = ListedColormap(["none", *SUBTYPE_COLOURS.values()])
    axes.imshow(
        labels, cmap=colours, vmin=-0.5, vmax=3.5, alpha=0.5, aspect=spacing[0] / spacing[1], interpolation="nearest"
    )
    for label, colour in LOBE_COLOURS.items():
        if (lobes == label).any():
            axes.contour(lobes == label, levels=[0.5], colors=[colour], linewidths=0.8)
    axes.set_axis_off()


def _informative_slices(parts: Parts, axis: int) -> list[int]:
    """Slices in order: the middle of each quarter of the lungs, moved to that quarter's most affected slice.

    Lungs of fewer slices than quarters are shown in as many slices.
    """
    others = tuple(a for a in range(3) if a != axis)
    lung = (parts.lobes > 0).sum(axis=others)
    lesion = (parts.labels > 0).sum(axis=others)
    occupied = np.flatnonzero(lung >= 0.25 * lung.max())
    chosen = []
    for quarter in np.array_split(occupied, min(SLICES, occupied.size)):
        middle = quarter[len(quarter) // 2]
        worst = quarter[np.argmax(lesion[quarter])]
        chosen.append(int(worst if lesion[worst] > 0 else middle))
    return chosen


def _draw_legend(axes: Axes) -> None:
    lesions = [Patch(color=SUBTYPE_COLOURS[k], alpha=0.7, label=name) for k, name in SUBTYPES.items()]
    axes.legend(handles=[*lesions, *lobe_handles()], loc="center", frameon=False, fontsize=10)
    axes.set_axis_off()


def lobe_handles() -> list[Line2D]:
    """What a legend says of the lobes' outlines."""
    return [Line2D([], [], color=LOBE_COLOURS[lobe.label], label=lobe.name) for lobe in LOBES]


def _draw_table(axes: Axes, report: SeverityReport) -> None:
    rows = [
        [e.name, f"{e.volume_ml:.0f}", f"{e.lesion_ml:.1f}", or_dash(e.percent, ".1f"), or_dash(e.score, "d")]
        for e in report.lobes
    ]
    volume = sum(entry.volume_ml for entry in report.lobes)
    percent = 100 * report.lesion_ml / volume
    rows.append(
        ["both lungs", f"{volume:.0f}", f"{report.lesion_ml:.1f}", f"{percent:.1f}", or_dash(report.total_score, "d")]
    )
    table = axes.table(
        rows, colLabels=["lobe", "volume (ml)", "lesion (ml)", "lesion (%)", "score"], loc="center", cellLoc="right"
    )
    table.auto_set_font_size(False)
    table.set_fontsize(10)
    table.scale(1, 1.45)
    for (row, column), cell in table.get_celld().items():
        cell.set_linewidth(0.3)
        cell.set_text_props(weight="bold" if row in (0, len(rows)) else "normal", ha="left" if column == 0 else "right")
    subtypes = ", ".join(f"{name} {ml:.1f} ml" for name, ml in report.subtype_ml.items())
    notes = [
        subtypes,
        *report.warnings,
        f"model {report.model.name} {report.model.version}; for research, not for diagnosis",
    ]
    axes.set_title("\n".join(notes), fontsize=9, loc="left")
    axes.set_axis_off()
