"""Voxels of a MetaImage, read from the file itself and from nowhere else.

The format lets a header name any other file as the one with the voxels, and SimpleITK follows; what is judged could so
point at the reference. SimpleITK also reads on when voxels are missing or do not decompress.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import InputError

_CHUNK_BYTES = 1 << 16
_LONGEST_HEADER_LINE = 1 << 12


def metaimage_voxels(path: Path, *, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Read the voxels of an .mha file.

    Args:
        path: the file.
        shape: of the voxels, by its header.
        dtype: of a voxel, by its header, whatever the order of bytes.

    Returns:
        The voxels, of that shape, in the file's order of bytes.

    Raises:
        InputError: the header points to voxels elsewhere or stores them as text, or bytes are missing or do not
            decompress.
    """
    wanted = math.prod(shape) * dtype.itemsize
    try:
        with path.open("rb") as file:
            fields = _header(path.name, file)
            is_compressed = _is_true(fields, b"CompressedData")
            content = _decompressed(file, wanted) if is_compressed else file.read(wanted)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path.name}: got a truncated or damaged file ({error}); copy or write it again") from error
    if len(content) < wanted:
        raise InputError(
            f"{path.name}: got {len(content)} bytes of voxels, expected {wanted}: the file is truncated or damaged; "
            "copy or write it again"
        )
    is_big_endian = _is_true(fields, b"BinaryDataByteOrderMSB") or _is_true(fields, b"ElementByteOrderMSB")
    stored = dtype.newbyteorder(">" if is_big_endian else "<")
    voxels: NDArray[Any] = np.frombuffer(content, stored, count=math.prod(shape)).reshape(shape)
    return voxels


def _header(name: str, file: IO[bytes]) -> dict[bytes, bytes]:
    """Fields up to the one that says where the voxels are; the file then stands at the first of them."""
    fields: dict[bytes, bytes] = {}
    while line := file.readline(_LONGEST_HEADER_LINE):
        key, _, value = line.partition(b"=")
        fields[key.strip()] = value.strip()
        if key.strip() == b"ElementDataFile":
            break
    if fields.get(b"ElementDataFile", b"").upper() != b"LOCAL" or fields.get(b"HeaderSize", b"0") != b"0":
        raise InputError(
            f"{name}: got voxels in another file or place, expected ElementDataFile = LOCAL and no HeaderSize: the "
            "voxels behind the header"
        )
    if not _is_true(fields, b"BinaryData", default=b"True"):
        raise InputError(f"{name}: got voxels as text (BinaryData = False), expected binary ones")
    return fields


def _is_true(fields: dict[bytes, bytes], key: bytes, *, default: bytes = b"False") -> bool:
    return fields.get(key, default).lower().startswith((b"t", b"1"))


def _decompressed(file: IO[bytes], wanted: int) -> bytearray:
    """What the compressed voxels hold, to the end and its checksum; at most a little more than is wanted."""
    decompressor = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # a zlib or a gzip header
    content = bytearray()
    for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
        content += decompressor.decompress(chunk)
        if decompressor.eof or len(content) > wanted:
            return content
    raise EOFError("the compressed voxels end early")
