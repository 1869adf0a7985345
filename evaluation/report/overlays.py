"""Pictures of scans with the outlines of their lesions: the reference and every method side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from evaluation.comparison import Comparison, read_prediction
from evaluation.cts import read_ct
from evaluation.masks import image_of
from evaluation.measures import target_mask
from evaluation.surfaces import bounding_box

SUBTYPE_COLOURS = {"consolidation": "#ff5c4d", "ground_glass": "#4cc9ff", "mixed": "#ffd23f"}
REFERENCE_COLOUR = "#ffffff"
EMPTY = "no lesion in this slice"
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
        slice_number: which axial slice is shown, from 1 at the feet.
        slices: how many there are.
        png: the picture, base64: reference and methods from left to right.
    """

    case: str
    ious: dict[str, float]
    slice_number: int
    slices: int
    png: str


def overlays(comparison: Comparison) -> dict[str, list[Overlay]]:
    """Draw the scans of the lowest and of the highest overall IoU, by the mean of all methods.

    Returns:
        `worst` and `best`, at most three scans each and none twice; empty lists where the reference names no CT.

    Raises:
        InputError: a CT is unreadable.
    """
    ious = {
        case: {name: scans[place].lesions.iou for name, scans in comparison.scans.items()}
        for place, case in enumerate(comparison.cases)
        if comparison.cases[case].ct
    }
    ranked = sorted(ious, key=lambda case: float(np.mean(list(ious[case].values()))))
    worst = ranked[:CASES_EACH_WAY]
    best = [case for case in reversed(ranked) if case not in worst][:CASES_EACH_WAY]
    return {
        name: [_overlay(comparison, case, ious[case]) for case in chosen]
        for name, chosen in (("worst", worst), ("best", best))
    }


def _overlay(comparison: Comparison, case: str, ious: dict[str, float]) -> Overlay:
    lesions, lobes = comparison.cases[case].read()
    predictions = (read_prediction(comparison, method=name, case=case, like=lesions) for name in comparison.methods)
    masks = [_upright(image_of(mask.array, mask.grid)) for mask in (lesions, *predictions, lobes)]
    *lesion_arrays, lobe_array = (sitk.GetArrayViewFromImage(mask) for mask in masks)
    ct = _upright(read_ct(comparison.cases[case]))
    level = telling_slice([*lesion_arrays, lobe_array])
    step_yx_mm = (ct.GetSpacing()[1], ct.GetSpacing()[0])
    box = _window(lobe_array[level] > 0, step_yx_mm)
    panels = zip(("Reference", *comparison.methods), (array[level][box] for array in lesion_arrays), strict=True)
    png = _draw(sitk.GetArrayViewFromImage(ct)[level][box], list(panels), step_yx_mm)
    return Overlay(case, ious, slice_number=level + 1, slices=len(lobe_array), png=png)


def telling_slice(masks: list[NDArray[np.uint8]]) -> int:
    """The slice along z with most voxels of the first mask that has any; the middle one if none has."""
    for mask in masks:
        areas = np.count_nonzero(mask, axis=(1, 2))
        if areas.any():
            return int(areas.argmax())
    return len(masks[0]) // 2


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
    """Titled panels side by side, the same slice with different outlines, as a PNG in base64; first the reference."""
    height_mm, width_mm = (size * step for size, step in zip(ct.shape, step_yx_mm, strict=True))
    panel_inches = _PANEL_INCHES * height_mm / width_mm
    figure = Figure(figsize=(_PANEL_INCHES * len(panels), panel_inches + _TITLE_INCHES))
    width, height = 1 / len(panels), panel_inches / (panel_inches + _TITLE_INCHES)
    for number, (name, mask) in enumerate(panels):
        axes = figure.add_axes((number * width, 0.0, width * _PANEL_SHARE, height))
        axes.imshow(ct, cmap="gray", vmin=_WINDOW_HU[0], vmax=_WINDOW_HU[1], aspect="auto")
        _draw_outlines(axes, mask, reference=panels[0][1] if number else None)
        axes.set_axis_off()
        axes.set_title(shorten(name, _TITLE_LETTERS, placeholder="…"), fontsize=9, pad=4, parse_math=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return base64.b64encode(file.getvalue()).decode("ascii")


def _draw_outlines(axes: Axes, mask: NDArray[np.uint8], *, reference: NDArray[np.uint8] | None) -> None:
    """A mask's subtypes, over a dashed outline of all lesions of the reference where it is given."""
    if reference is not None and reference.any():
        axes.contour(reference > 0, levels=[0.5], colors=[REFERENCE_COLOUR], linewidths=0.9, linestyles="dashed")
    for subtype, colour in SUBTYPE_COLOURS.items():
        is_subtype = target_mask(mask, subtype)
        if is_subtype.any():
            axes.contour(is_subtype, levels=[0.5], colors=[colour], linewidths=1.1)
    if not mask.any():
        box = {"facecolor": "black", "alpha": 0.65, "linewidth": 0}
        axes.text(0.5, 0.05, EMPTY, transform=axes.transAxes, ha="center", color="white", fontsize=8, bbox=box)
