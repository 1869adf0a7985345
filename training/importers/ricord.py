"""MIDRC-RICORD-1a: 120 CTs of patients with COVID-19, lesions outlined slice by slice by thoracic radiologists.

    ROOT/MIDRC-RICORD-1A/PATIENT/STUDY/SERIES/*.dcm      any depth; one series in a folder
    ROOT/MIDRC-RICORD-1a_annotations_labelgroup_all_2020-Dec-8.json

Outlines of infectious opacities, micronodules and cavities become a mask of lesions of unknown subtype; scores follow
from it and the lobes. Series without such outlines are left out: nobody says that they show no lesion. A case is called
by its SeriesInstanceUID, and series of one patient come into one split.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from algorithm.errors import InputError
from algorithm.images import Geometry, Volume, read_ct
from training.cases import UNKNOWN_SUBTYPE
from training.importers.source import ImportedCase, PendingCase, Source, dicom_files, remark

SOURCE = Source(
    name="MIDRC-RICORD-1a",
    licence="CC BY-NC 4.0",
    citation=(
        "Tsai E, Simpson S, Lungren MP, et al. Medical Imaging Data Resource Center (MIDRC) - RSNA International COVID "
        "Open Research Database (RICORD) Release 1a - Chest CT Covid+. The Cancer Imaging Archive (2020). "
        "https://doi.org/10.7937/VTW4-X588; Tsai EB, Simpson S, Lungren MP, et al. The RSNA International COVID-19 "
        "Open Radiology Database (RICORD). Radiology 299, E204-E213 (2021). https://doi.org/10.1148/radiol.2021203957"
    ),
    url="https://doi.org/10.7937/VTW4-X588",
)

LESION_LABELS = ("Infectious opacity", "Infectious TIB/micronodules", "Infectious cavity")
"""Names of the outlines that are lesions; atelectasis, nodules and other opacities are not."""

Outline = NDArray[np.float64]
"""(n, 2): x (column) and y (row) of a polygon's corners in pixels, whole numbers at the centres of pixels."""

OutlinesBySlice = dict[str, list[Outline]]
"""All outlines of lesions on a slice, by its SOPInstanceUID."""


@dataclass(frozen=True)
class Series:
    """A folder with one series of DICOM files."""

    folder: Path
    patient: str


def read(root: Path) -> list[PendingCase]:
    """Find the series in which lesions are outlined, and print what else there is.

    Args:
        root: holds the DICOM files, a folder for each series, and the JSON file of annotations, at any depth.

    Raises:
        InputError: no annotations, a damaged file of them, or none of the series that they belong to.
    """
    annotations = _annotation_file(root)
    outlines, marks = read_annotations(annotations)
    series = find_series(root)
    found = sorted(outlines.keys() & series.keys())
    if not found:
        raise InputError(f"{root}: got {len(series)} DICOM series, expected some that have outlines of lesions")
    remark(
        f"{SOURCE.name}: of {len(series)} series, {len(series) - len(found)} without outlines of lesions are left out. "
        f"{len(outlines) - len(found)} outlined series are not in {root}. {marks} lesions are marked without an "
        "outline and are missing in the masks."
    )
    return [
        PendingCase(
            uid,
            partial(_load, series[uid].folder, outlines[uid]),
            (series[uid].folder, annotations),
            patient=series[uid].patient,
        )
        for uid in found
    ]


def read_annotations(path: Path) -> tuple[dict[str, OutlinesBySlice], int]:
    """Read the outlines of lesions, by SeriesInstanceUID.

    Args:
        path: MD.ai's JSON file.

    Returns:
        The outlines, and the number of lesions that were marked on a slice without one.

    Raises:
        InputError: the file is damaged or has no label of `LESION_LABELS`.
    """
    outlines: dict[str, OutlinesBySlice] = defaultdict(lambda: defaultdict(list))
    marks = 0
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {label["id"]: label["name"] for group in content["labelGroups"] for label in group["labels"]}
        for annotation in (entry for dataset in content["datasets"] for entry in dataset["annotations"]):
            if names[annotation["labelId"]] not in LESION_LABELS:
                continue
            corners = (annotation.get("data") or {}).get("vertices") or []
            if len(corners) < 3:
                marks += 1
                continue
            outline = np.array(corners, dtype=np.float64).reshape(-1, 2)
            outlines[annotation["SeriesInstanceUID"]][annotation["SOPInstanceUID"]].append(outline)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: got {error!r}, expected annotations as MD.ai exports them; download it again"
        ) from error
    if not outlines:
        raise InputError(
            f"{path}: got no outline of the labels {', '.join(LESION_LABELS)}; is it the file of MIDRC-RICORD-1a?"
        )
    return {uid: dict(slices) for uid, slices in outlines.items()}, marks


