from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from evaluation.errors import InputError
from evaluation.masks import read_mask

LABELS = np.random.default_rng(1).integers(0, 4, (8, 16, 16), np.uint8)


def write(path: Path, *, compressed: bool) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(LABELS), str(path), useCompression=compressed)
    return path


FORMATS = [("m.mha", False), ("m.mha", True), ("m.nii", False), ("m.nii.gz", True)]


@pytest.mark.parametrize(("name", "compressed"), FORMATS)
def test_takes_whole_files(tmp_path, name, compressed) -> None:
    mask = read_mask(write(tmp_path / name, compressed=compressed), highest_label=3)
    assert np.array_equal(mask.array, LABELS)


@pytest.mark.parametrize(("name", "compressed"), FORMATS)
@pytest.mark.parametrize("share", [0.4, 0.999])
def test_refuses_truncated_files(tmp_path, name, compressed, share, capfd) -> None:
    path = write(tmp_path / name, compressed=compressed)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=f"{name}: got .*truncated or damaged"):
        read_mask(path, highest_label=3)
    assert capfd.readouterr().err == ""  # the last line there is the participant's


@pytest.mark.parametrize(("name", "compressed"), [("m.mha", True), ("m.nii.gz", True)])
def test_refuses_damaged_files(tmp_path, name, compressed) -> None:
    path = write(tmp_path / name, compressed=compressed)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(255 - byte for byte in content[middle : middle + 40])
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: got (a truncated or damaged file|a file that cannot be read)"):
        read_mask(path, highest_label=3)
