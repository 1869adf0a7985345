"""Whether lobes that were found in a scan, or came with it, can be its lobes, and whether it shows all of the lungs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from algorithm.errors import InputError
from algorithm.images import Volume
from algorithm.lobes import LEFT, LOBES, RIGHT, lobe_volumes_ml
from algorithm.orientation import to_canonical

SMALLEST_LUNGS_ML = 300.0
SMALLEST_AERATED_ML = 100.0
AERATED_HU = (-1000.0, -500.0)
LUNG_ML = (300.0, 5500.0)
"""Of one lung; real ones at inspiration measured 1000 to 4000 ml, and less where they are diseased or out of breath."""
LOBE_SHARES = {1: (0.25, 0.85), 2: (0.15, 0.75), 3: (0.15, 0.70), 4: (0.15, 0.75), 5: (0.03, 0.40)}
"""Of its lung by label; real ones measured 0.40-0.69, 0.31-0.60, 0.27-0.55, 0.28-0.60 and 0.10-0.28."""
CONFIDENT = 0.8
CUT_ML_PER_MM = 0.2
"""Area of lung in an outermost slice, 200 mm2, from which on the scan cuts the lungs."""
NAMES = {lobe.label: lobe.name for lobe in LOBES}
_SIDES = {"left": LEFT, "right": RIGHT}
_PLACE_STEP = 4  # voxels; centres need no more
_WRONG_WAY_ROUND = (
    (1, 2, 0, "below"),
    (3, 4, 0, "below"),
    (4, 5, 1, "in front of"),
    (1, 3, 2, "to the right of"),
    (2, 4, 2, "to the right of"),
)
"""Lobes of which the first, by its centre along an axis of (z, y, x), should come after the second."""
_FACES = (("lower", "upper"), ("front", "back"), ("right", "left"))  # of a scan in LPS order, first and last index


class NoLungsError(InputError):
    """A scan in which no lungs were found."""


def require_lungs(labels: Volume, ct: Volume) -> None:
    """Refuse a scan in which no lungs were found.

    Args:
        labels: lobe labels.
        ct: HU on the same grid.

    Raises:
        NoLungsError: less than 300 ml of lobes, or less than 100 ml of them with air in it.
    """
    lung_ml, aerated_ml = _lung_and_air_ml(labels, ct)
    if lung_ml < SMALLEST_LUNGS_ML or aerated_ml < SMALLEST_AERATED_ML:
        raise NoLungsError(
            f"no lungs were found: got {lung_ml:.0f} ml that look like lung, {aerated_ml:.0f} ml of them with air, "
            f"expected at least {SMALLEST_LUNGS_ML:.0f} and {SMALLEST_AERATED_ML:.0f} ml; give a chest CT, or a lobe "
            "mask with it"
        )


def doubts_about_found(labels: Volume, confidence: dict[int, float]) -> list[str]:
    """What speaks against lobes that were found.

    Args:
        labels: lobe labels, in LPS order (`algorithm.orientation.to_canonical`).
        confidence: expected Dice by label.

    Returns:
        A sentence for each lung or lobe of an implausible size, place or little confidence, and for each side on which
        the scan ends within the lungs.
    """
    unsure = [
        f"the {NAMES[label]} was found with little confidence ({value:.2f}): check the lobes"
        for label, value in confidence.items()
        if value < CONFIDENT
    ]
    return [*_odd_sizes(lobe_volumes_ml(labels), _SIDES), *_odd_places(labels), *unsure, *_odd_ends(labels)]


def doubts_about_given(labels: Volume, ct: Volume) -> list[str]:
    """What speaks against lobes that came with a scan, or against its values.

    Args:
        labels: lobe labels, any orientation; lobes may be absent, and the size of their lung is then not looked at.
        ct: HU on the same grid.

    Returns:
        Sentences as of `doubts_about_found`, and one where next to nothing of the lobes is air.
    """
    doubts = []
    _, aerated_ml = _lung_and_air_ml(labels, ct)
    if aerated_ml < SMALLEST_AERATED_ML:
        doubts.append(
            f"{aerated_ml:.0f} ml of the lobes hold air ({AERATED_HU[0]:.0f} to {AERATED_HU[1]:.0f} HU), expected at "
            f"least {SMALLEST_AERATED_ML:.0f}: check that the CT is in HU, and that the lobes are its own"
        )
    ml = lobe_volumes_ml(labels)
    whole = {name: side for name, side in _SIDES.items() if all(ml[label] > 0 for label in side)}
    canonical = to_canonical(labels)
    return [*doubts, *_odd_sizes(ml, whole), *_odd_places(canonical), *_odd_ends(canonical)]


def _lung_and_air_ml(labels: Volume, ct: Volume) -> tuple[float, float]:
    """Volume of the lobes, and of what is aerated in them."""
    hu, voxel_ml = ct.array[labels.array > 0], ct.geometry.voxel_ml
    return len(hu) * voxel_ml, float(((hu > AERATED_HU[0]) & (hu < AERATED_HU[1])).sum()) * voxel_ml


def _odd_sizes(ml: dict[int, float], sides: Mapping[str, Sequence[int]]) -> list[str]:
    """A sentence for each lung and each of its lobes whose size is implausible."""
    doubts = []
    for name, side in sides.items():
        lung_ml = sum(ml[label] for label in side)
        if not LUNG_ML[0] <= lung_ml <= LUNG_ML[1]:
            expected = f"expected {LUNG_ML[0]:.0f} to {LUNG_ML[1]:.0f}"
            doubts.append(f"the {name} lung has {lung_ml:.0f} ml, {expected}: check the lobes")
        for label in side if lung_ml else ():
            share, (low, high) = ml[label] / lung_ml, LOBE_SHARES[label]
            if not low <= share <= high:
                expected = f"expected {100 * low:.0f} to {100 * high:.0f} %"
                doubts.append(f"the {NAMES[label]} is {100 * share:.0f} % of its lung, {expected}: check the lobes")
    return doubts


def _odd_places(labels: Volume) -> list[str]:
    """A sentence for each pair of lobes that lie the wrong way round, by their centres."""
    sample = labels.array[::_PLACE_STEP, ::_PLACE_STEP, ::_PLACE_STEP]
    places = {label: np.argwhere(sample == label) for label in NAMES}
    centres = {label: place.mean(axis=0) for label, place in places.items() if len(place)}
    return [
        f"the {NAMES[first]} lies {where} the {NAMES[second]}: check the orientation and the numbers of the lobes"
        for first, second, axis, where in _WRONG_WAY_ROUND
        if first in centres and second in centres and centres[first][axis] < centres[second][axis]
    ]


def _odd_ends(labels: Volume) -> list[str]:
    """A sentence where the scan ends within the lungs."""
    ends = _where_cut(labels)
    return [f"the scan ends within the lungs ({', '.join(ends)}): percentages are of what it shows"] if ends else []


def _where_cut(labels: Volume) -> list[str]:
    """The sides of the scan at which there is lung in the outermost slice."""
    ends = []
    for axis, names in enumerate(_FACES):
        ml_per_mm = labels.geometry.voxel_ml / labels.geometry.spacing_zyx_mm[axis]
        for name, index in zip(names, (0, -1), strict=True):
            if (labels.array.take(index, axis=axis) > 0).sum() * ml_per_mm > CUT_ML_PER_MM:
                ends.append(name)
    return ends
