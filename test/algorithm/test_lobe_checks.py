from __future__ import annotations

import numpy as np
import pytest

from algorithm.errors import InputError
from algorithm.images import Geometry, Volume
from algorithm.lobe_checks import require_lungs, what_is_implausible

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
    assert what_is_implausible(lobes, {label: 0.95 for label in range(1, 6)}) == []


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
        (lambda lobes: lobes[np.isin(lobes, (1, 2))].fill(0), []),
        (
            lambda lobes: np.putmask(lobes, np.isin(lobes, (1, 2)), 0),
            ["the left lung that was found has 0 ml, expected 300 to 5500: check the lobes"],
        ),
        (
            lambda lobes: np.putmask(lobes, lobes == 1, 2),
            [
                "the left upper lobe that was found is 0 % of its lung, expected 25 to 85 %: check the lobes",
                "the left lower lobe that was found is 100 % of its lung, expected 15 to 75 %: check the lobes",
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
    assert what_is_implausible(lobes, {}) == doubts


def test_sides_of_the_scan_are_named_as_in_the_patient():
    _, lobes = chest()
    whole = lobes.with_array(np.repeat(np.repeat(lobes.array[2:17, 3:13, 2:28], 2, axis=0), 1, axis=1))
    (doubt,) = what_is_implausible(whole, {})
    assert "(lower, upper, front, back, right, left)" in doubt


def test_little_confidence_is_said():
    _, lobes = chest()
    (doubt,) = what_is_implausible(lobes, {5: 0.62, 4: 0.9})
    assert doubt == "the right middle lobe was found with little confidence (0.62): check the lobes"
