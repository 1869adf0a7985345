"""The measures of one scan, and what each of them is when a mask is empty.

A target is what is compared: all lesions together (`overall`), or one subtype. The README's table of empty masks is
this module in words.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import OVERALL, SUBTYPES, Overlap, is_counted, overlap
from evaluation.surfaces import SurfaceAgreement, bounding_box, surface_agreement

TARGETS = (OVERALL, "consolidation", "ground_glass", "mixed")
"""In the order of the paper's Table II."""

MEASURES = (
    "iou",
    "dice",
    "sensitivity",
    "precision",
    "absolute_volume_error_ml",
    "surface_dice_2mm",
    "hausdorff95_mm",
)

_ABSENT: dict[str, float | None] = dict.fromkeys(MEASURES) | {"absolute_volume_error_ml": 0.0}
"""Of a subtype that neither mask has: an error of 0 as for all lesions, lest one false voxel improve the mean."""

_LABELS = {name: label for label, name in SUBTYPES.items()}

Measures = dict[str, dict[str, float | None]]
"""Value by measure and target; None where undefined."""


def scan_measures(
    reference: NDArray[np.uint8], prediction: NDArray[np.uint8], *, spacing_zyx_mm: tuple[float, ...]
) -> tuple[Measures, dict[str, Overlap]]:
    """Compare two label masks in every way.

    Args:
        reference: (z, y, x); 0 background, else one of `metrics.SUBTYPES`.
        prediction: the same for the prediction, same shape.
        spacing_zyx_mm: distance between voxel centres along the array's axes.

    Returns:
        Every measure for every target, and the voxel counts for every target.
    """
    box = bounding_box(reference | prediction)
    reference, prediction = reference[box], prediction[box]
    voxel_ml = math.prod(spacing_zyx_mm) / 1000
    measures: Measures = {measure: {} for measure in MEASURES}
    overlaps: dict[str, Overlap] = {}
    for target in TARGETS:
        reference_mask, predicted_mask = target_mask(reference, target), target_mask(prediction, target)
        overlaps[target] = overlap(reference_mask, predicted_mask)
        surface = surface_agreement(reference_mask, predicted_mask, spacing_zyx_mm=spacing_zyx_mm)
        counts = overlaps[target]
        values = _values(counts, surface, voxel_ml=voxel_ml) if is_counted(target, counts) else _ABSENT
        for measure, value in values.items():
            measures[measure][target] = value
    return measures, overlaps


def target_mask(labels: NDArray[np.uint8], target: str) -> NDArray[np.bool_]:
    """The voxels that belong to a target, bool, of the labels' shape."""
    return labels > 0 if target == OVERALL else labels == _LABELS[target]


def _values(counts: Overlap, surface: SurfaceAgreement | None, *, voxel_ml: float) -> dict[str, float | None]:
    """The measures of two masks of which one or both may be empty."""
    return {
        "iou": counts.iou,
        "dice": counts.dice,
        "sensitivity": counts.sensitivity,
        "precision": counts.precision,
        "absolute_volume_error_ml": abs(counts.prediction - counts.reference) * voxel_ml,
        "surface_dice_2mm": surface.dice_2mm if surface else float(counts.union == 0),
        "hausdorff95_mm": surface.hausdorff95_mm if surface else None,
    }
