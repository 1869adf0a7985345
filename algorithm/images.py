"""Images as arrays with geometry, and the only place that knows SimpleITK's axis order."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from algorithm.errors import InputError
from algorithm.integrity import (
    LOWEST_HU,
    SHEARED,
    numbers,
    require_hounsfield,
    require_metaimage_voxels,
    require_sound_header,
    require_sound_metaimage,
    require_sound_nifti,
    require_sound_nrrd,
)

ArrayZYX = NDArray[Any]

IMAGE_IO = {
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".nii": "NiftiImageIO",
    ".nii.gz": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
}
SUFFIXES = tuple(IMAGE_IO)

_SAME_ORIGIN_VOXELS = 1e-2
_SAME_SPACING_MM = 1e-4
_SAME_DIRECTION = 1e-4

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # what matters is checked here and in integrity, and raised


@dataclass(frozen=True)
class Geometry:
    """Where a voxel grid lies in the patient.

    Attributes:
        size_zyx: voxels along z, y, x.
        spacing_zyx_mm: distance between voxel centres along the array's axes.
        origin_xyz_mm: position of the centre of voxel (0, 0, 0) in patient coordinates (LPS).
        direction: nine numbers, row by row; column k is the patient direction of SimpleITK's index axis k (x, y, z).
    """

    size_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    origin_xyz_mm: tuple[float, float, float]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Geometry:
        """The geometry of a three-dimensional SimpleITK image, to the bit."""
        size_x, size_y, size_z = image.GetSize()
        spacing_x, spacing_y, spacing_z = image.GetSpacing()
        return cls(
            size_zyx=(size_z, size_y, size_x),
            spacing_zyx_mm=(spacing_z, spacing_y, spacing_x),
            origin_xyz_mm=image.GetOrigin(),
            direction=image.GetDirection(),
        )

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(np.prod(self.spacing_zyx_mm)) / 1000.0


@dataclass(frozen=True)
class Volume:
    """A scan-sized array (z, y, x) and its geometry."""

    array: ArrayZYX
    geometry: Geometry

    @classmethod
    def from_sitk(cls, image: sitk.Image) -> Volume:
        """Take over a three-dimensional scalar SimpleITK image."""
        return cls(sitk.GetArrayFromImage(image), Geometry.of(image))

    def to_sitk(self) -> sitk.Image:
        """The same voxels as a SimpleITK image; bool becomes uint8."""
        array = self.array.astype(np.uint8) if self.array.dtype == np.bool_ else self.array
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.geometry.spacing_zyx_mm[::-1])
        image.SetOrigin(self.geometry.origin_xyz_mm)
        image.SetDirection(self.geometry.direction)
        return image

    def with_array(self, array: ArrayZYX) -> Volume:
        """Another array on the same grid."""
        return Volume(array, self.geometry)


def read_ct(path: Path) -> Volume:
    """Read a CT in Hounsfield units, (z, y, x), in the orientation in which it is stored.

    Values below -1024 (padding outside the scanner's field of view, often -2000 or -3024) become -1024.

    Args:
        path: .mha, .mhd, .nii, .nii.gz or .nrrd file, or a folder that holds one DICOM series.

    Returns:
        int16, or float32 where the file holds fractions or values beyond int16.

    Raises:
        InputError: the file is missing, damaged, not a three-dimensional scalar image with a usable geometry, or its
            values are not HU.
    """
    if path.is_dir():
        from algorithm.dicom import read_series

        volume = read_series(path)
    else:
        volume = _read_file(path)
    array = volume.array
    require_hounsfield(array, path)
    is_int16 = np.issubdtype(array.dtype, np.integer) and array.max() <= np.iinfo(np.int16).max
    return volume.with_array(np.maximum(array, LOWEST_HU).astype(np.int16 if is_int16 else np.float32, copy=False))


def read_labels(path: Path) -> Volume:
    """Read a label map of whole numbers, (z, y, x); floating-point files are accepted where every value is whole.

    Raises:
        InputError: as `read_ct`, save for the checks on HU; or a value is not a whole number.
    """
    if path.is_dir():
        raise InputError(f"{path}: got a folder, expected one label file ({', '.join(SUFFIXES)})")
    volume = _read_file(path)
    if np.issubdtype(volume.array.dtype, np.integer):
        return volume
    with np.errstate(invalid="ignore"):
        whole = volume.array.astype(np.int32)
    if not np.array_equal(whole, volume.array):
        raise InputError(
            f"{path}: got values that are not whole numbers, expected labels; resample with nearest neighbour"
        )
    return volume.with_array(whole)


def read_geometry(path: Path) -> Geometry:
    """The grid that the header of an image file states; no voxel is read.

    Raises:
        InputError: the file is missing, of no known format, or its header is unusable.
    """
    return Geometry.of(_open(path))  # type: ignore[arg-type] # a reader answers what an image answers


def write_labels(volume: Volume, path: Path) -> None:
    """Write a label map, compressed; the file appears under its name only when it is complete.

    MetaImage (.mha) keeps the geometry to the bit, NIfTI (.nii.gz) to the 32-bit precision of its header.

    Args:
        volume: uint8 or bool.
        path: ends in .mha or .nii.gz; its folder exists.

    Raises:
        OSError: the file cannot be written.
    """
    if volume.array.dtype not in (np.uint8, np.bool_):
        raise TypeError(f"labels are {volume.array.dtype}, expected uint8 or bool")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as partial:
        unnamed = Path(partial) / path.name
        try:
            sitk.WriteImage(volume.to_sitk(), str(unnamed), useCompression=True)
        except RuntimeError as error:
            raise OSError(f"{path}: cannot be written ({_reason(error)})") from error
        unnamed.replace(path)


def require_same_grid(volume: Volume, ct: Volume, what: str) -> None:
    """Check that a volume lies on the CT's voxel grid; see `require_same_geometry`."""
    require_same_geometry(volume.geometry, ct.geometry, what)


def require_same_geometry(got: Geometry, expected: Geometry, what: str) -> None:
    """Check that a grid is the CT's.

    Sizes must be equal, origins agree within 0.01 voxel, spacings within 1e-4 mm and direction cosines within 1e-4:
    what single-precision headers and headers with six digits need, and less than what moves a voxel.

    Args:
        got: the grid to check.
        expected: the CT's.
        what: name of what lies on it for the message, for example "lobe mask".

    Raises:
        InputError: the grids differ; the message names the first property that does.
    """
    origin_mm = _SAME_ORIGIN_VOXELS * min(expected.spacing_zyx_mm)
    properties = (
        ("size (x, y, z)", got.size_zyx[::-1], expected.size_zyx[::-1], 0.0),
        ("spacing (x, y, z) in mm", got.spacing_zyx_mm[::-1], expected.spacing_zyx_mm[::-1], _SAME_SPACING_MM),
        ("origin in mm", got.origin_xyz_mm, expected.origin_xyz_mm, origin_mm),
        ("direction", got.direction, expected.direction, _SAME_DIRECTION),
    )
    for name, ours, theirs, tolerance in properties:
        if not np.allclose(ours, theirs, rtol=0.0, atol=tolerance):
            raise InputError(
                f"the {what} is not on the CT's grid: got {name} {numbers(ours)}, expected {numbers(theirs)}; "
                "resample it to the CT with nearest neighbour"
            )


def _read_file(path: Path) -> Volume:
    suffix = _suffix(path)
    if suffix.startswith(".nii"):
        require_sound_nifti(path)
    reader = _open(path)
    with _explained(path):
        voxel_bytes = math.prod(reader.GetSize()) * sitk.Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
        if suffix.startswith(".mh"):
            require_metaimage_voxels(path, voxel_bytes)
        elif suffix == ".nrrd":
            require_sound_nrrd(path, voxel_bytes)
        return Volume.from_sitk(reader.Execute())


def _open(path: Path) -> sitk.ImageFileReader:
    """A reader that has read and checked the header."""
    suffix = _suffix(path)
    if suffix.startswith(".mh"):
        require_sound_metaimage(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(IMAGE_IO[suffix])
    with _explained(path):
        reader.ReadImageInformation()
    require_sound_header(reader, path)
    return reader


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SimpleITK's errors into one that says what is wrong with the file."""
    try:
        yield
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise InputError(SHEARED.format(path=path)) from error
        raise InputError(
            f"{path}: cannot be read as {_suffix(path)} ({_reason(error)}); damaged, or saved wrongly"
        ) from error


def _suffix(path: Path) -> str:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise InputError(
            f"{path}: unsupported format, expected {', '.join(SUFFIXES)} or a folder with one DICOM series"
        )
    return suffix


def _reason(error: RuntimeError) -> str:
    """The cause in an ITK message of many lines, without its source files and addresses."""
    noise = r"Exception thrown in SimpleITK \w+: \S+:\d+: |(?:sitk::|itk::|ITK )ERROR: |\w+\(0x[0-9a-f]+\): "
    return re.sub(noise, "", " ".join(str(error).split()))
