"""From the masks of one scan to its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evaluation.agreement import LOWEST_BORDER_PERCENT, scores_from_percentages
from evaluation.errors import GroundTruthError
from evaluation.masks import Mask
from evaluation.measures import Measures, scan_measures
from evaluation.metrics import LOBES, OVERALL, Overlap, lobe_percentages
from evaluation.reference import ReferenceCase


@dataclass(frozen=True)
class ScanScore:
    """What one prediction is worth on one scan.

    Attributes:
        case: name of the scan.
        measures: value by measure and target; None where undefined.
        overlaps: voxel counts by target.
        reference_percent: lesion voxels per 100 voxels of each lobe; None for an absent lobe.
        predicted_percent: the same for the prediction, in the reference's lobes.
        reference_scores: severity score 0 to 5 by lobe; None where a lobe was not scored.
        reference_total: severity score 0 to 25 of the scan; None if not known.
        is_resampled: whether the prediction was brought onto the reference's grid from another.
    """

    case: str
    measures: Measures
    overlaps: dict[str, Overlap]
    reference_percent: dict[str, float | None]
    predicted_percent: dict[str, float | None]
    reference_scores: dict[str, int | None]
    reference_total: int | None
    is_resampled: bool = False

    @property
    def lesions(self) -> Overlap:
        """Voxel counts of all lesions together."""
        return self.overlaps[OVERALL]

    @property
    def percent_errors(self) -> dict[str, float | None]:
        """Predicted minus reference involvement by lobe, in percent points; None for an absent lobe."""
        errors: dict[str, float | None] = {}
        for lobe, reference in self.reference_percent.items():
            predicted = self.predicted_percent[lobe]
            errors[lobe] = None if reference is None or predicted is None else predicted - reference
        return errors

    def predicted_scores(self, lowest_border: float = LOWEST_BORDER_PERCENT) -> dict[str, int | None]:
        """Severity scores read off the prediction, score 1 from `lowest_border` percent on; None for an absent lobe."""
        return {
            lobe: None if percent is None else int(scores_from_percentages(percent, lowest_border=lowest_border))
            for lobe, percent in self.predicted_percent.items()
        }

    def score_pairs(self, lowest_border: float = LOWEST_BORDER_PERCENT) -> list[tuple[int, int]]:
        """(Reference, predicted) severity score of each lobe that was scored."""
        predicted = self.predicted_scores(lowest_border)
        pairs = ((self.reference_scores[lobe], predicted[lobe]) for lobe in LOBES.values())
        return [(first, second) for first, second in pairs if first is not None and second is not None]

    @property
    def predicted_total(self) -> int | None:
        """Severity score 0 to 25 read off the prediction; None when a lobe is absent."""
        scores = [score for score in self.predicted_scores().values() if score is not None]
        return sum(scores) if len(scores) == len(LOBES) else None

    def as_result(self) -> dict[str, Any]:
        """The scan's metrics, free of reference scores."""
        return {"case": self.case, **self.measures, "lobe_percent_error": self.percent_errors}


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
    for lobe, score in reference.scores.items():
        if score is not None and reference_percent[lobe] is None:
            raise GroundTruthError(
                f"reference case {reference.case}: lobe {lobe} has score {score} but no voxel in {reference.lobes.name}"
            )
    measures, overlaps = scan_measures(lesions.array, prediction.array, spacing_zyx_mm=lesions.grid.spacing_zyx_mm)
    return ScanScore(
        case=reference.case,
        measures=measures,
        overlaps=overlaps,
        reference_percent=reference_percent,
        predicted_percent=lobe_percentages(prediction.array > 0, lobes.array),
        reference_scores=reference.scores,
        reference_total=reference.total,
        is_resampled=prediction.is_resampled,
    )
