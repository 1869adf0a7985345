"""COVID-CT-MD: 305 CTs, of COVID-19, other pneumonia and normal; 79 with labels of whether a lobe shows infection.

    ROOT/COVID-19 subjects/P001/*.dcm      likewise Cap subjects/cap001 and Normal subjects/normal001
    ROOT/Index.csv                         Label Index,Diagnosis,Relative Path,Folder/ID
    ROOT/Lobe-level-labels.npy             case, slice, lobe (LLL, LUL, RLL, RML, RUL); or its update
    ROOT/Slice-level-labels.npy            case, slice; or its update

Subjects are found by the names of their folders, wherever these are below ROOT. The labels say where disease is, not
how much of a lobe it takes: a lobe without infection on any slice has score 0, any other lobe has no score. So the
order of slices does not matter. The lobes of normal scans have score 0. Scans without labels, and those with disease in
every lobe, are left out. All scores that remain are 0: to train, add scans with lesions from another source.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from algorithm.errors import InputError
from algorithm.images import read_ct
from algorithm.lobes import LOBES
from training.importers.source import ImportedCase, PendingCase, Source, dicom_files, remark

SOURCE = Source(
    name="COVID-CT-MD",
    licence="CC BY 4.0",
    citation=(
        "Afshar P, Heidarian S, Enshaei N, et al. COVID-CT-MD, COVID-19 computed tomography scan dataset applicable in "
        "machine learning and deep learning. Scientific Data 8, 121 (2021). https://doi.org/10.1038/s41597-021-00900-3"
    ),
    url="https://doi.org/10.6084/m9.figshare.12991592",
)

LOBE_ORDER = ("lll", "lul", "rll", "rml", "rul")
"""The lobe of each entry along the last axis of the lobe labels."""

_SUBJECT = re.compile(r"(p|cap|normal)\d+", re.IGNORECASE)
_BY_LOBE, _BY_SLICE = "lobe-level-labels", "slice-level-labels"
_INDEX_COLUMNS = ("Label Index", "Folder/ID")


@dataclass(frozen=True)
class Subject:
    """One scan of the data set.

    Attributes:
        name: as its folder is called: P001 (COVID-19), cap001 (community-acquired pneumonia), normal001.
        folder: its DICOM files.
        slices: how many there are.
    """

    name: str
    folder: Path
    slices: int

    @property
    def is_normal(self) -> bool:
        """Whether it is a scan without disease."""
        return self.name.lower().startswith("normal")


def read(root: Path) -> list[PendingCase]:
    """Find the scans of which a score is known for at least one lobe, and print how many others there are.

    Args:
        root: holds the subjects' folders at any depth, Index.csv and the two .npy files of labels.

    Raises:
        InputError: no scans, or labels that are missing, damaged or do not fit the scans.
    """
    subjects = find_subjects(root)
    presence = read_presence(root)
    _require_fitting_slices(subjects, presence)
    normal = np.zeros((1, len(LOBE_ORDER)), np.bool_)
    presence |= {subject.name.lower(): normal for subject in subjects if subject.is_normal}
    labelled = [subject for subject in subjects if subject.name.lower() in presence]
    scores = {subject: presence_scores(presence[subject.name.lower()]) for subject in labelled}
    usable = {subject: zeros for subject, zeros in scores.items() if zeros}
    healthy = sum(map(len, usable.values()))
    remark(
        f"{SOURCE.name}: of {len(subjects)} scans, {len(subjects) - len(labelled)} without labels and "
        f"{len(labelled) - len(usable)} with disease in every lobe are left out. Of the lobes of the others, {healthy} "
        f"have score 0, and {len(LOBES) * len(usable) - healthy} are diseased and have no score: the labels do not "
        "say how much."
    )
    labels = [_newest(root, name, ".npy") for name in (_BY_LOBE, _BY_SLICE)]
    return [
        PendingCase(subject.name, partial(_load, subject.folder, zeros), (subject.folder, *labels))
        for subject, zeros in usable.items()
    ]


def find_subjects(root: Path) -> list[Subject]:
    """The folders named as subjects are that hold .dcm files, by name.

    Raises:
        InputError: there are none, or two of one name.
    """
    subjects: dict[str, Subject] = {}
    for folder in (Path(path) for path, _, _ in os.walk(root)):
        name = folder.name
        slices = len(dicom_files(folder)) if _SUBJECT.fullmatch(name) else 0
        if not slices:
            continue
        if name.lower() in subjects:
            raise InputError(f"{root}: got {folder} and {subjects[name.lower()].folder}, expected one folder a subject")
        subjects[name.lower()] = Subject(name, folder, slices)
    if not subjects:
        raise InputError(f"{root}: no folders P001, cap001 or normal001 with .dcm files; is it the unpacked data set?")
    return [subjects[name] for name in sorted(subjects)]


def read_presence(root: Path) -> dict[str, NDArray[np.bool_]]:
    """Read whether infection was seen, by subject in lower case: (slices, 5), the lobes in `LOBE_ORDER`.

    A slice that shows infection in a lobe that is not stated counts for all five lobes. Rows of the arrays follow the
    index given in Index.csv; as the published index leaves out a number (43), rows are taken in its order where there
    are as many as subjects.

    Raises:
        InputError: a file is missing or damaged, or the files do not fit one another.
    """
    path = _newest(root, "index", ".csv")
    index = _read_index(path)
    lobe_path, slice_path = _newest(root, _BY_LOBE, ".npy"), _newest(root, _BY_SLICE, ".npy")
    by_lobe, by_slice = _read_binary(lobe_path), _read_binary(slice_path)
    if by_lobe.ndim != 3 or by_lobe.shape[2] != len(LOBE_ORDER) or by_slice.shape != by_lobe.shape[:2]:
        raise InputError(
            f"{lobe_path}: got shape {by_lobe.shape} and {by_slice.shape} in {slice_path.name}, expected (cases, "
            f"slices, {len(LOBE_ORDER)}) and (cases, slices)"
        )
    ordered = sorted(index, key=lambda name: index[name])
    if len(by_lobe) == len(ordered):
        rows = {name: row for row, name in enumerate(ordered)}
    elif len(by_lobe) == 1 + max(index.values()):
        rows = index
    else:
        raise InputError(f"{lobe_path}: got labels of {len(by_lobe)} cases, but {path.name} has {len(ordered)}")
    lobe_unknown = by_slice & ~by_lobe.any(axis=2)
    return {name: by_lobe[row] | lobe_unknown[row, :, np.newaxis] for name, row in rows.items()}


def presence_scores(presence: NDArray[np.bool_]) -> dict[int, int]:
    """Score 0, by lobe label, of the lobes without infection; the others are absent.

    Args:
        presence: (slices, 5), the lobes in `LOBE_ORDER`.
    """
    diseased = {LOBE_ORDER[k] for k in np.flatnonzero(presence.any(axis=0))}
    return {lobe.label: 0 for lobe in LOBES if lobe.key not in diseased}


def _load(folder: Path, scores: dict[int, int]) -> ImportedCase:
    return ImportedCase(ct=read_ct(folder), scores=scores)


def _require_fitting_slices(subjects: list[Subject], presence: dict[str, NDArray[np.bool_]]) -> None:
    """Check that each subject's row of labels can be of its slices: long enough, and padded with zeros beyond them."""
    misfits = []
    for subject in subjects:
        labels = presence.get(subject.name.lower())
        if labels is None:
            continue
        labelled = 1 + int(np.flatnonzero(labels.any(axis=1)).max(initial=-1))
        if not labelled <= subject.slices <= len(labels):
            misfits.append(f"{subject.name} has {subject.slices} slices, its labels {labelled} to {len(labels)}")
    if misfits:
        raise InputError(
            f"{len(misfits)} subjects do not fit their labels: {'; '.join(misfits)}; files are missing, or Index.csv "
            "belongs to another version of the labels; download them again"
        )


def _newest(root: Path, start: str, suffix: str) -> Path:
    """The file whose name starts and ends so; an updated one goes before the first version."""
    found = [path for path in root.rglob(f"*{suffix}") if path.name.lower().startswith(start)]
    if not found:
        raise InputError(f"{root}: got no file {start}*{suffix}, expected the data set's labels beside its scans")
    return max(found, key=lambda path: ("updated" in path.name.lower(), path.name, str(path)))


def _read_index(path: Path) -> dict[str, int]:
    """The index of each labelled subject, by name in lower case."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        index = {name.strip().lower(): int(label) for label, name in table[list(_INDEX_COLUMNS)].to_numpy()}
    except (KeyError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: got {error}, expected columns {', '.join(_INDEX_COLUMNS)}") from error
    if not index or len(set(index.values())) != len(table):
        raise InputError(
            f"{path}: got {len(table)} rows, expected one for each labelled subject, each with its own index"
        )
    return index


def _read_binary(path: Path) -> NDArray[np.bool_]:
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: got {error}, expected an array of numbers; download it again") from error
    if not np.isin(array, (0, 1)).all():
        raise InputError(f"{path}: got values other than 0 and 1, expected labels; download it again")
    return array.astype(np.bool_)
