"""How well two masks agree: arrays in, numbers out.

Every function takes arrays (z, y, x) on one grid. What empty masks give is said where they are: the table of all cases
and measures is in the folder's README.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import InputError

MaskArray = NDArray[np.bool_]
LabelArray = NDArray[np.integer]

OVERALL = "overall"
SUBTYPES = {1: "ground_glass", 2: "consolidation", 3: "mixed"}
LOBES = {1: "lul", 2: "lll", 3: "rul", 4: "rll", 5: "rml"}


@dataclass(frozen=True)
class Overlap:
    """Voxel counts of two masks on one grid."""

    reference: int
    prediction: int
    intersection: int

    @property
    def union(self) -> int:
        """Voxels in either mask."""
        return self.reference + self.prediction - self.intersection

    @property
    def iou(self) -> float:
        """Intersection over union, 0 to 1; 1.0 when both masks are empty."""
        return self.intersection / self.union if self.union else 1.0

    @property
    def dice(self) -> float:
        """Twice the intersection over the sum of both, 0 to 1; 1.0 when both masks are empty."""
        total = self.reference + self.prediction
        return 2 * self.intersection / total if total else 1.0

    @property
    def sensitivity(self) -> float | None:
        """Share of the reference that was found, 0 to 1; None when the reference is empty."""
        return self.intersection / self.reference if self.reference else None

    @property
    def precision(self) -> float | None:
        """Share of the prediction that is right, 0 to 1; None when the prediction is empty."""
        return self.intersection / self.prediction if self.prediction else None


def overlap(reference: MaskArray, prediction: MaskArray) -> Overlap:
    """Count the voxels of two masks and of their intersection.

    Args:
        reference: bool, (z, y, x).
        prediction: bool, same shape.

    Raises:
        InputError: the shapes differ, or a mask is not bool.
    """
    _check_shapes(reference, prediction)
    for name, mask in (("reference", reference), ("prediction", prediction)):
        if mask.dtype != np.bool_:
            raise InputError(f"{name}: got a mask of {mask.dtype}, expected bool; compare the labels first")
    return Overlap(
        reference=int(np.count_nonzero(reference)),
        prediction=int(np.count_nonzero(prediction)),
        intersection=int(np.count_nonzero(reference & prediction)),
    )


def iou(reference: MaskArray, prediction: MaskArray) -> float:
    """Intersection over union of two masks; see `overlap` for arguments and errors.

    Returns:
        0 to 1. Both masks empty: 1.0, since a scan without lesions was then judged rightly. One empty: 0.0.
    """
    return overlap(reference, prediction).iou


def dice(reference: MaskArray, prediction: MaskArray) -> float:
    """Dice coefficient of two masks, with the same rules for empty masks as `iou`."""
    return overlap(reference, prediction).dice


def lesion_overlaps(reference_labels: LabelArray, prediction_labels: LabelArray) -> dict[str, Overlap]:
    """Voxel counts of all lesions together, `overall`, where any label counts as lesion, and of each subtype.

    Args:
        reference_labels: integer, (z, y, x); 0 background, 1 ground-glass, 2 consolidation, 3 mixed.
        prediction_labels: the same for the prediction, same shape.

    Raises:
        InputError: the shapes differ, or a label is none of the four.
    """
    _check_labels("reference_labels", reference_labels, highest=max(SUBTYPES))
    _check_labels("prediction_labels", prediction_labels, highest=max(SUBTYPES))
    subtypes = {
        name: overlap(reference_labels == label, prediction_labels == label) for label, name in SUBTYPES.items()
    }
    return {OVERALL: overlap(reference_labels > 0, prediction_labels > 0), **subtypes}


def lesion_ious(overlaps: Mapping[str, Overlap]) -> dict[str, float | None]:
    """IoU of all lesions together and of each subtype.

    Args:
        overlaps: as `lesion_overlaps` counts them.

    Returns:
        An entry for each: two empty masks give 1.0 in `overall`, and None for a subtype, so that a mean over scans
        leaves out those in which neither mask holds it.
    """
    return {name: counts.iou if is_counted(name, counts) else None for name, counts in overlaps.items()}


def is_counted(target: str, counts: Overlap) -> bool:
    """Whether a scan counts for a target: for all lesions together always, for a subtype where a mask holds it."""
    return target == OVERALL or counts.union > 0


def lobe_percentages(lesions: MaskArray, lobes: LabelArray) -> dict[str, float | None]:
    """How much of each lobe is lesion.

    Args:
        lesions: bool, (z, y, x).
        lobes: integer, same shape; 0 outside, 1 left upper, 2 left lower, 3 right upper, 4 right lower,
            5 right middle.

    Returns:
        Lesion voxels per 100 voxels of the lobe, 0 to 100, by the names in `LOBES`; None for a lobe with no voxel.

    Raises:
        InputError: the shapes differ, or a label is none of the six.
    """
    _check_shapes(lesions, lobes)
    _check_labels("lobes", lobes, highest=max(LOBES))
    percentages: dict[str, float | None] = {}
    for label, name in LOBES.items():
        lobe = lobes == label
        size = int(np.count_nonzero(lobe))
        percentages[name] = 100 * int(np.count_nonzero(lobe & lesions)) / size if size else None
    return percentages


def _check_shapes(first: NDArray[np.generic], second: NDArray[np.generic]) -> None:
    if first.shape != second.shape:
        raise InputError(f"got arrays of shapes {first.shape} and {second.shape}, expected one grid; resample first")


def _check_labels(name: str, labels: LabelArray, *, highest: int) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{name}: got {labels.dtype}, expected integer labels 0 to {highest}; cast them")
    if labels.size and (labels.min() < 0 or labels.max() > highest):
        raise InputError(f"{name}: got labels {labels.min()} to {labels.max()}, expected 0 to {highest}")
