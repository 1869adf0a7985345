"""Masks from files, with a check that they lie on one grid.

This reader is the evaluation's own, so that no error in the reading of images is shared with what is judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from evaluation.errors import InputError
from evaluation.metaimage import metaimage_voxels
from evaluation.nifti import check_nifti_header, require_whole_nifti

MASK_SUFFIXES = (".mha", ".nii.gz", ".nii")
GRID_TOLERANCE_MM = 0.01


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

    def axes(self) -> NDArray[np.float64]:
        """Patient directions of the axes x, y, z, one a row, shape (3, 3)."""
        return np.reshape(np.asarray(self.direction, dtype=np.float64), (3, 3)).T

    def corners_mm(self) -> NDArray[np.float64]:
        """Patient coordinates (x, y, z) of the eight outer corners, shape (8, 3)."""
        index_xyz = np.array(list(product((0, 1), repeat=3))) * self.size_zyx[::-1] - 0.5
        corners: NDArray[np.float64] = self.origin_xyz_mm + (index_xyz * self.spacing_zyx_mm[::-1]) @ self.axes()
        return corners

    def matches(self, other: Grid) -> bool:
        """Whether sizes are equal and no corner lies more than 0.01 mm from the other grid's."""
        if self.size_zyx != other.size_zyx:
            return False
        distances_mm = np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1)
        return bool(distances_mm.max() <= GRID_TOLERANCE_MM)

    def overlaps(self, other: Grid) -> bool:
        """Whether the boxes of both have a part of the patient in common: no plane lies between them.

        Two boxes that are apart are so along a normal of a face of either, or across an edge of each.
        """
        across = np.cross(self.axes()[:, np.newaxis], other.axes()).reshape(-1, 3)
        normals = np.concatenate([self.axes(), other.axes(), across[np.linalg.norm(across, axis=1) > 1e-6]])
        ours, theirs = self.corners_mm() @ normals.T, other.corners_mm() @ normals.T
        return bool(np.all((ours.max(axis=0) > theirs.min(axis=0)) & (theirs.max(axis=0) > ours.min(axis=0))))

    def covered_share(self, where: NDArray[np.bool_], grid: Grid) -> float:
        """Share of a mask's voxels that lie within this grid's box; a sample of them, where they are many.

        Args:
            where: (z, y, x), some voxel of it True.
            grid: of the mask.
        """
        steps = [max(1, n // 64) for n in where.shape]
        index_zyx = np.argwhere(where[:: steps[0], :: steps[1], :: steps[2]]) * steps
        if not len(index_zyx):  # so small a mask that the sample has missed it
            index_zyx = np.argwhere(where)
        points_mm = grid.origin_xyz_mm + (index_zyx * grid.spacing_zyx_mm)[:, ::-1] @ grid.axes()
        own_xyz = (points_mm - self.origin_xyz_mm) @ self.axes().T / self.spacing_zyx_mm[::-1]
        is_within = (own_xyz >= -0.5) & (own_xyz <= np.array(self.size_zyx[::-1]) - 0.5)
        return float(np.mean(np.all(is_within, axis=1)))

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
    """Labels, uint8 (z, y, x), their grid, and the one that they were brought from, if it is another."""

    array: NDArray[np.uint8]
    grid: Grid
    resampled_from: Grid | None = None

    @property
    def is_resampled(self) -> bool:
        """Whether they were brought onto the grid from another."""
        return self.resampled_from is not None


class GridMismatchError(InputError):
    """A mask that lies on another grid than it must; carries both."""

    def __init__(self, name: str, *, got: Grid, expected: Grid) -> None:
        """Compose the message from the file's name and both grids."""
        super().__init__(f"{name}: got {got}, expected {expected}; write the mask on the grid of its CT")
        self.got = got
        self.expected = expected


def read_mask(path: Path, *, highest_label: int, grid: Grid | None = None, resample: bool = False) -> Mask:
    """Read a label mask.

    Args:
        path: an .mha, .nii or .nii.gz file: three-dimensional, one whole number a voxel.
        highest_label: labels must lie between 0 and this.
        grid: where the mask must lie; compared before the voxels are read. None: anywhere.
        resample: bring a mask from another grid onto `grid`, each voxel taking the nearest label (0 outside).

    Returns:
        The labels as uint8 and their grid: `grid` itself where it was given.

    Raises:
        InputError: the file is missing, incomplete, unreadable or not such a mask.
        GridMismatchError: it lies on another grid and may not be resampled, or has no part of the patient in common.
    """
    reader = open_mask(path)
    try:
        got = grid_of(reader)
        if grid is not None and not (got.overlaps(grid) if resample else got.matches(grid)):
            raise GridMismatchError(path.name, got=got, expected=grid)
        labels = _labels(path, reader, highest_label)
    except RuntimeError as error:
        raise _unreadable(path) from error
    if grid is None or got.matches(grid):
        return Mask(labels, grid or got)
    return Mask(_resampled(labels, got=got, expected=grid), grid, resampled_from=got)


def open_mask(path: Path) -> sitk.ImageFileReader:
    """A reader that has read a mask's header.

    Raises:
        InputError: the file is missing, or no three-dimensional image of one of the formats with one channel.
    """
    if not path.is_file():
        raise InputError(f"{path.name}: got no such file, expected a mask in {path.parent}")
    if not path.name.lower().endswith(MASK_SUFFIXES):
        raise InputError(f"{path.name}: got another kind of file, expected {', '.join(MASK_SUFFIXES)}")
    if not _is_metaimage(path):
        check_nifti_header(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO" if _is_metaimage(path) else "NiftiImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path) from error
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise InputError(
            f"{path.name}: got {reader.GetDimension()} dimensions and {reader.GetNumberOfComponents()} channels, "
            "expected 3 and 1"
        )
    return reader


def grid_of(reader: sitk.ImageFileReader) -> Grid:
    """The grid of a three-dimensional image whose header a reader has read."""
    return Grid(
        size_zyx=tuple(reader.GetSize()[::-1]),
        spacing_zyx_mm=tuple(reader.GetSpacing()[::-1]),
        origin_xyz_mm=tuple(reader.GetOrigin()),
        direction=tuple(reader.GetDirection()),
    )


def image_of(array: NDArray[Any], grid: Grid) -> sitk.Image:
    """A SimpleITK image of an array (z, y, x) on a grid."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing_zyx_mm[::-1])
    image.SetOrigin(grid.origin_xyz_mm)
    image.SetDirection(grid.direction)
    return image


def _is_metaimage(path: Path) -> bool:
    return path.suffix.lower() == ".mha"


def _unreadable(path: Path) -> InputError:
    expected = "a whole .mha" if _is_metaimage(path) else "a whole NIfTI file whose axes are at right angles"
    return InputError(f"{path.name}: got a file that cannot be read as an image, expected {expected}")


def _labels(path: Path, reader: sitk.ImageFileReader, highest: int) -> NDArray[np.uint8]:
    """The voxels (z, y, x) of the file whose header the reader has read, as labels."""
    if _is_metaimage(path):
        dtype = sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).dtype
        voxels = metaimage_voxels(path, shape=reader.GetSize()[::-1], dtype=dtype)
        _check_labels(path.name, voxels, highest)
        return voxels.astype(np.uint8, copy=False)
    require_whole_nifti(path)
    image = reader.Execute()
    view = sitk.GetArrayViewFromImage(image)
    _check_labels(path.name, view, highest)
    return view.astype(np.uint8)


def _check_labels(name: str, voxels: NDArray[Any], highest: int) -> None:
    """Floats are looked at slice by slice, which keeps the memory small."""
    if np.issubdtype(voxels.dtype, np.floating) and any(np.any(plane != np.rint(plane)) for plane in voxels):
        raise InputError(
            f"{name}: got {voxels.dtype} voxels that are not whole numbers, expected labels 0 to {highest}"
        )
    lowest_found, highest_found = voxels.min(), voxels.max()
    if lowest_found < 0 or highest_found > highest:
        raise InputError(f"{name}: got labels {lowest_found:g} to {highest_found:g}, expected 0 to {highest}")


def _resampled(labels: NDArray[np.uint8], *, got: Grid, expected: Grid) -> NDArray[np.uint8]:
    """Each voxel of the expected grid takes the nearest label, or 0 outside the grid that was got."""
    image = sitk.Resample(
        image_of(labels, got),
        expected.size_zyx[::-1],
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        expected.origin_xyz_mm,
        expected.spacing_zyx_mm[::-1],
        expected.direction,
    )
    return np.array(sitk.GetArrayViewFromImage(image))
