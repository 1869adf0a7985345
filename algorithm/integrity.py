"""What makes an image file unusable, as far as SimpleITK reads on in silence.

SimpleITK fills what is missing at the end of a NIfTI file with zeros, gives files without a spacing one of 1 mm, reads
"nan" in a MetaImage header as 0, and keeps half-decompressed voxels. Each of these is refused here, from the header and
from one pass over the compressed bytes that keeps none of them.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from algorithm.errors import InputError

LOWEST_HU = -1024
AIR_HU = -500
SHEARED = "{path}: the image axes are not at right angles (gantry tilt or shear); resample it to an upright grid"

SPACING_MM = (0.01, 100.0)
_ORTHONORMAL_TOLERANCE = 1e-3
_SAME_SPACING = 1e-3
_SAME_DIRECTION = 1e-2
_NIFTI_HEADER_BYTES = 348
_TEXT_HEADER_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 16
_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS
_SPACING_FIELDS = ("ElementSpacing", "ElementSize")  # of a MetaImage
_METAIMAGE_NUMBERS = ("Offset", "Position", "Origin", *_SPACING_FIELDS, "TransformMatrix", "Rotation", "Orientation")


def require_sound_header(reader: sitk.ImageFileReader, path: Path) -> None:
    """Check that a header describes a three-dimensional scalar image with a usable geometry.

    Direction cosines may be off orthonormal by 1e-3, which single-precision and six-digit headers need.

    Args:
        reader: has read the image information, no voxels yet.
        path: for the message.

    Raises:
        InputError: it does not.
    """
    size, spacing = reader.GetSize(), reader.GetSpacing()
    if reader.GetDimension() != 3:
        raise InputError(f"{path}: got {reader.GetDimension()} dimensions, expected one three-dimensional scan")
    if reader.GetNumberOfComponents() != 1:
        raise InputError(
            f"{path}: got {reader.GetNumberOfComponents()} values a voxel (colours or vectors), expected one value"
        )
    if min(size) < 2:
        raise InputError(f"{path}: got size (x, y, z) {numbers(size)}, expected a scan of at least two slices")
    if not all(SPACING_MM[0] <= value <= SPACING_MM[1] for value in spacing):
        raise _spacing_error(path, spacing)
    direction = np.reshape(reader.GetDirection(), (3, 3))
    if not np.allclose(direction.T @ direction, np.eye(3), rtol=0.0, atol=_ORTHONORMAL_TOLERANCE):
        raise InputError(SHEARED.format(path=path))


def require_hounsfield(array: NDArray[Any], path: Path) -> None:
    """Check that the values of a chest CT can be Hounsfield units.

    Args:
        array: all voxels.
        path: for the message.

    Raises:
        InputError: values are 8-bit, not finite, all equal, all within 0 to 255, or none is air (-1024 to -500).
    """
    expected = "expected Hounsfield units (air near -1000, water 0)"
    if array.dtype.itemsize == 1:
        raise InputError(f"{path}: got 8-bit values, {expected}; export the scan without a window")
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise InputError(f"{path}: got {np.count_nonzero(~np.isfinite(array))} NaN or infinite values, {expected}")
    low, high = array.min(), array.max()
    if low == high:
        raise InputError(f"{path}: got {low:g} in every voxel, {expected}; the image is empty")
    if low >= 0 and high <= 255:
        raise InputError(f"{path}: got a windowed picture ({low:g} to {high:g}), {expected}; export without a window")
    if not ((array >= LOWEST_HU) & (array < AIR_HU)).any():
        raise InputError(
            f"{path}: got values {low:g} to {high:g}, none of them air ({LOWEST_HU} to {AIR_HU}), {expected}; "
            "apply the rescale slope and intercept"
        )


def require_sound_metaimage(path: Path) -> None:
    """Check the header of a .mha or .mhd file before SimpleITK reads it, for what it takes in silence or crashes on.

    Raises:
        InputError: the header names no data or states no spacing, its dimensions disagree, or a number in it is not
            finite.
    """
    header = _MetaImageHeader.read(path)
    dimensions, sizes = header.fields.get("NDims", ""), header.fields.get("DimSize", "").split()
    if not dimensions.isdecimal() or len(sizes) != int(dimensions):
        raise InputError(
            f"{path}: got NDims = {dimensions!r} and {len(sizes)} sizes, expected 3 of each; damaged header"
        )
    if not header.fields.keys() & set(_SPACING_FIELDS):
        raise _no_spacing(path, _SPACING_FIELDS[0])
    for key in _METAIMAGE_NUMBERS:
        if not all(_is_finite(word) for word in header.fields.get(key, "").split()):
            raise InputError(f"{path}: got {key} = {header.fields[key]!r}, expected finite numbers; correct the header")


def require_metaimage_voxels(path: Path, voxel_bytes: int) -> None:
    """Check that the voxels of a .mha or .mhd file are all there.

    Args:
        path: the file.
        voxel_bytes: their size, uncompressed.

    Raises:
        InputError: voxels are missing or damaged.
    """
    header = _MetaImageHeader.read(path)
    if header.data_name == "LOCAL":
        data, offset = path, header.length
    elif header.data_name.startswith("LIST") or "%" in header.data_name:
        return  # one file a slice: SimpleITK checks these itself
    else:
        skipped = header.fields.get("HeaderSize", "")
        data, offset = path.parent / header.data_name, int(skipped) if skipped.isdecimal() else 0
    if not data.is_file():
        raise InputError(f"{path}: its voxels are in {header.data_name!r}, which is missing; keep both files together")
    if header.is_true("CompressedData"):
        stored = header.fields.get("CompressedDataSize", "")
        if not stored.isdecimal():  # SimpleITK would return garbage
            raise InputError(f"{path}: states no CompressedDataSize; save the image again")
        _require_stream(data, offset, voxel_bytes, stored_bytes=int(stored))
    elif header.is_true("BinaryData"):
        _require_length(data, offset, voxel_bytes)


class _MetaImageHeader(NamedTuple):
    """The text at the start of a MetaImage file."""

    fields: dict[str, str]
    data_name: str
    length: int

    @classmethod
    def read(cls, path: Path) -> _MetaImageHeader:
        with path.open("rb") as file:
            head = file.read(_TEXT_HEADER_BYTES)
        end = re.search(rb"^ElementDataFile\s*[=:]([^\r\n]*)\r?\n?", head, flags=re.MULTILINE)
        if end is None:
            raise InputError(f"{path}: damaged or no MetaImage file; copy or export it again")
        lines = (re.split(r"[=:]", line, maxsplit=1) for line in head[: end.start()].decode("latin-1").splitlines())
        fields = {line[0].strip(): line[1].strip() for line in lines if len(line) == 2}
        return cls(fields, end[1].decode("utf-8", "replace").strip(), end.end())

    def is_true(self, key: str) -> bool:
        return self.fields.get(key, "").startswith(("T", "t", "1"))


def require_sound_nrrd(path: Path, voxel_bytes: int) -> None:
    """Check the spacing and the compressed voxels of a .nrrd file; SimpleITK refuses uncompressed ones that fall short.

    Args:
        path: the file, which SimpleITK takes for a NRRD.
        voxel_bytes: size of the voxels, uncompressed.

    Raises:
        InputError: the spacing is not stated or not finite, or voxels are missing or damaged.
    """
    with path.open("rb") as file:
        head = file.read(_TEXT_HEADER_BYTES)
    end = re.search(rb"\r?\n\r?\n", head)
    fields = [line.replace(b" ", b"").lower() for line in head[: end.start() if end else None].splitlines()]
    if not any(re.match(rb"spacedirections:|spacings:(?!.*nan)", field) for field in fields):
        raise _no_spacing(path, "space directions")
    detached = any(field.startswith(b"datafile:") for field in fields)
    if end and not detached and (b"encoding:gzip" in fields or b"encoding:gz" in fields):
        _require_stream(path, end.end(), voxel_bytes)


def require_sound_nifti(path: Path) -> None:
    """Check a .nii or .nii.gz file: positive spacing, a stated and consistent orientation, and all voxels there.

    Raises:
        InputError: any of these fails.
    """
    header = _NiftiHeader.read(path)
    if header.dimensions >= 3 and not all(math.isfinite(value) and value > 0 for value in header.spacing):
        raise _spacing_error(path, header.spacing)
    if not header.has_qform and not header.has_sform:
        raise InputError(f"{path}: states no orientation (qform and sform codes are 0); convert it from DICOM again")
    if header.has_sform and not np.allclose(header.sform_spacing, header.spacing, rtol=_SAME_SPACING, atol=0.0):
        raise InputError(
            f"{path}: got spacing {numbers(header.spacing)} in pixdim but {numbers(header.sform_spacing)} in sform; "
            "correct the header"
        )
    if header.has_qform and header.has_sform:
        directions = header.sform_direction, header.qform_direction
        if not np.allclose(*directions, rtol=0.0, atol=_SAME_DIRECTION):
            raise InputError(
                f"{path}: got another orientation in sform than in qform ({numbers(directions[0].ravel())}; "
                f"{numbers(directions[1].ravel())}), expected the same; convert it from DICOM again"
            )
    if _is_gzip(path):
        _require_stream(path, 0, header.voxel_offset + header.voxel_bytes)
    else:
        _require_length(path, header.voxel_offset, header.voxel_bytes)


class _NiftiHeader(NamedTuple):
    """The fields of a NIfTI-1 header that SimpleITK does not check."""

    dimensions: int
    voxel_offset: int
    voxel_bytes: int
    spacing: tuple[float, ...]
    has_qform: bool
    has_sform: bool
    sform_spacing: tuple[float, ...]
    sform_direction: NDArray[np.float64]
    qform_direction: NDArray[np.float64]

    @classmethod
    def read(cls, path: Path) -> _NiftiHeader:
        try:
            with gzip.open(path) if _is_gzip(path) else path.open("rb") as file:
                header = file.read(_NIFTI_HEADER_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: damaged or no gzip file ({error}); copy or export it again") from error
        order = next((o for o in "<>" if header[:4] == struct.pack(f"{o}i", _NIFTI_HEADER_BYTES)), None)
        if order is None or len(header) < _NIFTI_HEADER_BYTES:
            raise InputError(f"{path}: damaged or no NIfTI-1 file; copy or export it again, or save it as .mha")
        dimensions, *size = struct.unpack_from(f"{order}8h", header, 40)
        (bits,) = struct.unpack_from(f"{order}h", header, 72)
        (offset,) = struct.unpack_from(f"{order}f", header, 108)
        q_code, s_code = struct.unpack_from(f"{order}2h", header, 252)
        (handedness,) = struct.unpack_from(f"{order}f", header, 76)
        quaternion = struct.unpack_from(f"{order}3f", header, 256)
        axes = np.reshape(struct.unpack_from(f"{order}12f", header, 280), (3, 4))[:, :3]
        sform_spacing = np.linalg.norm(axes, axis=0)
        return cls(
            dimensions=dimensions,
            voxel_offset=int(offset) if math.isfinite(offset) else 0,
            voxel_bytes=math.prod(max(1, n) for n in size[: max(0, dimensions)]) * bits // 8,
            spacing=struct.unpack_from(f"{order}3f", header, 80),
            has_qform=q_code > 0,
            has_sform=s_code > 0,
            sform_spacing=tuple(sform_spacing.tolist()),
            sform_direction=axes / np.where(sform_spacing > 0, sform_spacing, 1.0),
            qform_direction=_direction_of(quaternion) * (1.0, 1.0, -1.0 if handedness < 0 else 1.0),
        )


def _direction_of(quaternion: tuple[float, float, float]) -> NDArray[np.float64]:
    """The rotation, (3, 3), of a unit quaternion by its last three parts, as a NIfTI header holds it."""
    axis = np.array(quaternion)
    real = math.sqrt(max(0.0, 1.0 - float(axis @ axis)))
    across = np.cross(np.eye(3), axis)  # across @ v is the cross product of axis and v
    direction: NDArray[np.float64] = (real**2 - axis @ axis) * np.eye(3) + 2 * np.outer(axis, axis) + 2 * real * across
    return direction


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _require_length(path: Path, offset: int, voxel_bytes: int) -> None:
    available = max(0, path.stat().st_size - offset)
    if available < voxel_bytes:
        raise _truncated(path, available, voxel_bytes)


def _require_stream(path: Path, offset: int, expected_bytes: int, *, stored_bytes: int | None = None) -> None:
    """Check that a zlib or gzip stream is whole (both carry a checksum) and long enough.

    Args:
        path: the file.
        offset: where the stream starts.
        expected_bytes: what it must hold at least, decompressed.
        stored_bytes: its length in the file; None: it ends with the file.
    """
    left = path.stat().st_size - offset if stored_bytes is None else stored_bytes
    got, stream = 0, zlib.decompressobj(_ZLIB_OR_GZIP)
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(min(left, _CHUNK_BYTES)):
            left -= len(chunk)
            while chunk and not (stream.eof and got >= expected_bytes):
                if stream.eof:  # a gzip file may hold several streams, one after the other
                    stream = zlib.decompressobj(_ZLIB_OR_GZIP)
                try:
                    got += len(stream.decompress(chunk))
                except zlib.error as error:
                    raise InputError(f"{path}: damaged ({error}); copy or export it again") from error
                chunk = stream.unused_data
    if not stream.eof or got < expected_bytes:
        raise _truncated(path, got, expected_bytes)


def _truncated(path: Path, got: int, expected: int) -> InputError:
    return InputError(f"{path}: truncated, got {got} of {expected} bytes; copy or export it again")


def _spacing_error(path: Path, spacing: Iterable[float]) -> InputError:
    return InputError(
        f"{path}: got spacing (x, y, z) {numbers(spacing)}, "
        f"expected {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm; correct the header"
    )


def _no_spacing(path: Path, field: str) -> InputError:
    return InputError(f"{path}: states no spacing, expected the field {field!r}; convert it from DICOM again")


def _is_finite(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def numbers(values: Iterable[float]) -> str:
    """A few numbers for a message: (1, 0.75, 2)."""
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
