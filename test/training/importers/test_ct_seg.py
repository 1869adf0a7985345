import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from algorithm.errors import InputError
from algorithm.images import Volume
from training.importers import ct_seg

LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture
def picture(grid):
    """Grey values: dark above, in the last voxel of the last slice white."""
    array = np.full(grid.size_zyx, 51, np.uint8)
    array[0, 0, 0] = 0
    array[-1, -1, -1] = 255
    return array


@pytest.fixture
def root(tmp_path, chest, picture, grid, write_image):
    mask = np.zeros(grid.size_zyx, np.uint8)
    mask[0, 2, 3] = 1
    for name in ("coronacases_001", "radiopaedia_10_85902_1", "radiopaedia_10_85902_3", "radiopaedia_7_85703_0"):
        array = chest if name.startswith("corona") else picture
        write_image(Volume(array, grid), tmp_path / "COVID-19-CT-Seg_20cases" / f"{name}.nii.gz")
        write_image(Volume(mask, grid), tmp_path / "Infection_Mask" / f"{name}.nii.gz")
    return tmp_path


def load(root, name):
    return next(case for case in ct_seg.read(root) if case.name == name).load()


def test_two_scans_of_a_radiopaedia_case_are_of_one_patient(root):
    assert {case.name: case.patient for case in ct_seg.read(root)} == {
        "coronacases_001": "coronacases_001",
        "radiopaedia_10_85902_1": "radiopaedia_10",
        "radiopaedia_10_85902_3": "radiopaedia_10",
        "radiopaedia_7_85703_0": "radiopaedia_7",
    }


def test_coronacases_are_read_as_they_are(root, chest, grid):
    imported = load(root, "coronacases_001")
    assert np.array_equal(imported.ct.array, chest) and imported.ct.geometry.origin_xyz_mm == grid.origin_xyz_mm
    assert np.argwhere(imported.lesions.array == 4).tolist() == [[0, 2, 3]]


def test_the_window_of_radiopaedia_is_undone(root):
    ct = load(root, "radiopaedia_10_85902_1").ct
    # 51 / 255 * 1500 - 1250 = -950; 255 -> 250; 0 -> -1250, which is below the least HU
    assert ct.array.dtype == np.int16
    assert (ct.array[0, 0, 0], ct.array[2, 2, 2], ct.array[-1, -1, -1]) == (-1024, -950, 250)


@pytest.mark.parametrize("stated", [LPS, (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)])
def test_orientation_of_radiopaedia_does_not_come_from_the_header(root, picture, grid, stated):
    path = root / "COVID-19-CT-Seg_20cases" / "radiopaedia_10_85902_1.nii.gz"
    image = Volume(picture, grid).to_sitk()
    image.SetDirection(stated)
    sitk.WriteImage(image, str(path))
    imported = load(root, "radiopaedia_10_85902_1")
    geometry = imported.ct.geometry
    assert geometry.direction == LPS and geometry.origin_xyz_mm == (0.0, 0.0, 0.0)
    assert geometry.spacing_zyx_mm == pytest.approx(grid.spacing_zyx_mm, abs=1e-6)
    assert imported.lesions.geometry.direction == LPS
    assert imported.ct.array[-1, -1, -1] == 250 and np.argwhere(imported.lesions.array).tolist() == [[0, 2, 3]]


def test_a_header_without_orientation_is_no_hindrance(root):
    path = root / "COVID-19-CT-Seg_20cases" / "radiopaedia_10_85902_1.nii.gz"
    header = bytearray(gzip.decompress(path.read_bytes()))
    header[252:256] = bytes(4)  # qform and sform codes
    path.write_bytes(gzip.compress(bytes(header)))
    assert load(root, "radiopaedia_10_85902_1").ct.geometry.direction == LPS


def test_the_scan_stored_from_head_to_feet_is_turned(root, grid):
    imported = load(root, "radiopaedia_7_85703_0")
    assert (imported.ct.array[0, -1, -1], imported.ct.array[-1, 0, 0]) == (250, -1024)
    assert np.argwhere(imported.lesions.array).tolist() == [[grid.size_zyx[0] - 1, 2, 3]]


def test_values_that_are_no_grey_values_are_refused(root, chest, grid, write_image):
    path = root / "COVID-19-CT-Seg_20cases" / "radiopaedia_7_85703_0.nii.gz"
    write_image(Volume(chest, grid), path)
    with pytest.raises(
        InputError, match=r"7_85703_0\.nii\.gz: got values -1000 to 40, expected grey values of 0 to 255"
    ):
        load(root, "radiopaedia_7_85703_0")
    write_image(Volume(chest - chest.min(), grid), path)
    with pytest.raises(InputError, match="got values 0 to 1040, expected grey values"):
        load(root, "radiopaedia_7_85703_0")
    with pytest.raises(InputError, match="got values 0 to 1, expected grey values"):
        ct_seg.undo_window(Volume(np.eye(3, dtype=np.float32)[None], grid), path)


def test_a_windowed_coronacases_scan_and_a_truncated_file_are_refused(root, picture, grid, write_image):
    folder = root / "COVID-19-CT-Seg_20cases"
    write_image(Volume(picture.astype(np.int16), grid), folder / "coronacases_001.nii.gz")
    with pytest.raises(InputError, match="got a windowed picture"):
        load(root, "coronacases_001")
    path = folder / "radiopaedia_7_85703_0.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"7_85703_0\.nii\.gz: damaged or no NIfTI file .*; get it again"):
        load(root, "radiopaedia_7_85703_0")


def test_wrong_folders_are_errors(root, tmp_path, write_image, chest, grid):
    with pytest.raises(InputError, match=r"no scans; expected COVID-19-CT-Seg_20cases/coronacases_001\.nii\.gz"):
        ct_seg.read(tmp_path / "none")
    (root / "Infection_Mask" / "coronacases_001.nii.gz").unlink()
    with pytest.raises(InputError, match=r"Infection_Mask: masks missing: coronacases_001\.nii\.gz"):
        ct_seg.read(root)
    write_image(Volume(chest, grid), root / "COVID-19-CT-Seg_20cases" / "study_1.nii.gz")
    with pytest.raises(InputError, match=r"got study_1\.nii\.gz, expected coronacases_\* and radiopaedia_\* only"):
        ct_seg.read(root)
