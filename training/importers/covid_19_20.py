"""COVID-19-20, version 2: 199 CTs of patients with COVID-19, with lesion masks.

    ROOT/COVID-19-20_v2/Train/volume-covid19-A-0003_ct.nii.gz
    ROOT/COVID-19-20_v2/Train/volume-covid19-A-0003_seg.nii.gz      1 lesion

ROOT may be ``COVID-19-20_v2`` or ``Train`` itself. Some patients have several scans (``A-0014_1_ct``), which come into
one split. The folder ``Validation`` has no masks and is left out.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from algorithm.errors import InputError
from training.importers.source import PendingCase, Source, load_with_lesions, remark, require_masks

SOURCE = Source(
    name="COVID-19-20, version 2",
    licence="not known to us: look it up where you had the data from before you use them",
    citation="Roth et al., Rapid artificial intelligence solutions in a pandemic: the COVID-19-20 lung CT lesion "
    "segmentation challenge, Medical Image Analysis 82, 2022, doi:10.1016/j.media.2022.102605",
    url="https://covid-segmentation.grand-challenge.org/",
)

_CT = "_ct.nii.gz"


def read(root: Path) -> list[PendingCase]:
    """The training scans.

    Raises:
        InputError: the folder holds no scans, or scans without masks.
    """
    folders = (root / "COVID-19-20_v2" / "Train", root / "Train", root)
    train = next((folder for folder in folders if any(folder.glob(f"volume-*{_CT}"))), None)
    if train is None:
        raise InputError(f"{root}: no scans; expected COVID-19-20_v2/Train/volume-covid19-A-0003_ct.nii.gz and so on")
    scans = sorted(train.glob(f"volume-*{_CT}"))
    masks = [path.with_name(path.name.removesuffix(_CT) + "_seg.nii.gz") for path in scans]
    require_masks(masks)
    hidden = len(list((train.parent / "Validation").glob(f"*{_CT}")))
    if hidden:
        remark(f"left out: {hidden} scans of the folder Validation, which have no masks")
    return [_case(path, mask) for path, mask in zip(scans, masks, strict=True)]


def _case(path: Path, mask: Path) -> PendingCase:
    name = path.name.removesuffix(_CT)
    stem = re.match(r"volume-covid19-A-\d+", name)
    patient = stem[0] if stem else name
    return PendingCase(name, partial(load_with_lesions, path, mask), (path, mask), patient=patient)
