import numpy as np
import pandas as pd
import pytest

from training.ablate.tables import markdown_a, markdown_b, table_a, table_b

LOBES = ("lul", "lll", "rul", "rll", "rml")
CONTEXT = [0.30, 0.45, 0.50, 0.65, 0.70]
BASELINE = [0.20, 0.25, 0.40, 0.50, 0.65]  # less in every scan, by 0.10, 0.20, 0.10, 0.15, 0.05
REFERENCE = [0, 1, 2, 3, 4]
PERCENT = [0.0, 1.0, 5.0, 25.0, 50.0]  # from which on a lobe has the score

VOXELS = {  # of the subtypes, in each scan
    "ground_glass": {"reference": 60, "predicted": 50, "common": 40},
    "consolidation": {"reference": 0, "predicted": 0, "common": 0},
    "mixed": {"reference": 40, "predicted": 50, "common": 10},
}


def lines(
    row: str, ious: list[float], predicted: list[int], *, mixed: list[float | None] | None = None
) -> list[dict[str, object]]:
    """Scans of 100 reference voxels; one lobe of each is scored and all have the predicted scores given."""
    return [
        {
            "row": row, "case": f"{k:03d}", "iou": iou, "iou_ground_glass": iou / 2, "iou_consolidation": None,
            "iou_mixed": mixed[k] if mixed else None, "reference_voxels": 100, "predicted_voxels": 100,
            "common_voxels": 50,
            **{f"{name}_voxels_{kind}": n for kind, numbers in VOXELS.items() for name, n in numbers.items()},
            **{f"reference_{lobe}": REFERENCE[k] if lobe == "rul" else None for lobe in LOBES},
            **{f"percent_{lobe}": PERCENT[predicted[k]] for lobe in LOBES},
        }
        for k, iou in enumerate(ious)
    ]  # fmt: skip


@pytest.fixture
def per_scan() -> pd.DataFrame:
    return pd.DataFrame(
        [
            *lines("threshold", BASELINE, [0, 0, 0, 0, 0]),
            *lines("CAM raw", [0.3, 0.45, 0.5, 0.65, 0.7], REFERENCE),
            *lines("CAM + refinement", BASELINE, [0, 1, 2, 3, 3], mixed=[0.1, None, 0.2, None, None]),
            *lines("+ context", CONTEXT, REFERENCE, mixed=[0.4, 0.9, None, None, None]),
            *lines("supervised", [0.9] * 5, REFERENCE),
        ]
    )


@pytest.fixture
def entries(per_scan) -> dict[str, dict]:
    return {entry["row"]: entry for entry in table_b(per_scan, ["CAM raw", "CAM + refinement"], seed=0)}


def test_rows_keep_their_order(entries):
    assert list(entries) == ["threshold", "CAM raw", "CAM + refinement", "+ context", "supervised"]


def test_ious_of_a_row(entries):
    entry = entries["+ context"]
    assert entry["mean_iou"] == 0.52  # 2.6 / 5
    assert entry["median_iou"] == 0.5
    assert entry["pooled_iou"] == 0.3333  # 250 / (500 + 500 - 250)
    assert (entry["scans"], entry["empty_references"], entry["empty_predictions"]) == (5, 0, 0)


def test_empty_scans_are_counted_and_nothing_pooled_over_nothing(per_scan):
    per_scan[["reference_voxels", "predicted_voxels", "common_voxels"]] = 0
    entry = table_b(per_scan, ["CAM raw"], seed=0)[0]
    assert (entry["empty_references"], entry["empty_predictions"], entry["pooled_iou"]) == (5, 5, None)


def off_by_one_kappa(predicted: list[int]) -> float:
    chance = np.mean([abs(i - j) for i in REFERENCE for j in predicted]) / 5
    return 1 - (1 / 25) / chance


def test_kappa_by_hand(entries):
    """One of five pairs is off by one: disagreement 1/5 of 1/5; by chance the mean of |i - j| / 5 over the margins."""
    entry = entries["CAM + refinement"]
    assert entry["kappa"] == pytest.approx(off_by_one_kappa([0, 1, 2, 3, 3]), abs=5e-5)
    assert entry["lobes"] == 5  # the lobes without a score do not count
    assert entry["kappa_low"] < entry["kappa"] < entry["kappa_high"]
    assert entries["supervised"]["kappa"] == 1 and entries["supervised"]["agreement"] == "excellent"
    assert entries["threshold"]["kappa"] == 0 and entries["threshold"]["kappa_low"] is None


@pytest.mark.parametrize(("percent", "lowest_border_of_score_1"), [(1.0, 1.0), (0.5, 0.5), (0.2, 0.0)])
def test_a_faint_lobe_counts_from_the_border_on(per_scan, percent, lowest_border_of_score_1):
    """All else agrees; below the border the lobe with reference score 1 gets 0."""
    per_scan.loc[per_scan["case"] == "001", [f"percent_{lobe}" for lobe in LOBES]] = percent
    entry = table_b(per_scan, ["CAM raw"], seed=0)[-1]
    for name, border in (("kappa", 1.0), ("kappa_border_0_5_percent", 0.5), ("kappa_border_0_percent", 0.0)):
        expected = 1 if border <= lowest_border_of_score_1 else off_by_one_kappa([0, 0, 2, 3, 4])
        assert entry[name] == pytest.approx(expected, abs=5e-5)


