import numpy as np
import pytest

from algorithm.errors import InputError
from algorithm.images import Volume
from training.importers import medseg


def test_a_lesion_is_mixed_by_its_share_of_consolidation_and_effusion_is_dropped(grid):
    mask = np.zeros(grid.size_zyx, np.float32)
    mask[0, 0, 0:10] = [1] * 8 + [2] * 2  # 20 % consolidation: mixed
    mask[0, 3, 0:10] = [1] * 9 + [2]  # 10 %: ground-glass
    mask[0, 6, 0:10] = [1] * 3 + [2] * 7  # 70 %: consolidation
    mask[3, 0, 0] = mask[4, 1, 1] = 1  # two voxels that touch at a corner
    mask[5, 2, 2] = 2  # and a third: 33 %, mixed
    mask[3, 8, 0:5] = 3
    mask[5, 10, 10] = 2  # a single voxel is a lesion too
    lesions = medseg.subtypes_of_lesions(Volume(mask, grid))
    expected = np.zeros(grid.size_zyx, np.uint8)
    expected[0, 0, 0:10], expected[0, 3, 0:10], expected[0, 6, 0:10] = 3, 1, 2
    expected[3, 0, 0] = expected[4, 1, 1] = expected[5, 2, 2] = 3
    expected[5, 10, 10] = 2
    assert lesions.geometry == grid and lesions.array.dtype == np.uint8
    assert np.array_equal(lesions.array, expected)


def test_scans_and_masks_by_number(tmp_path, chest, grid, write_image):
    mask = np.zeros(grid.size_zyx, np.uint8)
    mask[2, 5, 5] = 2
    write_image(Volume(chest, grid), tmp_path / "rp_im" / "7.nii.gz")
    with pytest.raises(InputError, match=r"rp_msk: masks missing: 7\.nii\.gz; expected one for each scan"):
        medseg.read(tmp_path)
    write_image(Volume(mask, grid), tmp_path / "rp_msk" / "7.nii.gz")
    (case,) = medseg.read(tmp_path)
    imported = case.load()
    assert case.name == "medseg_7" and np.array_equal(imported.ct.array, chest)
    assert np.array_equal(imported.lesions.array, mask) and imported.scores == {}


def test_other_labels_and_an_empty_folder_are_errors(grid, tmp_path):
    with pytest.raises(InputError, match="holds labels 4, expected 0 and 1, 2, 3 only"):
        medseg.subtypes_of_lesions(Volume(np.full(grid.size_zyx, 4, np.uint8), grid))
    with pytest.raises(InputError, match=r"no scans; expected rp_im/1\.nii\.gz"):
        medseg.read(tmp_path)
