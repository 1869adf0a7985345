"""Lobe masks of other tools, what a usable one is, and the scores that lesions in lobes give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from algorithm.errors import InputError
from algorithm.images import SUFFIXES, Volume, read_labels
from algorithm.lobes import LOBES, Lobe
from algorithm.orientation import to_canonical
from algorithm.severity import lobe_involvement
from training.phantom.lesions import score_of

LobeLabels = Literal["ours", "lungmask", "totalsegmentator"]

LOBE_MAPS: dict[LobeLabels, dict[int, int]] = {
    "ours": {lobe.label: lobe.label for lobe in LOBES},
    "lungmask": {1: 1, 2: 2, 3: 3, 4: 5, 5: 4},
    "totalsegmentator": {10: 1, 11: 2, 12: 3, 13: 5, 14: 4},
}
"""Our label of a lobe by the label that a tool gives it."""

CUT_SHARE = 0.2
"""A lobe is cut by the field of view if a face of the scan shows more than this share of its largest section.

Tried on 128 real lungs, each cut at many places, it finds 99 % of the lobes that miss more than 5 % of their volume,
and 3 % of those that miss less than 0.5 %.
"""

LEAST_LESION_INSIDE = 0.5
"""If less of the lesions lies inside the lobes, the lobes miss diseased lung, or a mask is mirrored."""

_RELATIONS = (
    ((1, 2), (3, 4, 5), 2, "left of"),
    ((4,), (5,), 1, "behind"),
    ((1,), (2,), 0, "above"),
    ((3,), (4,), 0, "above"),
)
"""Lobes, other lobes, the canonical array axis along which the first have the larger coordinate, and its name."""


@dataclass(frozen=True)
class LobeFiles:
    """Lobe masks that the user made: FOLDER/CASE.mha, CASE.nii.gz or another format that we read."""

    folder: Path
    labels: LobeLabels

    def find(self, name: str) -> Path:
        """The mask of a case.

        Raises:
            InputError: there is none, or there are several.
        """
        found = [path for suffix in SUFFIXES if (path := self.folder / f"{name}{suffix}").is_file()]
        if len(found) != 1:
            raise InputError(f"{name}: got {len(found)} lobe masks {self.folder / name}.*, expected one")
        return found[0]

    def read(self, name: str) -> Volume:
        """The mask of a case with our labels, uint8.

        Raises:
            InputError: it is missing, unreadable, or holds labels that the tool does not give to lobes.
        """
        return renumber_lobes(read_labels(self.find(name)), self.labels)


def renumber_lobes(lobes: Volume, labels: LobeLabels) -> Volume:
    """Give lobes our labels, uint8; the other organs of TotalSegmentator become background.

    Raises:
        InputError: the mask holds labels that the tool does not give to lobes, or is of TotalSegmentator's version 1.
    """
    table = LOBE_MAPS[labels]
    found = {int(label) for label in np.unique(lobes.array)}
    unknown = sorted(found - {0, *table})
    if labels == "totalsegmentator" and found & {13, 14} and not found & {10, 11, 12}:
        raise InputError(
            "got lobe labels from 13 on but none of 10 to 12, as of TotalSegmentator version 1 (13 to 17); expected "
            "10 to 14, as of version 2: make the masks with it, or renumber them 1 to 5"
        )
    if unknown and labels != "totalsegmentator":
        raise InputError(
            f"got lobe labels {', '.join(map(str, unknown[:8]))}, expected 1 to 5 ({labels}); "
            "state by --lobe-labels how the lobes are numbered"
        )
    array = np.zeros(lobes.array.shape, dtype=np.uint8)
    for theirs, ours in table.items():
        array[lobes.array == theirs] = ours
    return lobes.with_array(array)


def require_plausible_lobes(lobes: Volume) -> None:
    """Check that lobes lie to each other as they do in a patient, by their centres of mass.

    That finds images stored upside down, back to front or mirrored, and numberings taken for one another. Lobes that
    are absent are not compared, nor the heights of lobes that the field of view cuts.

    Args:
        lobes: our labels.

    Raises:
        InputError: they do not.
    """
    array = to_canonical(lobes).array  # its axes run towards head, back and left
    cut = {lobe.label for lobe in cut_lobes(array)}
    for first, second, axis, relation in _RELATIONS:
        one, other = np.isin(array, first), np.isin(array, second)
        if axis == 0 and cut.intersection(first + second):
            continue
        if one.any() and other.any() and _centre(one, axis=axis) <= _centre(other, axis=axis):
            raise InputError(
                f"the centre of {_names(first)} is not {relation} that of {_names(second)}: the lobes are numbered "
                "otherwise (state how by --lobe-labels), or the image is stored mirrored (correct its orientation)"
            )


def cut_lobes(lobes: NDArray[np.uint8]) -> list[Lobe]:
    """The lobes of which a part lies outside the scan, by `CUT_SHARE`.

    Args:
        lobes: our labels (z, y, x), in any orientation.
    """
    return [lobe for lobe in LOBES if _is_cut(lobes == lobe.label)]


def derive_scores(lesions: Volume, lobes: Volume) -> dict[int, int]:
    """The score of each lobe from its percentage of lesion: 0 none, then (0,5), [5,25), [25,50), [50,75), [75,100].

    Args:
        lesions: anything but 0 is lesion.
        lobes: our labels, uint8, on the same grid.

    Returns:
        Score by lobe label; absent lobes and those that the field of view cuts are left out.

    Raises:
        InputError: most of the lesions lie outside the lobes.
    """
    lesion = lesions.array > 0
    inside, total = np.count_nonzero(lesion & (lobes.array > 0)), np.count_nonzero(lesion)
    if inside < LEAST_LESION_INSIDE * total:
        raise InputError(
            f"got {100 * inside / total:.0f} % of the lesions inside the lobes, expected at least "
            f"{100 * LEAST_LESION_INSIDE:.0f} %: the lobe mask misses diseased lung, or one of the masks is mirrored; "
            "correct the lobe mask"
        )
    cut = [lobe.label for lobe in cut_lobes(lobes.array)]
    involvement = lobe_involvement(lesions.array, lobes.array, voxel_ml=lobes.geometry.voxel_ml)
    return {
        entry.lobe.label: score_of(entry.percent)
        for entry in involvement
        if entry.percent is not None and entry.lobe.label not in cut
    }


def _is_cut(mask: NDArray[np.bool_]) -> bool:
    sections = (mask.sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1)))
    return any(max(areas[0], areas[-1]) > CUT_SHARE * areas.max() for areas in sections)


def _names(labels: tuple[int, ...]) -> str:
    return " and ".join(lobe.name for lobe in LOBES if lobe.label in labels)


def _centre(mask: NDArray[np.bool_], *, axis: int) -> float:
    others = tuple(k for k in range(3) if k != axis)
    profile: NDArray[Any] = mask.sum(axis=others)
    return float(profile @ np.arange(len(profile)) / profile.sum())
