from pathlib import Path

import numpy as np
import pytest

from algorithm.errors import InputError
from algorithm.images import Geometry, Volume
from algorithm.subtypes import ReferenceComponents
from training.ablate.measures import measure
from training.cases import Case, Scan

GRID = Geometry((1, 4, 5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
COMPONENTS = ReferenceComponents(  # dense lesions are consolidation, faint ones ground-glass
    volume_ml=np.array([0.005, 0.005]),
    mean_hu=np.array([0.0, -600.0]),
    sd_hu=np.array([50.0, 50.0]),
    subtype=np.array([2, 1], dtype=np.uint8),
)


def scan_of(lesions: np.ndarray | None, *, hu: float = -600.0) -> Scan:
    """Rows of the slice: lobes 1, 2, 3 and nothing; lobes 4 and 5 are absent."""
    lobes = np.zeros(GRID.size_zyx, dtype=np.uint8)
    lobes[0, 0], lobes[0, 1], lobes[0, 2] = 1, 2, 3
    ct = Volume(np.full(GRID.size_zyx, hu, dtype=np.float32), GRID)
    return Scan(ct, Volume(lobes, GRID), None if lesions is None else Volume(lesions, GRID), None)


def case_with(scores: dict[int, int]) -> Case:
    return Case("a", Path("ct"), Path("lobes"), scores, Path("lesions"), None, "test")


def mask(*voxels: tuple[int, int]) -> np.ndarray:
    lesions = np.zeros(GRID.size_zyx, dtype=bool)
    for y, x in voxels:
        lesions[0, y, x] = True
    return lesions


def test_measures_of_a_prediction_counted_by_hand():
    reference = np.zeros(GRID.size_zyx, dtype=np.int16)
    reference[0, 0, :3] = 1  # ground-glass, 3 voxels
    reference[0, 2, 4] = 2  # consolidation, 1 voxel
    reference[0, 3, :] = 3  # outside the lobes: does not count
    predicted = mask((0, 1), (0, 2), (0, 3), (1, 3))  # one faint component, 2 voxels of it in the reference
    values = measure(case_with({1: 3, 2: 0, 3: 1}), scan_of(reference), predicted, COMPONENTS)
    assert values == {
        "iou": 2 / 6,
        "iou_ground_glass": 2 / 5,
        "iou_consolidation": 0.0,
        "iou_mixed": None,
        "reference_voxels": 4,
        "predicted_voxels": 4,
        "common_voxels": 2,
        "reference_voxels_ground_glass": 3,
        "predicted_voxels_ground_glass": 4,
        "common_voxels_ground_glass": 2,
        "reference_voxels_consolidation": 1,
        "predicted_voxels_consolidation": 0,
        "common_voxels_consolidation": 0,
        "reference_voxels_mixed": 0,
        "predicted_voxels_mixed": 0,
        "common_voxels_mixed": 0,
        "reference_lul": 3,
        "predicted_lul": 4,  # 3 of 5 voxels
        "percent_lul": 60.0,
        "reference_lll": 0,
        "predicted_lll": 2,  # 1 of 5 voxels
        "percent_lll": 20.0,
        "reference_rul": 1,
        "predicted_rul": 0,
        "percent_rul": 0.0,
        "reference_rll": None,  # absent lobes
        "predicted_rll": None,
        "percent_rll": None,
        "reference_rml": None,
        "predicted_rml": None,
        "percent_rml": None,
    }


def test_subtypes_of_the_prediction_are_voted_by_attenuation():
    reference = np.zeros(GRID.size_zyx, dtype=np.uint8)
    reference[0, 0, 0] = 2
    dense = measure(case_with({}), scan_of(reference, hu=0.0), mask((0, 0)), COMPONENTS)
    assert (dense["iou_consolidation"], dense["iou_ground_glass"]) == (1.0, None)
    faint = measure(case_with({}), scan_of(reference, hu=-600.0), mask((0, 0)), COMPONENTS)
    assert (faint["iou_consolidation"], faint["iou_ground_glass"], faint["iou"]) == (0.0, 0.0, 1.0)


def test_lesion_of_unknown_subtype_leaves_nothing_to_say_of_subtypes():
    reference = np.zeros(GRID.size_zyx, dtype=np.uint8)
    reference[0, 0, :2] = 1, 4
    values = measure(case_with({}), scan_of(reference), mask((0, 0)), COMPONENTS)
    assert (values["iou"], values["common_voxels"]) == (0.5, 1)
    assert [values[f"{kind}_ground_glass"] for kind in ("iou", "reference_voxels", "common_voxels")] == [None] * 3


def test_two_empty_masks_agree():
    values = measure(case_with({1: 0}), scan_of(np.zeros(GRID.size_zyx, dtype=np.uint8)), mask(), COMPONENTS)
    assert (values["iou"], values["iou_ground_glass"]) == (1.0, None)
    assert (values["reference_lul"], values["predicted_lul"]) == (0, 0)


def test_a_lobe_without_a_score_is_left_out():
    values = measure(case_with({2: 5}), scan_of(np.ones(GRID.size_zyx, dtype=np.uint8)), mask(), COMPONENTS)
    assert (values["reference_lul"], values["predicted_lul"], values["reference_lll"]) == (None, 0, 5)


def test_unusable_references_are_refused():
    with pytest.raises(InputError, match="case a: got no reference lesions"):
        measure(case_with({}), scan_of(None), mask(), COMPONENTS)
    with pytest.raises(InputError, match="case a: reference lesions: .*got labels 0 to 7, expected 0 to 3"):
        measure(case_with({}), scan_of(np.full(GRID.size_zyx, 7, dtype=np.uint8)), mask(), COMPONENTS)
