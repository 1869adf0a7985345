from __future__ import annotations

import numpy as np
import pytest
from grand_challenge_metrics.stats import (
    absolute_volume_difference,
    calculate_confusion_matrix,
    dice_from_confusion_matrix,
    jaccard_from_confusion_matrix,
)
from sklearn.metrics import precision_score, recall_score

from evaluation.measures import MEASURES, TARGETS, scan_measures
from evaluation.metrics import SUBTYPES

SPACING = (2.0, 1.0, 0.5)  # one voxel is 0.001 ml


def labels(count: int, label: int = 2) -> np.ndarray:
    array = np.zeros((2, 3, 4), dtype=np.uint8)
    array.flat[:count] = label
    return array


def column(reference: int, prediction: int, target: str) -> list[float | None]:
    measures, _ = scan_measures(labels(reference), labels(prediction), spacing_zyx_mm=SPACING)
    return [measures[measure][target] for measure in MEASURES]


ABSENT = [None, None, None, None, 0.0, None, None]


# The rows of MEASURES: IoU, Dice, sensitivity, precision, volume error, surface Dice, Hausdorff distance.
@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        (0, 0, [1.0, 1.0, None, None, 0.0, 1.0, None]),
        (5, 0, [0.0, 0.0, 0.0, None, 0.005, 0.0, None]),
        (0, 7, [0.0, 0.0, None, 0.0, 0.007, 0.0, None]),
    ],
    ids=["both empty", "reference only", "prediction only"],
)
def test_empty_masks_overall(reference, prediction, expected) -> None:
    assert column(reference, prediction, "overall") == [pytest.approx(value) for value in expected]


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        (0, 0, ABSENT),
        (5, 0, [0.0, 0.0, 0.0, None, 0.005, 0.0, None]),
        (0, 7, [0.0, 0.0, None, 0.0, 0.007, 0.0, None]),
    ],
    ids=["both empty", "reference only", "prediction only"],
)
def test_empty_masks_of_a_subtype(reference, prediction, expected) -> None:
    assert column(reference, prediction, "consolidation") == [pytest.approx(value) for value in expected]
    assert column(reference, prediction, "mixed") == ABSENT


def test_by_hand() -> None:
    # 8 voxels and the first 4 of them: intersection 4, union 8.
    assert column(8, 4, "overall")[:5] == pytest.approx([4 / 8, 8 / 12, 4 / 8, 1.0, 0.004])
    assert column(4, 8, "overall")[:5] == pytest.approx([4 / 8, 8 / 12, 1.0, 4 / 8, 0.004])


def test_every_target_has_every_measure() -> None:
    measures, overlaps = scan_measures(labels(5), labels(5, label=1), spacing_zyx_mm=SPACING)
    assert list(measures) == list(MEASURES)
    assert all(list(values) == list(TARGETS) for values in measures.values())
    assert measures["iou"] == {"overall": 1.0, "ground_glass": 0.0, "consolidation": 0.0, "mixed": None}
    assert (overlaps["ground_glass"].prediction, overlaps["ground_glass"].reference) == (5, 0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_against_a_brute_force_count_and_other_libraries(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, prediction = rng.integers(0, 4, (5, 6, 7), np.uint8), rng.integers(0, 4, (5, 6, 7), np.uint8)
    measures, _ = scan_measures(reference, prediction, spacing_zyx_mm=SPACING)
    matrix = calculate_confusion_matrix(reference, prediction, [0, 1, 2, 3])
    jaccard, dice = jaccard_from_confusion_matrix(matrix), dice_from_confusion_matrix(matrix)
    labels = {"overall": 0} | {name: label for label, name in SUBTYPES.items()}
    for target in TARGETS:
        label = labels[target]
        ours = [measures[measure][target] for measure in MEASURES[:5]]
        pair = (reference > 0, prediction > 0) if target == "overall" else (reference == label, prediction == label)
        both = sum(a and b for a, b in zip(pair[0].flat, pair[1].flat, strict=True))
        either = sum(a or b for a, b in zip(pair[0].flat, pair[1].flat, strict=True))
        assert ours[0] == pytest.approx(both / either)
        assert ours[2] == pytest.approx(recall_score(pair[0].ravel(), pair[1].ravel()))
        assert ours[3] == pytest.approx(precision_score(pair[0].ravel(), pair[1].ravel()))
        assert ours[4] == pytest.approx(absolute_volume_difference(*pair, voxelspacing=SPACING) / 1000)
        if label:
            assert ours[:2] == pytest.approx([jaccard[label], dice[label]], rel=1e-6)
