from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from evaluation.errors import InputError
from evaluation.masks import read_mask

LABELS = np.random.default_rng(1).integers(0, 4, (8, 16, 16), np.uint8)


def write(path: Path, *, compressed: bool, labels: np.ndarray = LABELS) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(path), useCompression=compressed)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_takes_whole_files_of_every_type(tmp_path, compressed, dtype) -> None:
    path = write(tmp_path / "m.mha", compressed=compressed, labels=LABELS.astype(dtype))
    mask = read_mask(path, highest_label=3)
    assert (mask.array.dtype, mask.grid.size_zyx) == (np.uint8, (8, 16, 16))
    assert np.array_equal(mask.array, LABELS)


def test_takes_the_other_order_of_bytes(tmp_path) -> None:
    header = write(tmp_path / "m.mha", compressed=False, labels=LABELS.astype(np.int16)).read_bytes()[
        : -2 * LABELS.size
    ]
    text = header.replace(b"BinaryDataByteOrderMSB = False", b"BinaryDataByteOrderMSB = True")
    (tmp_path / "m.mha").write_bytes(text + LABELS.astype(">i2").tobytes())
    assert np.array_equal(read_mask(tmp_path / "m.mha", highest_label=3).array, LABELS)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("share", [0.4, 0.999])
def test_refuses_truncated_files(tmp_path, compressed, share, capfd) -> None:
    path = write(tmp_path / "m.mha", compressed=compressed)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="m.mha: got .*truncated or damaged"):
        read_mask(path, highest_label=3)
    assert capfd.readouterr().err == ""  # the last line there is the participant's


def test_refuses_damaged_files(tmp_path) -> None:
    path = write(tmp_path / "m.mha", compressed=True)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(255 - byte for byte in content[middle : middle + 40])
    path.write_bytes(content)
    with pytest.raises(InputError, match="m.mha: got a truncated or damaged file"):
        read_mask(path, highest_label=3)


HERE = b"ElementDataFile = LOCAL\n"
THERE = b"ElementDataFile = secret.mha\n"


@pytest.mark.parametrize(
    "end",
    [
        b"HeaderSize = -1\n" + THERE,
        THERE,
        b"HeaderSize = -1\n" + HERE,
        b"HeaderSize = 9\n" + HERE,
        b"ElementDataFile = LIST\nsecret.mha\n",
        b"ElementDataFile = secret%d.mha 1 8 1\n",
        b"",
    ],
)
def test_refuses_voxels_that_are_elsewhere(tmp_path, end, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # a name without folders is looked for here or beside the file
    write(tmp_path / "secret.mha", compressed=False)
    path = write(tmp_path / "m.mha", compressed=False)
    path.write_bytes(path.read_bytes().replace(HERE, end))
    with pytest.raises(InputError, match="m.mha: got (voxels in another file or place|a file that cannot be read)"):
        read_mask(path, highest_label=3)


@pytest.mark.parametrize(
    "start",
    [
        b"ElementDataFile : secret.mha\n",
        b"x:" + HERE + THERE,
        b"x\n" + HERE + THERE,
        b"ElementDataFile\0 = secret.mha\n",
        b" " + THERE,
        b"Comment = \n" + HERE + THERE,
        b"Offset = 0 0\n" + HERE + THERE,
        b"Comment = x\r" + THERE,
    ],
)
@pytest.mark.parametrize("size", [b"", b"HeaderSize = -1\n", b"HeaderSize\0 = -1\n"])
def test_reads_nothing_else_however_the_header_is_understood(tmp_path, start, size, monkeypatch) -> None:
    # SimpleITK takes some of these lines for others than they are here; the file's own voxels are all zeros.
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "secret.mha", compressed=False)
    path = write(tmp_path / "m.mha", compressed=False, labels=np.zeros_like(LABELS))
    path.write_bytes(path.read_bytes().replace(HERE, size + start + HERE))
    try:
        mask = read_mask(path, highest_label=255)
    except InputError:
        return
    assert not np.array_equal(mask.array, LABELS)


def test_refuses_voxels_as_text(tmp_path) -> None:
    path = write(tmp_path / "m.mha", compressed=False)
    path.write_bytes(path.read_bytes().replace(b"BinaryData = True", b"BinaryData = False"))
    with pytest.raises(InputError, match=r"m.mha: got voxels as text \(BinaryData = False\), expected binary ones"):
        read_mask(path, highest_label=3)
