from pathlib import Path

import numpy as np
import pytest

from algorithm.errors import InputError
from algorithm.images import Geometry, Volume
from training.ablate.slices import pictured_cases, save_slice
from training.cases import Case, Scan

GRID = Geometry((4, 3, 3), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def case_with(score: int, name: str = "a") -> Case:
    return Case(name, Path("ct"), Path("lobes"), {1: score}, Path("lesions"), None, "test")


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [([3], [3]), ([5, 1], [1, 5]), ([4, 1, 2], [1, 2, 4]), ([0, 5, 1, 4, 2, 3, 0], [1, 3, 5]), ([0, 0], [0, 0])],
)
def test_mild_middling_and_severe_cases_are_pictured(scores, chosen):
    assert [case.scores[1] for case in pictured_cases([case_with(score) for score in scores])] == chosen


def scan_of(lesions: np.ndarray | None) -> Scan:
    lobes = np.ones(GRID.size_zyx, dtype=np.uint8)
    lobes[3, 1:] = 0
    ct = Volume(np.zeros(GRID.size_zyx, dtype=np.int16), GRID)
    return Scan(ct, Volume(lobes, GRID), None if lesions is None else Volume(lesions, GRID), None)


def kept_slice(lesions: np.ndarray, folder: Path) -> int:
    """Which slice of a prediction is kept, told by its pattern: slice k has its one voxel in column k."""
    predicted = np.zeros(GRID.size_zyx, dtype=bool)
    for z in range(3):
        predicted[z, 0, z] = True
    save_slice(folder, case_with(1), scan_of(lesions), predicted)
    kept = np.load(folder / "a_slice.npy")
    return int(kept[0].argmax()) if kept.any() else 3


def test_the_slice_with_most_reference_lesion_in_the_lobes_is_kept(tmp_path):
    lesions = np.zeros(GRID.size_zyx, dtype=np.uint8)
    lesions[1, 0, 0], lesions[2, 0, :2], lesions[3, 1:, :] = 1, 2, 3  # those of slice 3 lie outside the lobes
    assert kept_slice(lesions, tmp_path) == 2


def test_without_lesions_the_slice_with_most_lung_is_kept(tmp_path):
    assert kept_slice(np.zeros(GRID.size_zyx, dtype=np.uint8), tmp_path) == 0


def test_a_case_without_reference_is_refused(tmp_path):
    with pytest.raises(InputError, match="case a: got no reference lesions"):
        save_slice(tmp_path, case_with(1), scan_of(None), np.zeros(GRID.size_zyx, dtype=bool))
