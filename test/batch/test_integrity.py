from __future__ import annotations

import gzip
import json
import struct
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from batch.errors import InputError
from batch.integrity import require_whole


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64, np.float32])
def test_images_cut_anywhere_are_found(tmp_path, compressed, kind) -> None:
    path = tmp_path / "x.mha"
    array = np.arange(24, dtype=kind).reshape(2, 3, 4)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=compressed)
    require_whole(path)
    content = path.read_bytes()
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"x\.mha: cut short or damaged"):
            require_whole(path)


@pytest.mark.parametrize("compressed", [True, False])
def test_what_follows_the_voxels_is_no_damage(tmp_path, compressed) -> None:
    path = tmp_path / "x.mha"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), str(path), useCompression=compressed)
    path.write_bytes(path.read_bytes() + b"\n")
    require_whole(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_files_cut_anywhere_are_found(tmp_path, suffix) -> None:
    path = tmp_path / f"x{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)), str(path))
    require_whole(path)
    content = path.read_bytes()
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut short or damaged|no NIfTI-1 file"):
            require_whole(path)


@pytest.mark.parametrize(
    ("offset", "field", "message"),
    [
        (0, b"NRRD", "damaged or no NIfTI-1 file"),
        (108, struct.pack("<f", np.nan), "damaged, its voxels begin at byte nan"),
    ],
)
def test_damaged_nifti_headers_are_refused(tmp_path, offset, field, message) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), str(tmp_path / "x.nii"))
    content = bytearray((tmp_path / "x.nii").read_bytes())
    content[offset : offset + len(field)] = field
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=message):
        require_whole(tmp_path / "x.nii.gz")


def test_metaimage_fields_may_be_set_with_colons_or_to_nothing(tmp_path) -> None:
    head = b"Comment: \nDimSize: 2 2 2\nElementType: MET_UCHAR\nElementDataFile: LOCAL\n"
    (tmp_path / "x.mha").write_bytes(head + bytes(8))
    require_whole(tmp_path / "x.mha")
    (tmp_path / "x.mha").write_bytes(head + bytes(7))
    with pytest.raises(InputError, match="got 7 of 8 bytes"):
        require_whole(tmp_path / "x.mha")


def test_damaged_compression_is_found(tmp_path) -> None:
    head = b"DimSize = 2 2 2\nElementType = MET_UCHAR\nCompressedData = True\nElementDataFile = LOCAL\n"
    (tmp_path / "x.mha").write_bytes(head + zlib.compress(bytes(8)))
    require_whole(tmp_path / "x.mha")
    for voxels in (b"not compressed", zlib.compress(bytes(7)), zlib.compress(bytes(9))):
        (tmp_path / "x.mha").write_bytes(head + voxels)
        with pytest.raises(InputError, match="of 8 bytes"):
            require_whole(tmp_path / "x.mha")


def test_other_files(tmp_path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"a": 1}))
    require_whole(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"a": 1')
    with pytest.raises(InputError, match=r"x\.json: cut short or damaged"):
        require_whole(tmp_path / "x.json")
    (tmp_path / "x.tif").write_text("anything")
    require_whole(tmp_path / "x.tif")
    (tmp_path / "x.tif").write_text("")
    with pytest.raises(InputError, match=r"x\.tif: empty"):
        require_whole(tmp_path / "x.tif")
