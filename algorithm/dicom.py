"""A folder of DICOM files to one CT volume, or a line that says why the slices make none.

Headers are read with pydicom and decide the geometry; the voxels, decompression and rescaling come from SimpleITK.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from algorithm.errors import InputError
from algorithm.images import ArrayZYX, Geometry, Volume
from algorithm.integrity import SHEARED, SPACING_MM, numbers

_SAME_POSITION_MM = 0.01
_SAME_SPACING_MM = 1e-4
_SAME_COSINE = 1e-3
_UNEVEN_STEP = 0.15
_SIDEWAYS_PIXELS = 0.5
_DICOMDIR = "1.2.840.10008.1.3.10"
_OTHER_FILES = set(
    ".bmp .csv .db .doc .docx .exe .gif .htm .html .inf .ini .jpeg .jpg .json .log .md .pdf .png .tif .tiff .tsv .txt "
    ".xls .xlsx .xml .yaml .yml .zip".split()
)
_TAGS = (
    "SeriesInstanceUID",
    "SeriesDescription",
    "Modality",
    "ImageType",
    "NumberOfFrames",
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)


@dataclass(frozen=True)
class _Frame:
    """One slice: a file, or a frame of a multi-frame file.

    Attributes:
        name: file name, with the frame's number where a file holds several.
        position_mm: centre of the first voxel in patient coordinates.
        orientation: direction cosines of a row, then of a column.
        spacing_mm: between rows, between columns.
        size: rows, columns.
        rescale: slope and intercept.
    """

    name: str
    position_mm: NDArray[np.float64]
    orientation: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    size: tuple[int, int]
    rescale: tuple[float, float]

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.orientation[:3], self.orientation[3:])


def read_series(folder: Path) -> Volume:
    """Read the one CT series in a folder, (z, y, x) in rescaled units; slices are sorted by position.

    Texts, pictures, tables and the like, by the ending of their names, are passed over; every other file must be DICOM,
    for a slice that was cut off in copying may no longer look like it. Folders inside are not entered. Slices may be
    0.15 of their distance off an even grid and the stack half a pixel off the slices' normal.

    Args:
        folder: single-frame files of one series, or one multi-frame (enhanced) CT file.

    Raises:
        InputError: no series or several, not CT, a localiser, slices that differ, are missing or repeated, gantry
            tilt, or pixels that cannot be read.
    """
    headers = {path: header for path in sorted(folder.iterdir()) if (header := _read_header(path)) is not None}
    _require_one_ct_series(folder, headers)
    frames = [frame for path, header in headers.items() for frame in _frames(path, header)]
    if len(frames) < 2:
        raise InputError(f"{folder}: got a single slice, expected a series of at least two")
    _require_alike(frames)
    order = np.argsort([frame.position_mm @ frames[0].normal for frame in frames], kind="stable")
    ordered = [frames[k] for k in order]
    _require_even_stack(folder, ordered)
    geometry = _geometry(ordered)
    array = _read_pixels(next(iter(headers))) if len(headers) == 1 else _read_slices(folder, ordered)
    if array.shape != geometry.size_zyx:
        raise InputError(f"{folder}: got pixels of size {array.shape}, but headers of {geometry.size_zyx}; damaged")
    return Volume(array[order] if len(headers) == 1 else array, geometry)


def _read_header(path: Path) -> Dataset | None:
    if not path.is_file() or path.name.startswith("."):
        return None
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        for _ in header.iterall():  # pydicom parses values when they are first looked at
            pass
        return None if header.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR else header
    except InvalidDicomError as error:
        if path.suffix.lower() in _OTHER_FILES:
            return None
        raise InputError(f"{path}: damaged or no DICOM file; copy it again or take it out of the folder") from error
    except Exception as error:  # pydicom raises whatever damaged bytes lead it to
        raise InputError(f"{path}: damaged DICOM header ({' '.join(str(error).split())}); copy it again") from error


def _require_one_ct_series(folder: Path, headers: Mapping[Path, Dataset]) -> None:
    if not headers:
        raise InputError(f"{folder}: got a folder without DICOM files, expected one CT series")
    series = Counter(
        (str(header.get("SeriesInstanceUID", "no UID")), str(header.get("SeriesDescription", "")))
        for header in headers.values()
    )
    if len({uid for uid, _ in series}) > 1:
        listed = "; ".join(f"{count} files of {text or uid!r}" for (uid, text), count in sorted(series.items()))
        raise InputError(f"{folder}: got several series ({listed}), expected one; put one series in the folder")
    for path, header in headers.items():
        if header.get("Modality") != "CT":
            raise InputError(f"{path}: got modality {header.get('Modality')}, expected CT")
        if "LOCALIZER" in header.get("ImageType", ()):
            raise InputError(f"{path}: got a localiser, expected axial slices; take it out of the folder")
        if len(headers) > 1 and int(header.get("NumberOfFrames") or 1) > 1:
            raise InputError(f"{path}: got one of several multi-frame files, expected one; put one in the folder")


def _frames(path: Path, header: Dataset) -> list[_Frame]:
    """The slices of a file."""
    if "PerFrameFunctionalGroupsSequence" not in header:
        return [_frame(path.name, path, [header])]
    shared = [group for item in header.get("SharedFunctionalGroupsSequence", []) for group in _groups(item)]
    frames = [
        _frame(f"{path.name} frame {number}", path, [*_groups(item), *shared, header])
        for number, item in enumerate(header.PerFrameFunctionalGroupsSequence, start=1)
    ]
    if len({frame.rescale for frame in frames}) > 1:
        raise InputError(f"{path}: got frames with different rescaling, expected one; save it as single-frame files")
    return frames


def _groups(item: Dataset) -> list[Dataset]:
    """The functional groups of a frame, each a sequence of one item."""
    return [element.value[0] for element in item if element.VR == "SQ" and element.value]


def _frame(name: str, path: Path, sources: Sequence[Dataset]) -> _Frame:
    """A slice whose attributes stand in the first of the sources that has them."""

    def values(keyword: str, count: int, default: float | None = None) -> tuple[float, ...]:
        try:
            found = next((source[keyword].value for source in sources if keyword in source), default)
            array = np.atleast_1d(np.asarray(found, dtype=np.float64))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: got an unreadable {keyword} ({error}), expected a CT slice") from error
        if array.shape != (count,) or not np.isfinite(array).all():
            raise InputError(f"{path}: got {keyword} {found}, expected {count} numbers as CT slices have")
        return tuple(array.tolist())

    if values("SamplesPerPixel", 1, 1.0) != (1.0,):
        raise InputError(f"{path}: got several values a pixel (colours), expected one")
    frame = _Frame(
        name=name,
        position_mm=np.array(values("ImagePositionPatient", 3)),
        orientation=values("ImageOrientationPatient", 6),
        spacing_mm=values("PixelSpacing", 2),
        size=(int(values("Rows", 1)[0]), int(values("Columns", 1)[0])),
        rescale=(values("RescaleSlope", 1, 1.0)[0], values("RescaleIntercept", 1, 0.0)[0]),
    )
    axes = np.reshape(frame.orientation, (2, 3))
    if not np.allclose(axes @ axes.T, np.eye(2), rtol=0.0, atol=_SAME_COSINE):
        raise InputError(SHEARED.format(path=path))
    if not all(SPACING_MM[0] <= value <= SPACING_MM[1] for value in frame.spacing_mm):
        raise InputError(
            f"{path}: got PixelSpacing {numbers(frame.spacing_mm)}, expected {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm"
        )
    return frame


def _require_alike(frames: Sequence[_Frame]) -> None:
    first = frames[0]
    for frame in frames[1:]:
        for what, got, expected, tolerance in (
            ("size (rows, columns)", frame.size, first.size, 0.0),
            ("pixel spacing", frame.spacing_mm, first.spacing_mm, _SAME_SPACING_MM),
            ("orientation", frame.orientation, first.orientation, _SAME_COSINE),
        ):
            if not np.allclose(got, expected, rtol=0.0, atol=tolerance):
                raise InputError(
                    f"{frame.name}: got {what} {numbers(got)}, but {first.name} has {numbers(expected)}; "
                    "put slices of one scan in the folder"
                )


def _require_even_stack(folder: Path, frames: Sequence[_Frame]) -> None:
    """Check that sorted slices follow each other in even steps along their normal."""
    positions = np.array([frame.position_mm for frame in frames])
    along = (positions - positions[0]) @ frames[0].normal
    steps = np.diff(along)
    if steps.min() < _SAME_POSITION_MM:
        k = int(steps.argmin())
        raise InputError(
            f"{folder}: got two slices at one position, {frames[k].name} and {frames[k + 1].name}; "
            "put one reconstruction at one time in the folder"
        )
    even = np.linspace(along[0], along[-1], len(frames))
    if np.abs(along - even).max() > _UNEVEN_STEP * np.median(steps):
        k = int(np.abs(steps - np.median(steps)).argmax())
        raise InputError(
            f"{folder}: got {steps[k]:.4g} mm from {frames[k].name} to {frames[k + 1].name}, expected "
            f"{np.median(steps):.4g} mm as elsewhere; slices are missing or uneven, export the whole series again"
        )
    sideways_mm = np.linalg.norm(positions - positions[0] - np.outer(along, frames[0].normal), axis=1).max()
    if sideways_mm > _SIDEWAYS_PIXELS * min(frames[0].spacing_mm):
        raise InputError(
            f"{folder}: got slices that shift {sideways_mm:.4g} mm sideways over the stack (gantry tilt), "
            "expected a stack along the slices' normal; resample it to an upright grid"
        )


def _geometry(frames: Sequence[_Frame]) -> Geometry:
    first, last = frames[0], frames[-1]
    row = np.array(first.orientation[:3]) / np.linalg.norm(first.orientation[:3])
    normal = first.normal / np.linalg.norm(first.normal)
    step_mm = float((last.position_mm - first.position_mm) @ normal) / (len(frames) - 1)
    direction = np.stack([row, np.cross(normal, row), normal], axis=1) + 0.0  # + 0.0: no negative zeros
    return Geometry(
        size_zyx=(len(frames), *first.size),
        spacing_zyx_mm=(step_mm, first.spacing_mm[0], first.spacing_mm[1]),
        origin_xyz_mm=tuple(first.position_mm.tolist()),
        direction=tuple(direction.ravel().tolist()),
    )


def _read_slices(folder: Path, frames: Sequence[_Frame]) -> ArrayZYX:
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(folder / frame.name) for frame in frames])
    if len({frame.rescale for frame in frames}) > 1:  # the first slice's type need not hold the others' values
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        return sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        for frame in frames:
            _read_pixels(folder / frame.name)
        raise InputError(f"{folder}: the pixels of the series cannot be read together") from error


def _read_pixels(path: Path) -> ArrayZYX:
    try:
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
    except RuntimeError as error:
        raise InputError(f"{path}: its pixels are damaged or compressed in an unknown way; copy it again") from error
