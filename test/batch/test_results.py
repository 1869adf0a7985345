from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from algorithm.sockets import LESIONS, SEVERITY
from batch.errors import InputError
from batch.results import LESIONS_SLUG, SEVERITY_SLUG, finished_here, read_case_file, require_whole, write_case_file


def test_sockets_are_those_of_the_algorithm() -> None:
    assert (LESIONS_SLUG, SEVERITY_SLUG) == (LESIONS.slug, SEVERITY.slug)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a" / "images").mkdir(parents=True)
    (tmp_path / "a" / "images" / "x.mha").write_text("x")
    (tmp_path / "a" / "severity.json").write_text("{}")
    return tmp_path / "a"


def test_case_file(folder) -> None:
    outputs = write_case_file(folder, computed="job-1", inputs={"ct-image": "0"})
    assert list(outputs) == ["images/x.mha", "severity.json"]
    case_file = read_case_file(folder)
    assert (case_file.computed, case_file.inputs, case_file.outputs) == ("job-1", {"ct-image": "0"}, outputs)
    assert finished_here(folder, {"ct-image": "0"}) is None


def test_finished_here(folder) -> None:
    outputs = write_case_file(folder, computed="here", inputs={"ct-image": "0"})
    assert finished_here(folder, {"ct-image": "0"}) == outputs
    assert finished_here(folder, {"ct-image": "1"}) is None
    (folder / "severity.json").write_text("{ }")
    assert finished_here(folder, {"ct-image": "0"}) is None
    (folder / "severity.json").unlink()
    assert finished_here(folder, {"ct-image": "0"}) is None


@pytest.mark.parametrize("text", ["{", "{}", '{"computed": "here", "inputs": {}, "outputs": {}, "more": 1}'])
def test_a_damaged_case_file_says_nothing(folder, text) -> None:
    (folder / "case.json").write_text(text)
    assert read_case_file(folder) is None


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
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
