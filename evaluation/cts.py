"""The scans themselves, which the report shows: checked before anything is judged, read when it is drawn."""

from __future__ import annotations

import SimpleITK as sitk

from evaluation.errors import GroundTruthError, InputError
from evaluation.masks import grid_of, open_mask
from evaluation.reference import ReferenceCase


def check_ct(case: ReferenceCase) -> None:
    """Check the header of a scan that the reference names; nothing to do where it names none.

    Raises:
        GroundTruthError: the scan is missing, unreadable, no CT, or on another grid than the reference's masks.
    """
    if case.ct is not None:
        _open(case)


def read_ct(case: ReferenceCase) -> sitk.Image:
    """The scan of a case that has one.

    Raises:
        GroundTruthError: as for `check_ct`.
    """
    reader = _open(case)
    try:
        image: sitk.Image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(case) from error
    return image


def _open(case: ReferenceCase) -> sitk.ImageFileReader:
    """A reader that has read the scan's header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(case.ct))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(case) from error
    place = f"reference case {case.case}: {case.ct}"
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise GroundTruthError(
            f"{place}: got {reader.GetDimension()} dimensions and {reader.GetNumberOfComponents()} channels, "
            "expected a CT with 3 and 1"
        )
    try:
        expected = grid_of(open_mask(case.lesions))
    except InputError as error:
        raise GroundTruthError(f"reference case {case.case}: {error}") from error
    if not grid_of(reader).matches(expected):
        raise GroundTruthError(f"{place}: got {grid_of(reader)}, expected the reference's {expected}")
    return reader


def _unreadable(case: ReferenceCase) -> GroundTruthError:
    return GroundTruthError(
        f"reference case {case.case}: {case.ct}: got no readable CT; correct or empty the column ct"
    )
