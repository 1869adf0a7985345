"""What is sent of a scan: its voxels and their geometry in a fresh .mha, and nothing else.

A DICOM header names the patient, and so may the fields that other programs copy into .mha and NIfTI headers. No field
of the source is passed on; the geometry is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import MediaStorageDirectoryStorage

from batch.cases import LOBES_SLUG, SCAN_SLUG, visible_files
from batch.errors import InputError
from batch.headers import require_geometry
from batch.integrity import require_whole

HIGHEST_LABEL = 5
_AIR_HU = (-1024, -500)
_SAME_MM = 1e-3
_SAME_ORIGIN_VOXELS = 1e-2
_SAME_SPACING_MM = 1e-4
_SAME_DIRECTION = 1e-4
_UNEVEN_STEP = 0.15
_IMAGE_IO = {".mha": "MetaImageIO", ".gz": "NiftiImageIO", ".nii": "NiftiImageIO"}
_OTHER_FILES = set(  # every other file in a folder of slices must be DICOM: one that was cut off may not look like it
    ".bmp .csv .db .doc .docx .exe .gif .htm .html .inf .ini .jpeg .jpg .json .log .md .pdf .png .tif .tiff .tsv .txt "
    ".xls .xlsx .xml .yaml .yml .zip".split()
)
_TAGS = (
    "SeriesInstanceUID",
    "Modality",
    "ImageType",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
)

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # what matters is checked here, and raised


def convert(files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Write the inputs of a case as they are sent.

    Args:
        files: scan and lobe mask, by slug.
        folder: gets one file for each.

    Returns:
        The written files, by slug.

    Raises:
        InputError: a file cannot be read, is no CT, or is no lobe mask of that CT.
    """
    written: dict[str, Path] = {}
    images = {slug: _read(path) for slug, path in files.items()}
    for slug, image in images.items():
        if slug == SCAN_SLUG:
            _require_ct(image, files[slug])
        elif slug == LOBES_SLUG:
            image = _as_labels(image, images.get(SCAN_SLUG), files[slug])
        written[slug] = folder / f"{slug}.mha"
        bare = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(image))
        bare.CopyInformation(image)  # size, spacing, origin and direction
        sitk.WriteImage(bare, str(written[slug]), useCompression=True)
    return written


def _read(path: Path) -> sitk.Image:
    """A three-dimensional scalar image."""
    if path.is_dir():
        return _read_series(path)
    try:
        require_whole(path)
        require_geometry(path)
    except InputError as error:
        raise InputError(f"{path}: cannot be read ({error}); copy or export it again") from error
    try:
        image: sitk.Image = sitk.ReadImage(str(path), imageIO=_IMAGE_IO[path.suffix.lower()])
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{path}: cannot be read ({reason}); copy or export it again") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1 or min(image.GetSize()) < 2:
        raise InputError(
            f"{path}: got size {image.GetSize()} with {image.GetNumberOfComponentsPerPixel()} values a voxel, "
            "expected one three-dimensional scan"
        )
    return image


def _require_ct(image: sitk.Image, path: Path) -> None:
    values: NDArray[Any] = sitk.GetArrayViewFromImage(image)
    low, high = float(values.min()), float(values.max())
    has_air = bool(((values >= _AIR_HU[0]) & (values < _AIR_HU[1])).any())
    if not has_air or low == high or not np.isfinite([low, high]).all() or values.dtype.itemsize == 1:
        raise InputError(
            f"{path}: got {image.GetPixelIDTypeAsString()} values {low:g} to {high:g}, expected a CT in Hounsfield "
            "units with air near -1000; this is no CT, or a picture of one"
        )


def _as_labels(image: sitk.Image, scan: sitk.Image | None, path: Path) -> sitk.Image:
    """The mask as uint8, with the geometry of its CT."""
    if scan is not None:
        _require_same_grid(image, scan, path)
    present = np.unique(sitk.GetArrayViewFromImage(image)).tolist()
    unknown = sorted(set(present) - set(range(HIGHEST_LABEL + 1)))
    if unknown:
        shown = ", ".join(f"{value:g}" for value in unknown[:5])
        raise InputError(f"{path}: got the labels {shown}, expected a lobe mask with 0 to {HIGHEST_LABEL}")
    if present == [0]:
        raise InputError(f"{path}: got an empty mask, expected the lobes 1 to {HIGHEST_LABEL}; make it anew")
    labels: sitk.Image = sitk.Cast(image, sitk.sitkUInt8)
    if scan is not None:
        labels.CopyInformation(scan)
    return labels


