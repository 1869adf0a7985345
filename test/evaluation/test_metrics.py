from __future__ import annotations

import numpy as np
import pytest

from evaluation.errors import InputError
from evaluation.metrics import dice, iou, lesion_ious, lesion_overlaps, lobe_percentages, overlap

SHAPE = (2, 3, 4)


def mask(*voxels: int) -> np.ndarray:
    array = np.zeros(SHAPE, dtype=bool)
    array.flat[list(voxels)] = True
    return array


def labels(**by_voxel: int) -> np.ndarray:
    array = np.zeros(SHAPE, dtype=np.uint8)
    for voxel, label in by_voxel.items():
        array.flat[int(voxel[1:])] = label
    return array


def test_overlap_by_hand() -> None:
    reference, prediction = mask(0, 1, 2, 3), mask(2, 3, 4, 5, 6)
    assert overlap(reference, prediction).union == 7
    assert iou(reference, prediction) == pytest.approx(2 / 7)
    assert dice(reference, prediction) == pytest.approx(4 / 9)


@pytest.mark.parametrize("metric", [iou, dice])
@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [(mask(), mask(), 1.0), (mask(1), mask(), 0.0), (mask(), mask(1), 0.0), (mask(1), mask(2), 0.0)],
    ids=["both empty", "prediction empty", "reference empty", "disjoint"],
)
def test_empty_masks(metric, reference, prediction, expected) -> None:
    assert metric(reference, prediction) == expected


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [(labels(), labels(), None), (labels(v1=3), labels(), 0.0), (labels(), labels(v1=3), 0.0)],
    ids=["both empty", "prediction empty", "reference empty"],
)
def test_empty_subtype(reference, prediction, expected) -> None:
    ious = lesion_ious(lesion_overlaps(reference, prediction))
    assert ious["mixed"] == expected
    assert ious["ground_glass"] is None
    assert ious["overall"] == (1.0 if expected is None else 0.0)


def test_lesion_ious_by_hand() -> None:
    reference = labels(v0=1, v1=1, v2=1, v3=2, v4=3)
    prediction = labels(v0=1, v1=1, v2=2, v3=2, v5=3)
    expected = {"overall": 4 / 6, "ground_glass": 2 / 3, "consolidation": 1 / 2, "mixed": 0.0}
    assert lesion_ious(lesion_overlaps(reference, prediction)) == pytest.approx(expected)


def test_iou_of_a_wrong_subtype_still_counts_as_lesion() -> None:
    assert lesion_ious(lesion_overlaps(labels(v0=1), labels(v0=2))) == {
        "overall": 1.0,
        "ground_glass": 0.0,
        "consolidation": 0.0,
        "mixed": None,
    }


def test_lobe_percentages_by_hand() -> None:
    lobes = np.array([[[1] * 8 + [2] * 4 + [3] * 3 + [5]]], dtype=np.uint8)
    lesions = np.zeros((1, 1, 16), dtype=bool)
    lesions[0, 0, [0, 1, 8, 15]] = True
    assert lobe_percentages(lesions, lobes) == {"lul": 25.0, "lll": 25.0, "rul": 0.0, "rll": None, "rml": 100.0}


def test_a_percentage_on_a_border_is_exact() -> None:
    lobes = np.ones((1, 20, 20), dtype=np.uint8)
    for percent in (1, 5, 25, 50, 75):
        lesions = (np.arange(400) < 4 * percent).reshape(lobes.shape)
        assert lobe_percentages(lesions, lobes)["lul"] == percent


def test_refuses_other_shapes() -> None:
    with pytest.raises(InputError, match=r"shapes \(2, 3, 4\) and \(1, 1, 1\).*resample"):
        iou(mask(), np.zeros((1, 1, 1), dtype=bool))


def test_refuses_masks_that_are_not_bool() -> None:
    with pytest.raises(InputError, match="prediction: got a mask of uint8, expected bool"):
        iou(mask(), labels())


def test_refuses_unknown_labels() -> None:
    with pytest.raises(InputError, match="prediction_labels: got labels 0 to 4, expected 0 to 3"):
        lesion_overlaps(labels(), labels(v0=4))
    with pytest.raises(InputError, match="reference_labels: got float64, expected integer labels"):
        lesion_overlaps(labels().astype(float), labels())
