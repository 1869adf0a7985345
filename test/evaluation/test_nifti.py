from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from evaluation.errors import InputError
from evaluation.masks import read_mask

LABELS = np.random.default_rng(1).integers(0, 4, (8, 16, 16), np.uint8)
NAMES = ["m.nii", "m.nii.gz"]


def write(path: Path, labels: np.ndarray = LABELS) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(path))
    return path


def changed(path: Path, code: str, offset: int, *values: object) -> Path:
    """The same file with other values in its header."""
    content = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    struct.pack_into(f"<{code}", content, offset, *values)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_takes_whole_files(tmp_path, name, dtype) -> None:
    mask = read_mask(write(tmp_path / name, LABELS.astype(dtype)), highest_label=3)
    assert mask.array.dtype == np.uint8
    assert np.array_equal(mask.array, LABELS)


@pytest.mark.parametrize("name", NAMES)
def test_takes_a_scale(tmp_path, name) -> None:
    # SimpleITK then has eight bytes a voxel where the file has one.
    mask = read_mask(changed(write(tmp_path / name), "2f", 112, 2.0, 1.0), highest_label=7)
    assert np.array_equal(mask.array, 2 * LABELS + 1)


def test_takes_the_other_order_of_bytes(tmp_path) -> None:
    path = write(tmp_path / "m.nii")
    content = bytearray(path.read_bytes())
    fields = {0: "i", 40: "8h", 68: "hhhh", 76: "8f", 108: "3f", 252: "hh", 256: "18f"}
    for offset, code in fields.items():
        struct.pack_into(f">{code}", content, offset, *struct.unpack_from(f"<{code}", content, offset))
    path.write_bytes(content)
    assert np.array_equal(read_mask(path, highest_label=3).array, LABELS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.4, 0.999])
def test_refuses_truncated_files(tmp_path, name, share, capfd) -> None:
    path = write(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=f"{name}: got .*truncated or damaged"):
        read_mask(path, highest_label=3)
    assert capfd.readouterr().err == ""


def test_refuses_damaged_files(tmp_path) -> None:
    path = write(tmp_path / "m.nii.gz")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(255 - byte for byte in content[middle : middle + 40])
    path.write_bytes(content)
    with pytest.raises(InputError, match="m.nii.gz: got a (truncated or damaged file|file that cannot be read)"):
        read_mask(path, highest_label=3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("code", "offset", "values", "message"),
    [
        ("i", 0, (540,), "got a NIfTI-2 file, expected NIfTI-1"),
        ("i", 0, (17,), r"got no header of a NIfTI-1 file with its own voxels \(n\+1\)"),
        ("4s", 344, (b"ni1\0",), r"got no header of a NIfTI-1 file with its own voxels \(n\+1\)"),
        ("f", 108, (float("nan"),), "got size .* voxels from byte nan on"),
        ("f", 108, (float("inf"),), "got size .* voxels from byte inf on"),
        ("f", 108, (0.0,), "got size .* voxels from byte 0 on"),
        ("h", 72, (0,), "got size .* 0 bits a voxel"),
        ("h", 44, (-16,), r"got size \[16, -16, 8\]"),
        ("h", 40, (-3,), "got size"),
    ],
)
def test_refuses_other_headers(tmp_path, name, code, offset, values, message) -> None:
    path = changed(write(tmp_path / name), code, offset, *values)
    with pytest.raises(InputError, match=f"{name}: {message}"):
        read_mask(path, highest_label=3)


def test_a_sheared_grid_is_told(tmp_path) -> None:
    path = changed(write(tmp_path / "m.nii"), "2h", 252, 0, 1)
    changed(path, "12f", 280, 1, 0.3, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    with pytest.raises(InputError, match="m.nii: got .*, expected a whole NIfTI file whose axes are at right angles"):
        read_mask(path, highest_label=3)
