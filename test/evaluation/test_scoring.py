from __future__ import annotations

import numpy as np
import pytest

from evaluation.errors import GroundTruthError
from evaluation.masks import Mask
from evaluation.reference import read_reference
from evaluation.scoring import aggregate, score_scan


@pytest.fixture
def scans(reference, predictions):
    scored = []
    for case, row in read_reference(reference).items():
        lesions, lobes = row.read()
        prediction = Mask(predictions[case], lesions.grid)
        scored.append(score_scan(row, lesions=lesions, lobes=lobes, prediction=prediction))
    return scored


def test_one_scan_by_hand(scans) -> None:
    scan = scans[0]
    assert scan.ious == {
        "overall": pytest.approx(2 / 8),
        "ground_glass": pytest.approx(2 / 4),
        "consolidation": 0.0,
        "mixed": 0.0,
    }
    assert scan.percent_errors == {"lul": -10.0, "lll": -10.0, "rul": 10.0, "rll": 0.0, "rml": 0.0}
    assert scan.score_pairs == {"lul": (2, 2), "lll": (2, 0), "rul": (0, 2), "rll": (0, 0)}


def test_aggregates_by_hand(scans) -> None:
    numbers = aggregate(scans)
    assert numbers["iou"]["overall"] == pytest.approx({"mean": 1 / 8, "std": 0.25 / 2**0.5, "n": 2, "pooled": 2 / 9})
    assert numbers["iou"]["ground_glass"] == {"mean": 0.5, "std": None, "n": 1}
    assert numbers["iou"]["consolidation"] == {"mean": 0.0, "std": 0.0, "n": 2}
    assert numbers["dice"]["mean"] == pytest.approx((4 / 10 + 0) / 2)
    assert numbers["lobe_percent_error"]["mean"] == pytest.approx(-5 / 10)
    assert numbers["lobe_percent_absolute_error"]["mean"] == pytest.approx(35 / 10)
    assert numbers["kappa"]["n"] == 9
    assert numbers["scans"] == {"n": 2, "n_empty_reference": 1, "n_empty_prediction": 0}


def test_an_absent_lobe_has_no_error_and_may_not_be_scored(reference) -> None:
    row = read_reference(reference)["b"]
    lesions, lobes = row.read()
    without = Mask(np.where(lobes.array == 2, 0, lobes.array).astype(np.uint8), lobes.grid)
    with pytest.raises(GroundTruthError, match="reference case b: lobe lll has score 0 but no voxel in lobes.mha"):
        score_scan(row, lesions=lesions, lobes=without, prediction=lesions)
    row.scores["lll"] = None
    scan = score_scan(row, lesions=lesions, lobes=without, prediction=lesions)
    assert scan.percent_errors["lll"] is None
    assert "lll" not in scan.score_pairs


def test_scans_without_lesions(reference) -> None:
    row = read_reference(reference)["b"]
    lesions, lobes = row.read()
    numbers = aggregate([score_scan(row, lesions=lesions, lobes=lobes, prediction=lesions)])
    assert numbers["iou"]["overall"] == {"mean": 1.0, "std": None, "n": 1, "pooled": None}
    assert numbers["iou"]["mixed"] == {"mean": None, "std": None, "n": 0}