def _require_same_grid(image: sitk.Image, scan: sitk.Image, path: Path) -> None:
    """Refuse what the algorithm would refuse, with its tolerances."""
    origin_mm = _SAME_ORIGIN_VOXELS * min(scan.GetSpacing())
    properties = (
        ("size", image.GetSize(), scan.GetSize(), 0.0),
        ("spacing", image.GetSpacing(), scan.GetSpacing(), _SAME_SPACING_MM),
        ("origin", image.GetOrigin(), scan.GetOrigin(), origin_mm),
        ("direction", image.GetDirection(), scan.GetDirection(), _SAME_DIRECTION),
    )
    for name, got, expected, tolerance in properties:
        if not np.allclose(got, expected, rtol=0.0, atol=tolerance):
            raise InputError(
                f"{path}: got a mask of {name} {got}, expected the grid of its CT, of {name} {expected}; resample it "
                "to the CT with nearest neighbour"
            )


@dataclass(frozen=True)
class _Slice:
    """One file of a DICOM series: where it lies in the patient."""

    path: Path
    position_mm: NDArray[np.float64]
    orientation: tuple[float, ...]
    spacing_mm: tuple[float, ...]

    @property
    def along_mm(self) -> float:
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return float(self.position_mm @ normal / np.linalg.norm(normal))


def _read_series(folder: Path) -> sitk.Image:
    """The one CT series in a folder, its slices sorted by position."""
    headers = {path: header for path in visible_files(folder) if (header := _read_header(path)) is not None}
    _require_one_ct_series(folder, headers)
    slices = sorted((_slice(path, header) for path, header in headers.items()), key=lambda one: one.along_mm)
    step_mm = _even_step_mm(folder, slices)
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(one.path) for one in slices])
    reader.SetOutputPixelType(sitk.sitkFloat32)  # the first slice's type need not hold the others' values
    try:
        image: sitk.Image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{folder}: its pixels cannot be read; copy or export the series again") from error
    between_rows, between_columns = slices[0].spacing_mm
    image.SetSpacing((between_columns, between_rows, step_mm))
    values = sitk.GetArrayViewFromImage(image)
    is_whole = np.array_equal(values, np.rint(values)) and np.abs(values).max() <= np.iinfo(np.int16).max
    if is_whole:
        image = sitk.Cast(image, sitk.sitkInt16)
    return image


def _read_header(path: Path) -> Dataset | None:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        for _ in header.iterall():  # values are parsed when they are first looked at
            pass
        return None if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage else header
    except InvalidDicomError as error:
        if path.suffix.lower() in _OTHER_FILES:
            return None
        raise InputError(f"{path}: damaged or no DICOM file; copy it again or take it out") from error
    except Exception as error:  # pydicom raises whatever damaged bytes lead it to
        raise InputError(f"{path}: damaged DICOM header ({' '.join(str(error).split())}); copy it again") from error


def _require_one_ct_series(folder: Path, headers: dict[Path, Dataset]) -> None:
    if len(headers) < 2:
        raise InputError(f"{folder}: got {len(headers)} DICOM files, expected the slices of one CT series")
    modalities = {str(header.get("Modality", "none")) for header in headers.values()}
    if modalities != {"CT"}:
        raise InputError(f"{folder}: got modality {', '.join(sorted(modalities))}, expected CT")
    series = {str(header.get("SeriesInstanceUID", "none")) for header in headers.values()}
    if len(series) > 1:
        raise InputError(f"{folder}: got {len(series)} series, expected one; put one series in the folder")
    for path, header in headers.items():
        if "LOCALIZER" in (header.get("ImageType") or ()):
            raise InputError(f"{path}: got a localiser, expected axial slices; take it out of the folder")
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise InputError(f"{path}: got several frames in a file, expected one slice a file; export it so")


def _slice(path: Path, header: Dataset) -> _Slice:
    try:
        position, orientation, spacing = (
            tuple(float(value) for value in header[tag].value)
            for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: got no readable position, orientation and spacing, expected a CT slice") from error
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
        raise InputError(f"{path}: got no whole position, orientation and spacing, expected a CT slice")
    return _Slice(path, np.array(position), orientation, spacing)


def _even_step_mm(folder: Path, slices: Sequence[_Slice]) -> float:
    """The distance between slices that follow each other evenly along their normal."""
    first = slices[0]
    if any(
        not np.allclose(one.orientation + one.spacing_mm, first.orientation + first.spacing_mm, rtol=0.0, atol=1e-3)
        for one in slices
    ):
        raise InputError(f"{folder}: got slices of different orientation or spacing, expected one scan")
    along = np.array([one.along_mm for one in slices])
    steps = np.diff(along)
    uneven_mm = np.abs(along - np.linspace(along[0], along[-1], len(along))).max()
    if steps.min() < _SAME_MM or uneven_mm > _UNEVEN_STEP * np.median(steps):
        raise InputError(
            f"{folder}: got steps of {steps.min():.4g} to {steps.max():.4g} mm between slices, expected even ones; "
            "slices are missing or repeated, export the whole series again"
        )
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    shift = slices[-1].position_mm - first.position_mm - (along[-1] - along[0]) * normal / np.linalg.norm(normal)
    if np.linalg.norm(shift) > 0.5 * min(first.spacing_mm):
        raise InputError(f"{folder}: got slices that shift sideways (gantry tilt), expected an upright stack")
    return float(steps.mean())
