import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithm.severity import SCORE_INTERVALS, lobe_involvement, score_of_percent, total_score


@pytest.mark.parametrize(
    "percent, score",
    [
        (0, 0),
        (0.99, 0),
        (1, 1),
        (4.99, 1),
        (5, 2),
        (24.99, 2),
        (25, 3),
        (49.9, 3),
        (50, 4),
        (74.9, 4),
        (75, 5),
        (100, 5),
    ],
)
def test_bands_are_lower_inclusive(percent, score):
    assert score_of_percent(percent) == score


@given(st.floats(0, 100), st.floats(0, 100))
def test_score_never_falls_as_the_percentage_rises(a, b):
    assert score_of_percent(min(a, b)) <= score_of_percent(max(a, b))


@given(st.integers(0, 5), st.floats(0, 1))
def test_training_intervals_lie_in_their_bands(score, position):
    lower, upper = SCORE_INTERVALS[score]
    percent = 100 * (lower + position * (upper - lower))  # may round to the upper end, where the next score begins
    assert score_of_percent(percent) in (score, score + 1 if percent == 100 * upper else score)


@pytest.mark.parametrize("percent", [-0.1, 100.1, float("nan")])
def test_no_score_outside_0_to_100(percent):
    with pytest.raises(ValueError, match="expected a number from 0 to 100"):
        score_of_percent(percent)


def test_involvement_by_hand():
    lobes = np.array([[[1] * 4 + [2] * 8 + [3] * 2 + [4] * 2]], dtype=np.uint8)  # no right middle lobe
    lesions = np.zeros_like(lobes)
    lesions[0, 0, :1] = 1
    lesions[0, 0, 4:10] = 3
    entries = lobe_involvement(lesions, lobes, voxel_ml=0.5)
    assert [e.percent for e in entries] == [25, 75, 0, 0, None]
    assert [e.score for e in entries] == [3, 5, 0, 0, None]
    assert [e.volume_ml for e in entries] == [2, 4, 1, 1, 0]
    assert [e.lesion_ml for e in entries] == [0.5, 3, 0, 0, 0]
    assert total_score(entries) is None


def test_total_of_five_lobes():
    lobes = np.array([[[1, 2, 3, 4, 5]]], dtype=np.uint8)
    assert total_score(lobe_involvement((lobes > 2).astype(np.uint8), lobes, voxel_ml=1.0)) == 15
