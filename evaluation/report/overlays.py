"""Pictures of scans with the outlines of their lesions: the reference and every method side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
import SimpleITK as sitk
from matplotlib.figure import Figure
from numpy.typing import NDArray

from evaluation.comparison import Comparison, read_prediction
from evaluation.errors import InputError
from evaluation.masks import Grid, grid_of, image_of
from evaluation.metrics import SUBTYPES
from evaluation.surfaces import bounding_box

SUBTYPE_COLOURS = {"ground_glass": "#4cc9ff", "consolidation": "#ff5c4d", "mixed": "#ffd23f"}
CASES_EACH_WAY = 3

_WINDOW_HU = (-1150, 350)
_MARGIN_MM = 12.0
_PANEL_INCHES = 2.6
_PANEL_SHARE = 0.985
_TITLE_INCHES = 0.3
_TITLE_LETTERS = 40
_DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Overlay:
    """One scan, drawn.

    Attributes:
        case: name of the scan.
        ious: overall IoU by method.
        png: the picture, base64: reference and methods from left to right.
    """

    case: str
    ious: dict[str, float]
    png: str


def overlays(comparison: Comparison) -> dict[str, list[Overlay]]:
    """Draw the scans of the lowest and of the highest overall IoU, by the mean of all methods.

    Returns:
        `worst` and `best`, at most three scans each and none twice; empty lists where the reference names no CT.

    Raises:
        InputError: a CT is missing, unreadable or on another grid than the reference.
    """
    cts = {case: reference.ct for case, reference in comparison.cases.items() if reference.ct}
    ious = {
        case: {name: scans[place].lesions.iou for name, scans in comparison.scans.items()}
        for place, case in enumerate(comparison.cases)
        if case in cts
    }
    ranked = sorted(ious, key=lambda case: float(np.mean(list(ious[case].values()))))
    worst = ranked[:CASES_EACH_WAY]
    best = [case for case in reversed(ranked) if case not in worst][:CASES_EACH_WAY]
    return {
        name: [Overlay(case, ious[case], _png(comparison, case, cts[case])) for case in chosen]
        for name, chosen in (("worst", worst), ("best", best))
    }


def _png(comparison: Comparison, case: str, ct_path: Path) -> str:
    lesions, lobes = comparison.cases[case].read()
    predictions = (read_prediction(comparison, method=name, case=case, like=lesions) for name in comparison.methods)
    masks = [_upright(image_of(mask.array, mask.grid)) for mask in (lesions, *predictions, lobes)]
    *lesion_arrays, lobe_array = (sitk.GetArrayViewFromImage(mask) for mask in masks)
    ct = _upright(_read_ct(case, ct_path, lesions.grid))
    level = telling_slice([*lesion_arrays, lobe_array])
    step_yx_mm = (ct.GetSpacing()[1], ct.GetSpacing()[0])
    box = _window(lobe_array[level] > 0, step_yx_mm)
    panels = zip(("Reference", *comparison.methods), (array[level][box] for array in lesion_arrays), strict=True)
    return _draw(sitk.GetArrayViewFromImage(ct)[level][box], list(panels), step_yx_mm)


def telling_slice(masks: list[NDArray[np.uint8]]) -> int:
    """The slice along z with most voxels of the first mask that has any; the middle one if none has."""
    for mask in masks:
        areas = np.count_nonzero(mask, axis=(1, 2))
        if areas.any():
            return int(areas.argmax())
    return len(masks[0]) // 2


def _read_ct(case: str, path: Path, grid: Grid) -> sitk.Image:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        if reader.GetDimension() != 3:
            raise InputError(f"case {case}: {path.name}: got {reader.GetDimension()} dimensions, expected a CT of 3")
        if not grid_of(reader).matches(grid):
            raise InputError(f"case {case}: {path.name}: got {grid_of(reader)}, expected the reference's {grid}")
        image: sitk.Image = reader.Execute()
        return image
    except RuntimeError as error:
        raise InputError(f"case {case}: {path}: got no readable CT; correct or empty the column ct") from error


def _upright(image: sitk.Image) -> sitk.Image:
    """Axes to the patient's left, back and head, so that slices are axial and shown as radiologists see them."""
    upright: sitk.Image = sitk.DICOMOrient(image, "LPS")
    return upright


def _window(lungs: NDArray[np.bool_], step_yx_mm: tuple[float, float]) -> tuple[slice, ...]:
    """The part of a slice to show: the lungs with a margin, or all of it."""
    if not lungs.any():
        return (slice(None), slice(None))
    margins = [round(_MARGIN_MM / step) for step in step_yx_mm]
    return tuple(
        slice(max(0, part.start - margin), part.stop + margin)
        for part, margin in zip(bounding_box(lungs), margins, strict=True)
    )


def _draw(
    ct: NDArray[np.int16], panels: Sequence[tuple[str, NDArray[np.uint8]]], step_yx_mm: tuple[float, float]
) -> str:
    """Titled panels side by side, the same slice with different outlines, as a PNG in base64."""
    height_mm, width_mm = (size * step for size, step in zip(ct.shape, step_yx_mm, strict=True))
    panel_inches = _PANEL_INCHES * height_mm / width_mm
    figure = Figure(figsize=(_PANEL_INCHES * len(panels), panel_inches + _TITLE_INCHES))
    width, height = 1 / len(panels), panel_inches / (panel_inches + _TITLE_INCHES)
    for number, (name, mask) in enumerate(panels):
        axes = figure.add_axes((number * width, 0.0, width * _PANEL_SHARE, height))
        axes.imshow(ct, cmap="gray", vmin=_WINDOW_HU[0], vmax=_WINDOW_HU[1], aspect="auto")
        for label, subtype in SUBTYPES.items():
            if (mask == label).any():
                axes.contour(mask == label, levels=[0.5], colors=[SUBTYPE_COLOURS[subtype]], linewidths=1.1)
        axes.set_axis_off()
        axes.set_title(shorten(name, _TITLE_LETTERS, placeholder="…"), fontsize=9, pad=4, parse_math=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return base64.b64encode(file.getvalue()).decode("ascii")
