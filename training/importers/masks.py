"""The masks that a table names: checked, and written with our labels where theirs are others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from algorithm.errors import InputError
from algorithm.images import Volume, read_labels
from algorithm.lobes import LOBES
from algorithm.subtypes import SUBTYPES
from training.cases import UNKNOWN_SUBTYPE
from training.files import write_image
from training.importers.lobes import LobeLabels, renumber_lobes, require_plausible_lobes
from training.importers.source import binary_lesions, require_labels

LesionLabels = Literal["subtypes", "binary"]


@dataclass(frozen=True)
class Numbering:
    """What the labels of masks mean.

    Attributes:
        lobes: which tool numbered the lobes.
        lesions: ``subtypes``, ours; ``binary``, 1 for a lesion of any kind.
    """

    lobes: LobeLabels = "ours"
    lesions: LesionLabels = "subtypes"


@dataclass(frozen=True)
class Masks:
    """What became of a case's masks.

    Attributes:
        problems: why they cannot be used; empty if they can.
        paths: of masks that were written, by the column of the table.
        labels: of the lesions, as they were given.
    """

    problems: list[str]
    paths: dict[str, str]
    labels: frozenset[int]


def import_masks(row: dict[str, str], *, images: Path, numbering: Numbering) -> Masks:
    """Check a row's lobe and lesion masks; IMAGES/CASE_{lobes,lesions}.mha where labels are others than ours.

    Args:
        row: of the table, by our names of columns, with whole paths.
        images: folder of masks to write.
        numbering: of the given masks.
    """
    problems, changed, labels = [], {}, frozenset[int]()
    try:
        lobes = renumber_lobes(read_labels(Path(row["lobes"])), numbering.lobes)
        require_plausible_lobes(lobes)
        _require_scored(lobes, row)
        if numbering.lobes != "ours":
            changed["lobes"] = lobes
    except InputError as error:
        problems.append(f"lobes: {error}")
    try:
        if row["lesions"]:
            lesions = read_labels(Path(row["lesions"]))
            labels = frozenset(np.unique(lesions.array).tolist())
            if numbering.lesions == "binary":
                changed["lesions"] = binary_lesions(lesions)
            else:
                require_labels(lesions, (*SUBTYPES, UNKNOWN_SUBTYPE))
    except InputError as error:
        problems.append(f"lesions: {error}")
    paths = {name: images / f"{row['case']}_{name}.mha" for name in changed}
    for name, volume in changed.items() if not problems else ():
        images.mkdir(parents=True, exist_ok=True)
        write_image(paths[name], volume)
    return Masks(problems, {name: str(path) for name, path in paths.items()}, labels)


def _require_scored(lobes: Volume, row: dict[str, str]) -> None:
    present = np.unique(lobes.array)
    absent = [lobe.name for lobe in LOBES if row[lobe.key] and lobe.label not in present]
    if absent:
        raise InputError(f"{', '.join(absent)} has a score but no voxel in {row['lobes']}")
