from __future__ import annotations

import numpy as np
import pytest

from algorithm.errors import InputError
from algorithm.images import Geometry, Volume
from algorithm.lobe_checks import doubts_about_found, doubts_about_given, require_lungs

CENTIMETRE = Geometry((24, 16, 30), (10.0, 10.0, 10.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
"""Voxels of 1 ml."""


def chest() -> tuple[Volume, Volume]:
    """CT and lobes of 1000 ml on the left, halves above each other, and 1500 ml on the right, in the ratio 5:6:4."""
    lobes = np.zeros(CENTIMETRE.size_zyx, dtype=np.uint8)
    lobes[12:17, 3:13, 18:28], lobes[7:12, 3:13, 18:28] = 1, 2
    lobes[12:17, 3:13, 2:12], lobes[7:9, 3:13, 2:12] = 3, 5
    lobes[2:7, 3:13, 2:12], lobes[9:12, 3:13, 2:8], lobes[9:12, 3:13, 8:12] = 4, 4, 5
    hu = np.where(lobes > 0, -850, 40).astype(np.int16)
    return Volume(hu, CENTIMETRE), Volume(lobes, CENTIMETRE)


def test_a_plausible_chest_gives_no_warning():
    ct, lobes = chest()
    require_lungs(lobes, ct)
    assert doubts_about_found(lobes, {label: 0.95 for label in range(1, 6)}) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ct, lobes: lobes.fill(0), "got 0 ml that look like lung, 0 ml of them with air"),
        (lambda ct, lobes: ct.fill(40), "got 2500 ml that look like lung, 0 ml of them with air"),
        (lambda ct, lobes: ct.fill(-1024), "got 2500 ml that look like lung, 0 ml of them with air"),
    ],
)
def test_a_scan_without_lungs_is_refused(change, message):
    ct, lobes = chest()
    change(ct.array, lobes.array)
    with pytest.raises(InputError, match=f"no lungs were found: {message}, expected at least 300 and 100 ml"):
        require_lungs(lobes, ct)


@pytest.mark.parametrize(
    ("change", "doubts"),
    [
        (
            lambda lobes: np.putmask(lobes, np.isin(lobes, (1, 2)), 0),
            ["the left lung has 0 ml, expected 300 to 5500: check the lobes"],
        ),
        (
            lambda lobes: np.putmask(lobes, lobes == 1, 2),
            [
                "the left upper lobe is 0 % of its lung, expected 25 to 85 %: check the lobes",
                "the left lower lobe is 100 % of its lung, expected 15 to 75 %: check the lobes",
            ],
        ),
        (
            lambda lobes: lobes[:, 15:, 20:23].__setitem__(slice(7, 17), 2),
            ["the scan ends within the lungs (back): percentages are of what it shows"],
        ),
    ],
)
def test_what_is_implausible_is_said(change, doubts):
    _, lobes = chest()
    change(lobes.array)
    assert doubts_about_found(lobes, {}) == doubts


def test_sides_of_the_scan_are_named_as_in_the_patient():
    _, lobes = chest()
    whole = lobes.with_array(np.repeat(np.repeat(lobes.array[2:17, 3:13, 2:28], 2, axis=0), 1, axis=1))
    (doubt,) = doubts_about_found(whole, {})
    assert "(lower, upper, front, back, right, left)" in doubt


def test_little_confidence_is_said():
    _, lobes = chest()
    (doubt,) = doubts_about_found(lobes, {5: 0.62, 4: 0.9})
    assert doubt == "the right middle lobe was found with little confidence (0.62): check the lobes"


def test_given_lobes_of_a_plausible_chest_are_beyond_doubt():
    ct, lobes = chest()
    assert doubts_about_given(lobes, ct) == []
    np.putmask(lobes.array, lobes.array == 5, 0)  # a lobe that is absent says nothing of the others' shares
    assert doubts_about_given(lobes, ct) == []


@pytest.mark.parametrize("hu", [40, -1874, 174])
def test_lobes_without_air_are_doubtful(hu):
    _, lobes = chest()
    (doubt,) = doubts_about_given(lobes, lobes.with_array(np.full(lobes.array.shape, hu, dtype=np.int16)))
    assert doubt.startswith(
        "0 ml of the lobes hold air (-1000 to -500 HU), expected at least 100: check that the CT is in"
    )


RENUMBERED = ": check the orientation and the numbers of the lobes"


@pytest.mark.parametrize(
    ("change", "doubts"),
    [
        (
            lambda array: array[:, :, ::-1],
            [
                "the left upper lobe lies to the right of the right upper lobe" + RENUMBERED,
                "the left lower lobe lies to the right of the right lower lobe" + RENUMBERED,
            ],
        ),
        (
            lambda array: np.array([0, 2, 1, 3, 4, 5])[array],
            ["the left upper lobe lies below the left lower lobe" + RENUMBERED],
        ),
    ],
)
def test_lobes_on_the_wrong_side_or_wrongly_numbered_are_doubtful(change, doubts):
    ct, lobes = chest()
    changed = lobes.with_array(change(lobes.array).astype(np.uint8))
    assert doubts_about_given(changed, ct.with_array(np.where(changed.array > 0, -850, 40))) == doubts


def test_swapped_right_lower_and_middle_lobes_are_doubtful():
    ct, lobes = chest()
    in_front = np.repeat(np.arange(16)[None, :, None], 24, axis=0) < 7  # the middle lobe lies before the lower one
    lobes.array[(lobes.array == 5) & ~in_front] = 4
    assert doubts_about_given(lobes, ct) == []
    swapped = lobes.with_array(np.array([0, 1, 2, 3, 5, 4], dtype=np.uint8)[lobes.array])
    assert "the right lower lobe lies in front of the right middle lobe" + RENUMBERED in doubts_about_given(swapped, ct)
