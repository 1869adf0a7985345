"""Masks from files, with a check that they lie on one grid.

This reader is the evaluation's own, so that no error in the reading of images is shared with what is judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from evaluation.errors import InputError

GRID_TOLERANCE_MM = 0.01
INTEGER_TYPES = {
    sitk.sitkInt8,
    sitk.sitkUInt8,
    sitk.sitkInt16,
    sitk.sitkUInt16,
    sitk.sitkInt32,
    sitk.sitkUInt32,
    sitk.sitkInt64,
    sitk.sitkUInt64,
}


@dataclass(frozen=True)
class Grid:
    """Where voxels lie in the patient.

    Attributes:
        size_zyx: voxels along z, y, x.
        spacing_zyx_mm: distance between voxel centres along the array's axes.
        origin_xyz_mm: patient coordinates of the first voxel's centre.
        direction: nine numbers, row by row; column k is the patient direction of the k-th of the axes x, y, z.
    """

    size_zyx: tuple[int, ...]
    spacing_zyx_mm: tuple[float, ...]
    origin_xyz_mm: tuple[float, ...]
    direction: tuple[float, ...]

    def corners_mm(self) -> NDArray[np.float64]:
        """Patient coordinates (x, y, z) of the eight outer corners, shape (8, 3)."""
        index_xyz = np.array(list(product((0, 1), repeat=3))) * self.size_zyx[::-1] - 0.5
        step_mm: NDArray[np.float64] = np.reshape(self.direction, (3, 3)) * self.spacing_zyx_mm[::-1]
        corners: NDArray[np.float64] = self.origin_xyz_mm + index_xyz @ step_mm.T
        return corners

    def matches(self, other: Grid) -> bool:
        """Whether sizes are equal and no corner lies more than 0.01 mm from the other grid's."""
        if self.size_zyx != other.size_zyx:
            return False
        distances_mm = np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1)
        return bool(distances_mm.max() <= GRID_TOLERANCE_MM)

    def __str__(self) -> str:
        """The grid on one line."""

        def listed(values: tuple[float, ...]) -> str:
            return "(" + ", ".join(f"{value:.7g}" for value in values) + ")"

        return (
            f"size_zyx {listed(self.size_zyx)} spacing_zyx_mm {listed(self.spacing_zyx_mm)} "
            f"origin_xyz_mm {listed(self.origin_xyz_mm)} direction {listed(self.direction)}"
        )


@dataclass(frozen=True)
class Mask:
    """Labels, uint8 (z, y, x), and their grid."""

    array: NDArray[np.uint8]
    grid: Grid


class GridMismatchError(InputError):
    """A mask that lies on another grid than it must; carries both."""

    def __init__(self, name: str, *, got: Grid, expected: Grid) -> None:
        """Compose the message from the file's name and both grids."""
        super().__init__(f"{name}: got {got}, expected {expected}; write the mask on the grid of its CT")
        self.got = got
        self.expected = expected


def read_mask(path: Path, *, highest_label: int, grid: Grid | None = None) -> Mask:
    """Read a label mask.

    Args:
        path: a file that SimpleITK reads: three-dimensional, one integer a voxel.
        highest_label: labels must lie between 0 and this.
        grid: where the mask must lie; compared before the voxels are read. None: anywhere.

    Raises:
        InputError: the file is missing, unreadable or not such a mask.
        GridMismatchError: it lies on another grid.
    """
    if not path.is_file():
        raise InputError(f"{path.name}: got no such file, expected a mask in {path.parent}")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _check_kind(path.name, reader)
        got = _grid_of(reader)
        if grid is not None and not got.matches(grid):
            raise GridMismatchError(path.name, got=got, expected=grid)
        labels = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise InputError(f"{path.name}: got a file that cannot be read as an image, expected .mha") from error
    if labels.min() < 0 or labels.max() > highest_label:
        raise InputError(f"{path.name}: got labels {labels.min()} to {labels.max()}, expected 0 to {highest_label}")
    return Mask(labels.astype(np.uint8, copy=False), got)


def _check_kind(name: str, reader: sitk.ImageFileReader) -> None:
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise InputError(
            f"{name}: got {reader.GetDimension()} dimensions and {reader.GetNumberOfComponents()} channels, "
            "expected 3 and 1"
        )
    if reader.GetPixelID() not in INTEGER_TYPES:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise InputError(f"{name}: got voxels of {kind}, expected integer labels; cast to uint8")


def _grid_of(reader: sitk.ImageFileReader) -> Grid:
    return Grid(
        size_zyx=tuple(reader.GetSize()[::-1]),
        spacing_zyx_mm=tuple(reader.GetSpacing()[::-1]),
        origin_xyz_mm=tuple(reader.GetOrigin()),
        direction=tuple(reader.GetDirection()),
    )
