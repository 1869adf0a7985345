"""COVID-19-CT-Seg: 20 CTs, ten from Coronacases and ten from Radiopaedia, with lesion masks.

    ROOT/COVID-19-CT-Seg_20cases/coronacases_001.nii.gz      HU
    ROOT/COVID-19-CT-Seg_20cases/radiopaedia_4_85506_1.nii.gz      pictures of 0 to 255
    ROOT/Infection_Mask/coronacases_001.nii.gz      1 lesion; the same names as the scans

The Radiopaedia scans are no plain CTs. Their HU were cut to -1250 to 250 and mapped to 0 to 255, which is undone here
to within 6 HU; what was above 250 HU is lost. And their headers do not say truly how they lie: the voxel axes run
towards the patient's left, back and head, in one scan towards the feet. The orientation is set here; the importer's
check of where lobes lie to each other would find a scan for which that is wrong.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from algorithm.errors import InputError
from algorithm.images import Volume
from algorithm.integrity import LOWEST_HU, require_hounsfield
from training.importers.source import (
    ImportedCase,
    PendingCase,
    Source,
    binary_lesions,
    load_with_lesions,
    require_masks,
)

SOURCE = Source(
    name="COVID-19-CT-Seg",
    licence="stated as CC BY 4.0 and as CC BY-NC-SA 4.0 in different places; look up the record that you had it from, "
    "and take the stricter one in doubt",
    citation="Ma et al., Toward data-efficient learning: a benchmark for COVID-19 CT lung and infection segmentation, "
    "Medical Physics 48(3), 2021, doi:10.1002/mp.14676",
    url="https://zenodo.org/records/3757476",
)

WINDOW_HU = (-1250.0, 250.0)
"""The HU of grey values 0 and 255 in the Radiopaedia scans."""

HEAD_TO_FEET = ("radiopaedia_7_85703_0",)
"""Radiopaedia scans whose first slice is the uppermost."""

_LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_READ_BYTES = 1 << 20


def read(root: Path) -> list[PendingCase]:
    """All scans; scans of one Radiopaedia case are of one patient.

    Raises:
        InputError: the folder holds no scans, scans without masks, or scans of other names.
    """
    folder = root / "COVID-19-CT-Seg_20cases"
    scans = sorted(folder.glob("*.nii.gz"))
    if not scans:
        raise InputError(f"{root}: no scans; expected {folder.name}/coronacases_001.nii.gz and so on, unpacked")
    others = [path.name for path in scans if not path.name.startswith(("coronacases_", "radiopaedia_"))]
    if others:
        raise InputError(f"{folder}: got {', '.join(others)}, expected coronacases_* and radiopaedia_* only")
    masks = [root / "Infection_Mask" / path.name for path in scans]
    require_masks(masks)
    return [_case(path, mask) for path, mask in zip(scans, masks, strict=True)]


def _case(path: Path, mask: Path) -> PendingCase:
    name = path.name.removesuffix(".nii.gz")
    load = _load_picture if name.startswith("radiopaedia_") else load_with_lesions
    return PendingCase(name, partial(load, path, mask), (path, mask), patient="_".join(name.split("_")[:2]))


def _load_picture(path: Path, mask: Path) -> ImportedCase:
    head_to_feet = path.name.removesuffix(".nii.gz") in HEAD_TO_FEET
    picture, lesions = (_oriented(_read_stored(file), head_to_feet=head_to_feet) for file in (path, mask))
    return ImportedCase(undo_window(picture, path), lesions=binary_lesions(lesions))


def undo_window(picture: Volume, path: Path) -> Volume:
    """Turn grey values of 0 to 255 into HU, int16, -1024 and above.

    Args:
        picture: the scan as it is stored.
        path: for the message.

    Raises:
        InputError: the values are no such grey values.
    """
    low, high = picture.array.min(), picture.array.max()
    if not (0 <= low and 1 < high <= 255):
        raise InputError(f"{path}: got values {low:g} to {high:g}, expected grey values of 0 to 255, as released")
    bottom, top = WINDOW_HU
    hu = np.rint(picture.array.astype(np.float32) * ((top - bottom) / 255) + bottom)
    array = np.maximum(hu, LOWEST_HU).astype(np.int16)
    require_hounsfield(array, path)
    return picture.with_array(array)


def _read_stored(path: Path) -> Volume:
    """Read a file whose orientation is not to be believed, and may be missing."""
    try:
        with gzip.open(path) as file:
            while file.read(_READ_BYTES):  # finds a truncated file, which SimpleITK fills up with zeros
                pass
        image = sitk.ReadImage(str(path), imageIO="NiftiImageIO")
    except (OSError, EOFError, zlib.error, RuntimeError) as error:
        raise InputError(f"{path}: damaged or no NIfTI file ({' '.join(str(error).split())}); get it again") from error
    if image.GetDimension() != 3:
        raise InputError(f"{path}: got {image.GetDimension()} dimensions, expected one three-dimensional scan")
    return Volume.from_sitk(image)


def _oriented(volume: Volume, *, head_to_feet: bool) -> Volume:
    array = np.ascontiguousarray(volume.array[::-1]) if head_to_feet else volume.array
    return Volume(array, replace(volume.geometry, origin_xyz_mm=(0.0, 0.0, 0.0), direction=_LPS))