def two_scans() -> pd.DataFrame:
    """One with its five lobes right, and one with one of them off by one; each row is alike."""
    scans = {"good": PERCENT, "bad": [*PERCENT[:4], PERCENT[3]]}
    return pd.DataFrame(
        {
            **lines("", [0.5], [0])[0], "row": row, "case": case,
            **{f"reference_{lobe}": score for lobe, score in zip(LOBES, REFERENCE, strict=True)},
            **{f"percent_{lobe}": value for lobe, value in zip(LOBES, percent, strict=True)},
        }
        for row in ("CAM + refinement", "+ context", "supervised") for case, percent in scans.items()
    )  # fmt: skip


def test_interval_over_scans_by_hand():
    """A quarter of the resamples holds the bad scan twice, a quarter the good one: they are the interval's ends."""
    bad = off_by_one_kappa([0, 1, 2, 3, 3])
    for entry in (*table_b(two_scans(), ["CAM + refinement"], seed=0), *table_a(two_scans(), seed=0)):
        assert (entry["kappa_scans_low"], entry["kappa_scans_high"]) == (pytest.approx(bad, abs=5e-5), 1.0)
        assert entry["kappa_low"] != entry["kappa_scans_low"]


def test_interval_over_scans_takes_scored_scans_alone():
    unscored = two_scans().assign(case=lambda table: table["case"] + " unscored")
    unscored[[f"reference_{lobe}" for lobe in LOBES]] = np.nan
    few = table_b(two_scans(), ["CAM + refinement"], seed=0)[0]
    more = table_b(pd.concat([two_scans(), unscored]), ["CAM + refinement"], seed=0)[0]
    assert (few["scans"], more["scans"]) == (2, 4)
    assert {key: few[key] for key in few if "kappa" in key} == {key: more[key] for key in more if "kappa" in key}
    nothing = table_b(unscored, ["CAM + refinement"], seed=0)[0]
    assert [nothing[key] for key in ("kappa", "kappa_scans_low", "kappa_scans_high")] == [None] * 3


def test_markdown_has_both_intervals_and_all_borders():
    kappa = off_by_one_kappa([0, 1, 2, 3, 3])
    text = markdown_b(table_b(two_scans(), ["CAM + refinement"], seed=0), m=7)
    assert "| kappa (95 % CI over lobes) | CI over scans | kappa at 0.5 % | kappa at 0 % | agreement |" in text
    for table in (text, markdown_a(table_a(two_scans(), seed=0))):
        assert f" | ({kappa:.3f}, 1.000) | 0.9" in table and "redraws whole scans" in table
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def test_wilcoxon_by_hand(entries):
    """Five differences of one sign: the two extreme ones of 2^5 equally likely sign patterns."""
    entry = entries["CAM + refinement"]
    assert entry["median_difference"] == -0.1
    assert entry["p"] == 0.0625
    assert entry["p_bonferroni"] == 0.125  # m = 2


def test_equal_rows_and_rows_that_are_not_compared_have_no_p(entries):
    assert (entries["CAM raw"]["median_difference"], entries["CAM raw"]["p"]) == (0, None)
    for name in ("threshold", "+ context", "supervised"):
        assert [entries[name][key] for key in ("median_difference", "p", "p_bonferroni")] == [None] * 3


def test_pairs_are_of_the_same_scan(per_scan):
    shuffled = per_scan.sample(frac=1, random_state=3)
    entry = next(e for e in table_b(shuffled, ["CAM + refinement"], seed=0) if e["row"] == "CAM + refinement")
    assert entry["p"] == 0.0625


def test_table_a_counts_the_scans_behind_each_subtype(per_scan):
    baseline, full, supervised = table_a(per_scan, seed=0)
    assert [baseline["row"], full["row"], supervised["row"]] == [
        "CAM + refinement",
        "dRAM full (+ context)",
        "supervised",
    ]
    assert (full["overall_iou"], full["overall_scans"]) == (0.52, 5)
    assert (full["ground_glass_iou"], full["ground_glass_scans"]) == (0.26, 5)
    assert (full["consolidation_iou"], full["consolidation_scans"]) == (None, 0)
    assert (full["mixed_iou"], full["mixed_scans"]) == (0.65, 2)
    assert (baseline["mixed_iou"], baseline["mixed_scans"]) == (0.15, 2)
    assert full["ground_glass_pooled_iou"] == 0.5714  # 200 / (300 + 250 - 200)
    assert (full["consolidation_pooled_iou"], full["mixed_pooled_iou"]) == (None, 0.125)  # 50 / (200 + 250 - 50)


def test_table_a_tests_the_baseline_in_four_columns(per_scan):
    baseline, full, _ = table_a(per_scan, seed=0)
    assert baseline["overall_p_bonferroni"] == 0.25  # 4 x 0.0625
    assert baseline["mixed_p_bonferroni"] == 1.0  # one scan has both values: p 1
    assert baseline["consolidation_p_bonferroni"] is None
    assert full["overall_p_bonferroni"] is None


def test_markdown_says_m_and_gives_every_row(per_scan, entries):
    text = markdown_b(list(entries.values()), m=2)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 5 and len({line.count("|") for line in table}) == 1
    assert "Bonferroni m = 2" in text and table[0].endswith("| p × 2 |")
    assert "| CAM + refinement | 0.400 |" in text and table[4].endswith("| -0.100 | 0.062 | 0.12 |")
    text = markdown_a(table_a(per_scan, seed=0))
    ious = (
        "0.520 (n = 5), pooled 0.333 | 0.260 (n = 5), pooled 0.571 | - (n = 0), pooled - | 0.650 (n = 2), pooled 0.125"
    )
    assert f"| dRAM full (+ context) | {ious} | 1.000" in text
    assert "p times m = 4: overall 0.25" in text
