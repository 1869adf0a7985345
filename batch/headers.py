"""Headers that leave the geometry open or contradict themselves.

SimpleITK decides in silence, and the file that is sent would not show it: the algorithm refuses these, and so do we.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from batch.errors import InputError
from batch.integrity import NIFTI_SUFFIXES, metaimage_fields, read_nifti_header

_HEADER_BYTES = 1 << 20
_SPACING = ("ElementSpacing", "ElementSize")
_NUMBERS = ("Offset", "Position", "Origin", *_SPACING, "TransformMatrix", "Rotation", "Orientation")
_SAME_SPACING = 1e-3
_SAME_DIRECTION = 1e-2


def require_geometry(path: Path) -> None:
    """Check that a header states where the voxels lie, and states it once.

    Args:
        path: .mha, .nii or .nii.gz.

    Raises:
        InputError: spacing or orientation are not stated, are no finite numbers, or a NIfTI file states two of them.
    """
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        _require_one_orientation(path)
    else:
        _require_stated_spacing(path)


def _require_stated_spacing(path: Path) -> None:
    with path.open("rb") as file:
        fields = metaimage_fields(file.read(_HEADER_BYTES).partition(b"ElementDataFile")[0])
    if not fields.keys() & set(_SPACING):
        raise InputError(f"{path.name}: states no spacing, expected the field {_SPACING[0]!r}")
    for key in _NUMBERS:
        if not all(_is_finite(word) for word in fields.get(key, "").split()):
            raise InputError(f"{path.name}: got {key} = {fields[key]!r}, expected finite numbers")


def _require_one_orientation(path: Path) -> None:
    order, header = read_nifti_header(path)
    (handedness, *spacing) = struct.unpack_from(f"{order}4f", header, 76)
    if not all(math.isfinite(value) and value > 0 for value in spacing):
        raise InputError(f"{path.name}: got the spacing {tuple(spacing)}, expected millimetres")
    has_qform, has_sform = (code > 0 for code in struct.unpack_from(f"{order}2h", header, 252))
    if not has_qform and not has_sform:
        raise InputError(f"{path.name}: states no orientation (qform and sform codes are 0)")
    if not has_sform:
        return
    axes = np.reshape(struct.unpack_from(f"{order}12f", header, 280), (3, 4))[:, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.allclose(lengths, spacing, rtol=_SAME_SPACING, atol=0.0):
        raise InputError(f"{path.name}: got spacing {tuple(spacing)} in pixdim but {tuple(lengths.tolist())} in sform")
    rotation = _rotation(struct.unpack_from(f"{order}3f", header, 256)) * (1.0, 1.0, -1.0 if handedness < 0 else 1.0)
    if has_qform and not np.allclose(axes / lengths, rotation, rtol=0.0, atol=_SAME_DIRECTION):
        raise InputError(f"{path.name}: got another orientation in sform than in qform, expected the same")


def _rotation(quaternion: Sequence[float]) -> NDArray[np.float64]:
    """The rotation (3, 3) of a unit quaternion by its last three parts."""
    b, c, d = quaternion
    a = math.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _is_finite(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False
