"""From masks to the numbers of one scan, and from scans to the numbers of one method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.agreement import Kappa, linear_weighted_kappa, scores_from_percentages
from evaluation.errors import GroundTruthError
from evaluation.masks import Mask
from evaluation.metrics import LOBES, Overlap, lesion_ious, lobe_percentages, overlap
from evaluation.reference import ReferenceCase


@dataclass(frozen=True)
class ScanScore:
    """What one prediction is worth on one scan.

    Attributes:
        case: name of the scan.
        lesions: voxel counts of all lesions together.
        ious: overall and by subtype; None where undefined.
        percent_errors: predicted minus reference involvement by lobe, in percent points; None for an absent lobe.
        score_pairs: (reference, predicted) severity score by lobe, of the lobes that were scored.
    """

    case: str
    lesions: Overlap
    ious: dict[str, float | None]
    percent_errors: dict[str, float | None]
    score_pairs: dict[str, tuple[int, int]]

    def as_result(self) -> dict[str, Any]:
        """The scan's metrics, free of reference scores."""
        return {
            "case": self.case,
            "iou": self.ious,
            "dice": self.lesions.dice,
            "lobe_percent_error": self.percent_errors,
        }


def score_scan(reference: ReferenceCase, *, lesions: Mask, lobes: Mask, prediction: Mask) -> ScanScore:
    """Judge one prediction.

    Args:
        reference: the row of the reference; its scores are the ones to agree with.
        lesions: its lesion mask.
        lobes: its lobe mask, in which involvement is measured for reference and prediction alike.
        prediction: the lesion mask to judge, on the same grid.

    Raises:
        GroundTruthError: a lobe has a score, but no voxel in the lobe mask.
    """
    reference_percent = lobe_percentages(lesions.array > 0, lobes.array)
    predicted_percent = lobe_percentages(prediction.array > 0, lobes.array)
    percent_errors: dict[str, float | None] = {}
    score_pairs: dict[str, tuple[int, int]] = {}
    for lobe in LOBES.values():
        expected, got, score = reference_percent[lobe], predicted_percent[lobe], reference.scores[lobe]
        percent_errors[lobe] = None if expected is None or got is None else got - expected
        if score is None:
            continue
        if got is None:
            raise GroundTruthError(
                f"reference case {reference.case}: lobe {lobe} has score {score} but no voxel in {reference.lobes.name}"
            )
        score_pairs[lobe] = (score, int(scores_from_percentages(got)))
    return ScanScore(
        case=reference.case,
        lesions=overlap(lesions.array > 0, prediction.array > 0),
        ious=lesion_ious(lesions.array, prediction.array),
        percent_errors=percent_errors,
        score_pairs=score_pairs,
    )


def severity_kappa(scans: Sequence[ScanScore]) -> Kappa:
    """Agreement of the predicted with the reference scores over all scored lobes of all scans."""
    pairs = [pair for scan in scans for pair in scan.score_pairs.values()]
    return linear_weighted_kappa([reference for reference, _ in pairs], [predicted for _, predicted in pairs])


def aggregate(scans: Sequence[ScanScore]) -> dict[str, Any]:
    """Nested dictionaries that end in finite numbers, or in None where a metric is undefined.

    IoU is the mean over scans (`n` of them have a value), and beside it `pooled`: the IoU of all scans' voxels taken
    together, None if no scan holds a lesion.
    """
    ious: dict[str, dict[str, float | None]] = {
        name: _spread([scan.ious[name] for scan in scans]) for name in scans[0].ious
    }
    union = sum(scan.lesions.union for scan in scans)
    ious["overall"]["pooled"] = sum(scan.lesions.intersection for scan in scans) / union if union else None
    kappa = severity_kappa(scans)
    errors = [error for scan in scans for error in scan.percent_errors.values()]
    return {
        "iou": ious,
        "dice": _spread([scan.lesions.dice for scan in scans]),
        "lobe_percent_error": _spread(errors),
        "lobe_percent_absolute_error": _spread([None if error is None else abs(error) for error in errors]),
        "kappa": {
            "value": kappa.kappa,
            "standard_error": kappa.standard_error,
            "ci_low": kappa.ci_low,
            "ci_high": kappa.ci_high,
            "n": kappa.n,
        },
        "scans": {
            "n": len(scans),
            "n_empty_reference": sum(scan.lesions.reference == 0 for scan in scans),
            "n_empty_prediction": sum(scan.lesions.prediction == 0 for scan in scans),
        },
    }


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean, sample standard deviation and number of the defined values."""
    defined = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(defined)) if defined else None,
        "std": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
        "n": len(defined),
    }
