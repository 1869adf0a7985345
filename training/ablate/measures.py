"""What one prediction is worth on one scan: a line of per_scan.csv."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import evaluation.errors
from algorithm.errors import InputError
from algorithm.lobes import LOBES
from algorithm.subtypes import DEFAULT_RULES, ReferenceComponents, VoteRules, find_components, paint, vote
from evaluation.agreement import scores_from_percentages
from evaluation.metrics import OVERALL, SUBTYPES, Overlap, lesion_ious, lesion_overlaps, lobe_percentages, overlap
from training.cases import UNKNOWN_SUBTYPE, Case, Scan


def measure(
    case: Case,
    scan: Scan,
    lesions: NDArray[np.bool_],
    components: ReferenceComponents,
    rules: VoteRules = DEFAULT_RULES,
) -> dict[str, Any]:
    """Measure a lesion mask against the reference lesions inside the lobes, and against the lobe scores.

    The connected lesions of the mask get their subtypes by vote; the reference has its own.

    Args:
        case: its scores are those to agree with.
        scan: its images, reference lesions among them.
        lesions: bool (z, y, x) on the CT's grid, none outside the lobes.
        components: lesions of known subtype, which vote.
        rules: of the vote.

    Returns:
        ``iou`` and ``iou_<subtype>`` (None where neither mask holds the subtype); ``reference_voxels``,
        ``predicted_voxels`` and ``common_voxels``, and each of them ``_<subtype>``; what is of a subtype is None
        throughout where the reference holds lesion of unknown subtype; and per lobe ``reference_<lobe>`` and
        ``predicted_<lobe>``, scores 0 to 5, and ``percent_<lobe>``, the share of predicted lesion that
        ``predicted_<lobe>`` is read off, 0 to 100 (None for a lobe that was not scored, or has no voxel).

    Raises:
        InputError: the scan has no reference lesions, or they hold an unknown label.
    """
    reference = reference_labels(case, scan)
    found = find_components(lesions, scan.ct.array, voxel_ml=scan.ct.geometry.voxel_ml)
    predicted = paint(found, vote(found, components, rules))
    is_known = not (reference == UNKNOWN_SUBTYPE).any()
    try:
        overlaps = lesion_overlaps(reference, predicted) if is_known else {OVERALL: overlap(reference > 0, lesions)}
    except evaluation.errors.InputError as error:
        raise InputError(f"case {case.name}: reference lesions: {error}") from error
    ious, voxels = lesion_ious(overlaps), _voxels(overlaps[OVERALL], "")
    for subtype in SUBTYPES.values():
        voxels |= _voxels(overlaps.get(subtype), f"_{subtype}")
    return {
        "iou": ious[OVERALL],
        **{f"iou_{subtype}": ious.get(subtype) for subtype in SUBTYPES.values()},
        **voxels,
        **_scores(case, lobe_percentages(lesions, scan.lobes.array)),
    }


def _voxels(counts: Overlap | None, suffix: str) -> dict[str, int | None]:
    numbers = (counts.reference, counts.prediction, counts.intersection) if counts else (None, None, None)
    names = (f"{name}_voxels{suffix}" for name in ("reference", "predicted", "common"))
    return dict(zip(names, numbers, strict=True))


def reference_labels(case: Case, scan: Scan) -> NDArray[np.integer]:
    """Reference lesions by subtype in the lobes, 0 elsewhere, (z, y, x) on the CT's grid.

    Raises:
        InputError: the scan has none.
    """
    if scan.lesions is None:
        raise InputError(f"case {case.name}: got no reference lesions, expected a label map; fill the column lesions")
    return np.where(scan.lobes.array > 0, scan.lesions.array, 0)


def _scores(case: Case, percentages: dict[str, float | None]) -> dict[str, float | None]:
    scores: dict[str, float | None] = {}
    for lobe in LOBES:
        percent = percentages[lobe.key]
        scores[f"reference_{lobe.key}"] = case.scores.get(lobe.label)
        scores[f"predicted_{lobe.key}"] = None if percent is None else int(scores_from_percentages(percent))
        scores[f"percent_{lobe.key}"] = percent
    return scores
