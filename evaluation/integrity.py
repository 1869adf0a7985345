"""Whether an image file is whole: SimpleITK itself reads on when voxels are missing or do not decompress."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from evaluation.errors import InputError

MASK_SUFFIXES = (".mha", ".nii.gz", ".nii")

_CHUNK_BYTES = 1 << 16
_LONGEST_HEADER_LINE = 1 << 12
_NIFTI_HEADER_BYTES = 348
_NIFTI_VOXEL_OFFSET = 108


def require_whole(path: Path, *, voxel_bytes: int) -> None:
    """Check that a file holds all its voxels, by one pass over its bytes that keeps none of them.

    Args:
        path: an .mha, .nii or .nii.gz file whose header SimpleITK has read.
        voxel_bytes: what the voxels take without compression, by that header.

    Raises:
        InputError: bytes are missing, or do not decompress.
    """
    try:
        with path.open("rb") as file:
            found = _metaimage_bytes(file, voxel_bytes) if path.suffix.lower() == ".mha" else _nifti_bytes(path, file)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"{path.name}: got a truncated or damaged file ({error}); copy or write it again") from error
    if found < voxel_bytes:
        raise InputError(
            f"{path.name}: got {found} bytes of voxels, expected {voxel_bytes}: the file is truncated or damaged; "
            "copy or write it again"
        )


def _metaimage_bytes(file: IO[bytes], wanted: int) -> int:
    """Bytes of voxels behind a MetaImage header; counting ends soon after the wanted ones."""
    is_compressed = False
    while line := file.readline(_LONGEST_HEADER_LINE):
        name, _, value = line.partition(b"=")
        if name.strip() == b"CompressedData":
            is_compressed = value.strip().lower() == b"true"
        if name.strip() == b"ElementDataFile":
            break
    if not is_compressed:
        return _count(_chunks(file))
    decompressor = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # a zlib or a gzip header
    found = 0
    for chunk in _chunks(file):
        found += len(decompressor.decompress(chunk))
        if decompressor.eof or found > wanted:
            return found
    raise EOFError("the compressed voxels end early")


def _nifti_bytes(path: Path, file: IO[bytes]) -> int:
    """Bytes of voxels in a NIfTI file; to the end, since gzip has its checksum there."""
    with gzip.open(file) if path.suffix.lower() == ".gz" else file as content:
        header = content.read(_NIFTI_HEADER_BYTES)
        order = "<" if struct.unpack_from("<i", header)[0] == _NIFTI_HEADER_BYTES else ">"
        (offset,) = struct.unpack_from(f"{order}f", header, _NIFTI_VOXEL_OFFSET)
        return len(header) + _count(_chunks(content)) - int(offset)


def _chunks(file: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    return iter(lambda: file.read(_CHUNK_BYTES), b"")


def _count(chunks: Iterator[bytes]) -> int:
    return sum(len(chunk) for chunk in chunks)