def find_series(root: Path) -> dict[str, Series]:
    """The folders with .dcm files, by the SeriesInstanceUID of their first file.

    Raises:
        InputError: a file is damaged, or two folders hold one series.
    """
    found: dict[str, Series] = {}
    for folder in sorted(Path(name) for name, _, _ in os.walk(root)):
        files = dicom_files(folder)
        if not files:
            continue
        header = _read_header(files[0], "SeriesInstanceUID", "PatientID")
        uid = str(header.get("SeriesInstanceUID", ""))
        if uid in found:
            raise InputError(f"{root}: got series {uid} in {folder} and {found[uid].folder}; keep one of them")
        found[uid] = Series(folder, str(header.get("PatientID", "")))
    return found


def fill_outline(outline: Outline, size_yx: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centres lie inside a polygon by the even-odd rule; what lies beyond the image is cut off."""
    low = np.clip(np.floor(outline.min(axis=0)), 0, size_yx[::-1]).astype(int)  # x, y
    high = np.clip(np.ceil(outline.max(axis=0)) + 1, 0, size_yx[::-1]).astype(int)
    mask = np.zeros(size_yx, np.bool_)
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]]
    inside = Polygon(outline).contains_points(np.stack([x.ravel(), y.ravel()], axis=1))
    mask[low[1] : high[1], low[0] : high[0]] = inside.reshape(x.shape)
    return mask


def _load(folder: Path, outlines: OutlinesBySlice) -> ImportedCase:
    headers = {path: _read_header(path, "SOPInstanceUID", "ImagePositionPatient") for path in dicom_files(folder)}
    positions = {path: _position(path, header) for path, header in headers.items()}
    by_uid = {str(header.get("SOPInstanceUID", "")): positions[path] for path, header in headers.items()}
    missing = outlines.keys() - by_uid.keys()
    if missing:
        raise InputError(f"{folder}: {len(missing)} outlined slices are missing; download the series again")
    ct = _read_without_repeats(folder, positions)
    lesions = np.zeros(ct.array.shape, np.uint8)
    for uid, polygons in outlines.items():
        for polygon in polygons:
            inside = fill_outline(polygon, ct.geometry.size_zyx[1:])
            lesions[_slice_at(by_uid[uid], ct.geometry)][inside] = UNKNOWN_SUBTYPE
    return ImportedCase(ct=ct, lesions=ct.with_array(lesions))


def _slice_at(position_mm: tuple[float, ...], geometry: Geometry) -> int:
    """The index along z of the slice whose first pixel has a position."""
    normal = np.reshape(geometry.direction, (3, 3))[:, 2]
    return round(float(np.subtract(position_mm, geometry.origin_xyz_mm) @ normal) / geometry.spacing_zyx_mm[0])


def _read_without_repeats(folder: Path, positions: dict[Path, tuple[float, ...]]) -> Volume:
    """Read a series that may hold copies of slices; slices at one position that differ are refused by `read_ct`."""
    count = Counter(positions.values())
    different = {  # one path for each position and content
        (position, pydicom.dcmread(path).PixelData if count[position] > 1 else b""): path
        for path, position in positions.items()
    }
    if len(different) == len(positions):
        return read_ct(folder)
    with tempfile.TemporaryDirectory() as unique:
        for path in different.values():
            (Path(unique) / path.name).symlink_to(path.resolve())
        return read_ct(Path(unique))


def _position(path: Path, header: Dataset) -> tuple[float, ...]:
    """Of the first pixel's centre, mm, to a hundredth."""
    try:
        x, y, z = (round(float(number), 2) for number in header.get("ImagePositionPatient") or ())
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: got no ImagePositionPatient, expected a CT slice") from error
    return x, y, z


def _read_header(path: Path, *tags: str) -> Dataset:
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
    except InvalidDicomError as error:
        raise InputError(f"{path}: damaged or no DICOM file; download it again") from error


def _annotation_file(root: Path) -> Path:
    found = [path for path in sorted(root.rglob("*.json")) if "annotations_labelgroup" in path.name.lower()]
    if len(found) != 1:
        raise InputError(f"{root}: got {len(found)} files *annotations_labelgroup*.json, expected the data set's one")
    return found[0]
