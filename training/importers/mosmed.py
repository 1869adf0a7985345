"""MosMedData: 1110 chest CTs with a class of the whole lungs, 50 of them with lesion masks.

    ROOT/studies/CT-0/study_0001.nii.gz      no lesion; CT-1 to CT-4 the more, the higher
    ROOT/masks/study_0255_mask.nii.gz        1 lesion (ground-glass or consolidation)

``ROOT/CT-0`` and so on, without ``studies``, do as well. CT-0 gives score 0 for every lobe, a mask gives scores by the
share of lesion. A class above CT-0 says nothing of single lobes, so scans of CT-1 to CT-4 without a mask are left out.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from algorithm.errors import InputError
from algorithm.images import read_ct
from algorithm.lobes import LOBES
from training.importers.source import ImportedCase, PendingCase, Source, load_with_lesions, remark

SOURCE = Source(
    name="MosMedData (COVID19_1110)",
    licence="CC BY-NC-ND 3.0",
    citation="Morozov et al., MosMedData: data set of 1110 chest CT scans performed during the COVID-19 epidemic, "
    "Digital Diagnostics 2020, doi:10.17816/DD46826",
    url="https://mosmed.ai/en/datasets/covid191110/",
)


def read(root: Path) -> list[PendingCase]:
    """The scans without lesions (CT-0) and those with a lesion mask.

    Raises:
        InputError: the folder holds no scans.
    """
    studies = root / "studies" if (root / "studies").is_dir() else root
    scans = sorted(studies.glob("CT-[0-4]/study_*.nii.gz"))
    if not scans:
        raise InputError(f"{root}: no scans; expected studies/CT-0/study_0001.nii.gz and so on (MosMedData, unpacked)")
    cases = []
    for path in scans:
        name = path.name.removesuffix(".nii.gz")
        mask = root / "masks" / f"{name}_mask.nii.gz"
        if mask.is_file():
            cases.append(PendingCase(name, partial(load_with_lesions, path, mask), (path, mask)))
        elif path.parent.name == "CT-0":
            cases.append(PendingCase(name, partial(_load_healthy, path), (path,)))
    if len(cases) < len(scans):
        remark(f"left out: {len(scans) - len(cases)} scans of CT-1 to CT-4 without a mask, whose lobes have no scores")
    return cases


def _load_healthy(path: Path) -> ImportedCase:
    return ImportedCase(read_ct(path), scores=dict.fromkeys((lobe.label for lobe in LOBES), 0))
