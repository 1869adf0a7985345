"""MedSeg: nine CTs from Radiopaedia with ground-glass and consolidation told apart; a reference of subtypes.

    ROOT/rp_im/1.nii.gz
    ROOT/rp_msk/1.nii.gz      1 ground-glass, 2 consolidation, 3 pleural effusion

Effusion is no lesion of the lung and is dropped. The masks tell voxels apart; our subtypes belong to whole lesions, so
each 26-connected lesion takes one by its share of consolidation, as the phantoms do: below 20 % ground-glass, above
55 % consolidation, else mixed. Patients may be the same as in the radiopaedia scans of COVID-19-CT-Seg: do not train on
one of the two sets and test on the other.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from algorithm.errors import InputError
from algorithm.images import Volume, read_ct, read_labels
from training.importers.source import ImportedCase, PendingCase, Source, require_labels, require_masks
from training.phantom.lesions import label_subtypes

SOURCE = Source(
    name="MedSeg COVID-19, nine volumes from Radiopaedia",
    licence="CC0 1.0",
    citation="MedSeg, Jenssen, Sakinis: COVID-19 CT segmentation dataset, 2020",
    url="http://medicalsegmentation.com/covid19/",
)

GROUND_GLASS, CONSOLIDATION, EFFUSION = 1, 2, 3


def read(root: Path) -> list[PendingCase]:
    """The scans, named medseg_1 and so on.

    Raises:
        InputError: the folder holds no scans, or scans without masks.
    """
    scans = sorted((root / "rp_im").glob("*.nii.gz"))
    if not scans:
        raise InputError(f"{root}: no scans; expected rp_im/1.nii.gz and rp_msk/1.nii.gz (rp_im.zip and rp_msk.zip)")
    masks = [root / "rp_msk" / path.name for path in scans]
    require_masks(masks)
    return [
        PendingCase(f"medseg_{path.name.removesuffix('.nii.gz')}", partial(_load, path, mask), (path, mask))
        for path, mask in zip(scans, masks, strict=True)
    ]


def _load(path: Path, mask: Path) -> ImportedCase:
    return ImportedCase(read_ct(path), lesions=subtypes_of_lesions(read_labels(mask)))


def subtypes_of_lesions(mask: Volume) -> Volume:
    """One subtype for each connected lesion, uint8: 1 ground-glass, 2 consolidation, 3 mixed.

    Args:
        mask: 1 ground-glass, 2 consolidation, 3 effusion.

    Raises:
        InputError: the mask holds other labels.
    """
    require_labels(mask, (GROUND_GLASS, CONSOLIDATION, EFFUSION))
    consolidation = mask.array == CONSOLIDATION
    lesion = consolidation | (mask.array == GROUND_GLASS)
    return mask.with_array(label_subtypes(lesion, consolidation.astype(np.float32), 1))
