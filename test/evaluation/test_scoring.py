from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.errors import GroundTruthError
from evaluation.masks import Mask
from evaluation.reference import read_reference
from evaluation.scoring import score_scan
from evaluation.summary import aggregate, severity_table, summarise


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
    assert scan.measures["iou"] == {
        "overall": pytest.approx(2 / 8),
        "ground_glass": pytest.approx(2 / 4),
        "consolidation": 0.0,
        "mixed": 0.0,
    }
    assert scan.percent_errors == {"lul": -10.0, "lll": -10.0, "rul": 10.0, "rll": 0.0, "rml": 0.0}
    assert scan.score_pairs() == [(2, 2), (2, 0), (0, 2), (0, 0)]
    assert scan.predicted_scores() == {"lul": 2, "lll": 0, "rul": 2, "rll": 0, "rml": 0}
    assert (scan.reference_total, scan.predicted_total) == (None, 4)


def test_the_volume_error_is_in_ml(scans) -> None:
    voxel_ml = 0.7 * 0.8 * 1.5 / 1000
    assert scans[1].measures["absolute_volume_error_ml"]["overall"] == pytest.approx(voxel_ml)


def test_aggregates_by_hand(scans) -> None:
    numbers = aggregate(scans)
    iou = numbers["iou"]
    assert [iou["overall"][key] for key in ("mean", "median", "std")] == pytest.approx([1 / 8, 1 / 8, 0.25 / 2**0.5])
    assert [iou["overall"][key] for key in ("n_valid", "n", "pooled")] == [2, 2, pytest.approx(2 / 9)]
    assert [iou["ground_glass"][key] for key in ("mean", "std", "n_valid", "n")] == [0.5, None, 1, 2]
    assert iou["consolidation"]["pooled"] == 0.0
    assert (numbers["sensitivity"]["overall"]["mean"], numbers["sensitivity"]["overall"]["n_valid"]) == (2 / 6, 1)
    assert numbers["dice"]["overall"]["mean"] == pytest.approx((4 / 10 + 0) / 2)
    errors, absolute = numbers["lobe_percent_error"], numbers["lobe_percent_absolute_error"]
    assert (errors["rml"]["mean"], errors["mean_of_lobes"]["mean"]) == pytest.approx((5 / 2, -5 / 10))
    assert (absolute["lul"]["mean"], absolute["mean_of_lobes"]["mean"]) == pytest.approx((10 / 2, 35 / 10))
    assert (numbers["kappa"]["n"], numbers["kappa"]["n_scans"]) == (9, 2)
    assert numbers["scans"] == {"n": 2, "n_empty_reference": 1, "n_empty_prediction": 0}


def test_the_total_score_by_hand(scans) -> None:
    # Scan a has no total; scan b has 1, and 5 % of its middle lobe give 2. One scan has neither R2 nor ICC.
    total = aggregate(scans)["total_score"]
    assert (total["absolute_error"]["mean"], total["n"]) == (1.0, 1)
    assert (total["r_squared"], total["icc_2_1"]) == (None, None)


def test_kappa_with_other_borders(scans) -> None:
    # One of 20 voxels is far from every border, so only a scan with less would change its scores.
    numbers = aggregate(scans)
    assert numbers["kappa_border_0_percent"] == numbers["kappa_border_0_5_percent"] == numbers["kappa"]
    few = [replace(scan, predicted_percent={**scan.predicted_percent, "rll": 0.7}) for scan in scans]
    values = [aggregate(few)[key]["value"] for key in ("kappa", "kappa_border_0_5_percent", "kappa_border_0_percent")]
    assert values[0] == numbers["kappa"]["value"]
    assert values[1] == values[2] != values[0]


def test_the_table_of_scores(scans) -> None:
    table = severity_table(scans)
    assert (table[2, 2], table[2, 0], table[0, 2], table[0, 0], table[1, 2], table.sum()) == (1, 1, 1, 5, 1, 9)


def test_a_summary_of_nothing() -> None:
    nothing = {"mean": None, "median": None, "std": None, "ci_low": None, "ci_high": None, "n_valid": 0, "n": 2}
    assert summarise([None, None], seed=0) == nothing


def test_an_absent_lobe_has_no_error_and_may_not_be_scored(reference) -> None:
    row = read_reference(reference)["b"]
    lesions, lobes = row.read()
    without = Mask(np.where(lobes.array == 2, 0, lobes.array).astype(np.uint8), lobes.grid)
    with pytest.raises(GroundTruthError, match="reference case b: lobe lll has score 0 but no voxel in lobes.mha"):
        score_scan(row, lesions=lesions, lobes=without, prediction=lesions)
    row.scores["lll"] = None
    scan = score_scan(row, lesions=lesions, lobes=without, prediction=lesions)
    assert scan.percent_errors["lll"] is None
    assert len(scan.score_pairs()) == 4
    assert scan.predicted_total is None


def test_scans_without_lesions(reference) -> None:
    row = read_reference(reference)["b"]
    lesions, lobes = row.read()
    numbers = aggregate([score_scan(row, lesions=lesions, lobes=lobes, prediction=lesions)])
    assert [numbers["iou"]["overall"][key] for key in ("mean", "std", "n_valid", "pooled")] == [1.0, None, 1, None]
    assert [numbers["iou"]["mixed"][key] for key in ("mean", "n_valid", "n")] == [None, 0, 1]
