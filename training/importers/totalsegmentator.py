"""TotalSegmentator, version 1 or 2: CTs of all body parts with lobes; no lesions, no scores.

    ROOT/s0000/ct.nii.gz
    ROOT/s0000/segmentations/lung_upper_lobe_left.nii.gz      likewise lung_lower_lobe_left, lung_upper_lobe_right,
                                                              lung_middle_lobe_right, lung_lower_lobe_right
    ROOT/meta.csv                                             image_id;...;split;...

Nobody says whether these lungs are healthy, so no lobe gets a score: the data serve to train or to test lobes, not
lesions. Scans without any lobe are left out. Some scans have axes that are not at right angles; they are unusable, and
`write_dataset` names them, or leaves them out where told to.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from algorithm.errors import InputError
from algorithm.images import Volume, read_ct, read_labels, require_same_grid
from algorithm.lobes import LOBES
from training.cases import Split
from training.importers.source import ImportedCase, LeftOut, PendingCase, Source

SOURCE = Source(
    name="TotalSegmentator",
    licence="CC BY 4.0",
    citation="Wasserthal et al., TotalSegmentator: robust segmentation of 104 anatomic structures in CT images, "
    "Radiology: Artificial Intelligence 5(5), 2023, doi:10.1148/ryai.230024",
    url="https://zenodo.org/records/10047292",
)

LOBE_FILES = {
    "lul": "lung_upper_lobe_left",
    "lll": "lung_lower_lobe_left",
    "rul": "lung_upper_lobe_right",
    "rll": "lung_lower_lobe_right",
    "rml": "lung_middle_lobe_right",
}
"""File of a lobe by our key."""

_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}


def read(root: Path) -> list[PendingCase]:
    """All scans, with the split that meta.csv states.

    Raises:
        InputError: the folder holds no scans, or meta.csv does not give each a split.
    """
    names = sorted(path.parent.name for path in root.glob("s*/ct.nii.gz"))
    if not names:
        raise InputError(f"{root}: no scans; expected s0000/ct.nii.gz and so on (the data set, unpacked)")
    splits = _read_splits(root / "meta.csv")
    unknown = [name for name in names if splits.get(name) not in _SPLITS]
    if unknown:
        shown = ", ".join(f"{name} {splits.get(name, 'absent')}" for name in unknown[:8])
        raise InputError(f"{root / 'meta.csv'}: got split {shown}; expected one of {', '.join(_SPLITS)} for each scan")
    return [
        PendingCase(name, partial(_load, root / name), (root / name,), split=_SPLITS[splits[name]], brings_lobes=True)
        for name in names
    ]


def _read_splits(path: Path) -> dict[str, str]:
    try:
        table = pd.read_csv(path, sep=";", dtype=str, usecols=["image_id", "split"], keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: got {error}, expected the data set's table with image_id;...;split") from error
    return dict(zip(table["image_id"], table["split"], strict=True))


def _load(folder: Path) -> ImportedCase:
    lobes = read_lobes(folder / "segmentations")
    if not lobes.array.any():
        raise LeftOut("no lobe in the scan")
    return ImportedCase(read_ct(folder / "ct.nii.gz"), lobes=lobes)


def read_lobes(folder: Path) -> Volume:
    """Bring the five masks of a scan together, with our labels; uint8, all 0 where the scan shows no lung.

    Raises:
        InputError: a mask is missing or unreadable, masks overlap or lie on different grids.
    """
    masks = {lobe.label: read_labels(folder / f"{LOBE_FILES[lobe.key]}.nii.gz") for lobe in LOBES}
    grid = masks[LOBES[0].label]
    array = np.zeros(grid.array.shape, dtype=np.uint8)
    for label, mask in masks.items():
        require_same_grid(mask, grid, "mask of a lobe")
        if array[mask.array > 0].any():
            raise InputError(f"{folder}: masks of lobes overlap, expected each voxel in one lobe")
        array[mask.array > 0] = label
    return grid.with_array(array)
