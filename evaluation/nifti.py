"""Whether a NIfTI file is whole: SimpleITK itself reads on when voxels are missing or do not decompress."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

from evaluation.errors import InputError

_CHUNK_BYTES = 1 << 16
_HEADER_BYTES = 348
_NIFTI_2_HEADER_BYTES = 540
_SIZES_OFFSET = 40
_BITS_OFFSET = 72
_VOXEL_OFFSET = 108
_MAGIC_OFFSET = 344
_ONE_FILE = b"n+1\0"


def check_nifti_header(path: Path) -> int:
    """Check that a file is NIfTI-1 with its own voxels.

    Args:
        path: a .nii or .nii.gz file.

    Returns:
        How many bytes it must have without compression.

    Raises:
        InputError: it is another kind of file, or its header is damaged.
    """
    try:
        with _opened(path) as file:
            return _wanted_bytes(path.name, file.read(_HEADER_BYTES))
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise _damaged(path, str(error)) from error


def require_whole_nifti(path: Path) -> None:
    """Check that a file holds all its voxels, by one pass over its bytes that keeps none of them.

    Args:
        path: a .nii or .nii.gz file.

    Raises:
        InputError: as for `check_nifti_header`, or bytes are missing or do not decompress.
    """
    wanted = check_nifti_header(path)
    try:
        with _opened(path) as file:
            found = sum(len(chunk) for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""))
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    if found < wanted:
        raise _damaged(path, f"{found} bytes, expected {wanted}")


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path.name}: got a truncated or damaged file ({reason}); copy or write it again")


def _wanted_bytes(name: str, header: bytes) -> int:
    """Length of the whole file. Bits are the stored voxel's: with a scale, SimpleITK makes floats of them."""
    sizes = {struct.unpack_from(f"{order}i", header)[0]: order for order in "<>"}
    if _NIFTI_2_HEADER_BYTES in sizes:
        raise InputError(f"{name}: got a NIfTI-2 file, expected NIfTI-1 or .mha; convert it")
    if _HEADER_BYTES not in sizes or header[_MAGIC_OFFSET:] != _ONE_FILE:
        raise InputError(f"{name}: got no header of a NIfTI-1 file with its own voxels (n+1), expected one; convert it")
    order = sizes[_HEADER_BYTES]
    dimensions, *shape = struct.unpack_from(f"{order}8h", header, _SIZES_OFFSET)
    (bits,) = struct.unpack_from(f"{order}h", header, _BITS_OFFSET)
    (offset,) = struct.unpack_from(f"{order}f", header, _VOXEL_OFFSET)
    shape = shape[:dimensions]
    if not (math.isfinite(offset) and offset >= _HEADER_BYTES and min(bits, dimensions, *shape) > 0):
        raise InputError(
            f"{name}: got size {shape}, {bits} bits a voxel, voxels from byte {offset:g} on; write it again"
        )
    wanted: int = int(offset) + math.prod(shape) * bits // 8
    return wanted
