"""Whether a file is whole, as far as its format tells.

SimpleITK reads on in silence where a NIfTI file ends too early.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from batch.errors import InputError

NIFTI_SUFFIXES = (".nii", ".nii.gz")

_CHUNK_BYTES = 1 << 20
_NIFTI_HEADER_BYTES = 348
_VOXEL_BYTES = {
    "CHAR": 1,
    "UCHAR": 1,
    "SHORT": 2,
    "USHORT": 2,
    "INT": 4,
    "UINT": 4,
    "LONG_LONG": 8,
    "ULONG_LONG": 8,
    "FLOAT": 4,
    "DOUBLE": 8,
}


def require_whole(path: Path) -> None:
    """Check that a file did not end too early.

    Args:
        path: .mha, .nii, .nii.gz and .json are checked; any other must not be empty.

    Raises:
        InputError: it did.
    """
    if path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(f"{path.name}: cut short or damaged ({error})") from error
    elif path.suffix.lower() == ".mha":
        _require_bytes(path, *_metaimage_bytes(path.read_bytes()))
    elif path.name.lower().endswith(NIFTI_SUFFIXES):
        _require_whole_nifti(path)
    elif not path.stat().st_size:
        raise InputError(f"{path.name}: empty")


def _require_bytes(path: Path, got: int, expected: int) -> None:
    if got != expected:
        raise InputError(f"{path.name}: cut short or damaged, got {got} of {expected} bytes")


def metaimage_fields(header: bytes) -> dict[str, str]:
    """The fields of a MetaImage header, by name; what is no field is passed over."""
    return dict(re.findall(r"^(\w+)[ \t]*[=:][ \t]*(.*?)\s*$", header.decode("latin-1"), flags=re.MULTILINE))


def _metaimage_bytes(content: bytes) -> tuple[int, int]:
    """How many bytes of voxels a .mha has, and how many it should have; what follows the voxels does not count."""
    end = re.search(rb"^ElementDataFile\s*[=:]\s*LOCAL\s*?\n", content, flags=re.MULTILINE)
    fields = metaimage_fields(content[: end.start()] if end else b"")
    kind = _VOXEL_BYTES.get(fields.get("ElementType", "").removeprefix("MET_"), 0)
    size = [int(word) for word in fields.get("DimSize", "").split() if word.isdecimal()]
    channels = fields.get("ElementNumberOfChannels", "1")
    expected = kind * math.prod(size) * (int(channels) if channels.isdecimal() else 0)
    if end is None or not expected:
        return 0, max(1, expected)
    voxels = content[end.end() :]
    if fields.get("CompressedData", "False").lower().startswith("t"):
        stream = zlib.decompressobj()
        try:
            got = len(stream.decompress(voxels))
        except zlib.error:
            return 0, expected
        return (got if stream.eof else min(got, expected - 1)), expected
    return min(len(voxels), expected), expected


def read_nifti_header(path: Path) -> tuple[str, bytes]:
    """The byte order, ``<`` or ``>``, and the bytes of the header.

    Raises:
        InputError: the file is damaged or no NIfTI-1 file.
    """
    with _opened(path) as file:
        header = file.read(_NIFTI_HEADER_BYTES)
    order = next((order for order in "<>" if header[:4] == struct.pack(f"{order}i", _NIFTI_HEADER_BYTES)), None)
    if order is None or len(header) < _NIFTI_HEADER_BYTES:
        raise InputError(f"{path.name}: damaged or no NIfTI-1 file")
    return order, header


@contextmanager
def _opened(path: Path) -> Iterator[gzip.GzipFile | BufferedReader]:
    """The file's content, decompressed; what is wrong with the compression is an InputError."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path.name}: cut short or damaged ({error})") from error


def _require_whole_nifti(path: Path) -> None:
    order, header = read_nifti_header(path)
    got = 0
    with _opened(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            got += len(chunk)
    dimensions, *size = struct.unpack_from(f"{order}8h", header, 40)
    (bits,) = struct.unpack_from(f"{order}h", header, 72)
    (offset,) = struct.unpack_from(f"{order}f", header, 108)
    if not math.isfinite(offset):
        raise InputError(f"{path.name}: damaged, its voxels begin at byte {offset}")
    expected = int(offset) + math.prod(max(1, n) for n in size[: max(0, dimensions)]) * bits // 8
    _require_bytes(path, min(got, expected), expected)
