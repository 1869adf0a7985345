import numpy as np
import pytest

from algorithm.errors import InputError
from algorithm.images import Geometry, Volume
from training.importers.lobes import (
    LOBE_MAPS,
    LobeFiles,
    cut_lobes,
    derive_scores,
    renumber_lobes,
    require_plausible_lobes,
)

NAMES = {1: "LUL", 2: "LLL", 3: "RUL", 4: "RLL", 5: "RML"}  # ours
TOOLS = {
    "ours": {1: "LUL", 2: "LLL", 3: "RUL", 4: "RLL", 5: "RML"},
    "lungmask": {1: "LUL", 2: "LLL", 3: "RUL", 4: "RML", 5: "RLL"},
    "totalsegmentator": {10: "LUL", 11: "LLL", 12: "RUL", 13: "RML", 14: "RLL"},
}


def lesions_in(lobes, counts):
    """A mask with so many voxels in each lobe."""
    mask = np.zeros(lobes.array.shape, np.uint8)
    for label, count in counts.items():
        mask.ravel()[np.flatnonzero(lobes.array == label)[:count]] = 4
    return lobes.with_array(mask)


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_every_tool_s_label_becomes_ours_of_the_same_name(tool):
    assert {theirs: NAMES[ours] for theirs, ours in LOBE_MAPS[tool].items()} == TOOLS[tool]


def test_renumbering_lungmask_swaps_the_right_middle_and_lower_lobe(grid):
    array = np.zeros(grid.size_zyx, np.int16)
    array[0, 0, :6] = [0, 1, 2, 3, 4, 5]
    renumbered = renumber_lobes(Volume(array, grid), "lungmask")
    assert renumbered.array.dtype == np.uint8 and renumbered.geometry == grid
    assert renumbered.array[0, 0, :6].tolist() == [0, 1, 2, 3, 5, 4]


def test_other_organs_of_totalsegmentator_are_background_and_unknown_labels_of_others_an_error(grid):
    array = np.zeros(grid.size_zyx, np.uint8)
    array[0, 0, :4] = [1, 10, 14, 51]
    assert renumber_lobes(Volume(array, grid), "totalsegmentator").array[0, 0, :4].tolist() == [0, 1, 4, 0]
    with pytest.raises(InputError, match=r"got lobe labels 10, 14, 51, expected 1 to 5 \(lungmask\)"):
        renumber_lobes(Volume(array, grid), "lungmask")


def test_totalsegmentators_first_version_is_not_taken_for_the_second(grid):
    """Its left lobes, 13 and 14, are the second's right middle and right lower lobe."""
    array = np.zeros(grid.size_zyx, np.uint8)
    array[0, 0, :5] = [13, 14, 15, 16, 17]
    with pytest.raises(InputError, match="as of TotalSegmentator version 1"):
        renumber_lobes(Volume(array, grid), "totalsegmentator")


def test_lobes_in_their_places_pass(five_lobes):
    require_plausible_lobes(five_lobes)
    only_left = five_lobes.with_array(np.where(five_lobes.array > 2, 0, five_lobes.array))
    require_plausible_lobes(only_left)
    require_plausible_lobes(five_lobes.with_array(np.zeros_like(five_lobes.array)))


def test_a_mirrored_scan_and_swapped_numberings_are_found(five_lobes):
    mirrored = five_lobes.with_array(five_lobes.array[:, :, ::-1].copy())
    with pytest.raises(InputError, match="left upper lobe and left lower lobe is not left of that of right upper"):
        require_plausible_lobes(mirrored)
    swapped = np.array([0, 1, 2, 3, 5, 4], np.uint8)[five_lobes.array]
    with pytest.raises(InputError, match="right lower lobe is not behind that of right middle lobe.*--lobe-labels"):
        require_plausible_lobes(five_lobes.with_array(swapped))


def test_orientation_comes_from_the_header_not_from_the_array(five_lobes):
    turned = Geometry(  # x runs to the right and y to the front, as NIfTI files often have it
        five_lobes.geometry.size_zyx, (2.0, 0.8, 0.7), (0.0, 0.0, 0.0), (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
    )
    require_plausible_lobes(Volume(five_lobes.array[:, ::-1, ::-1].copy(), turned))
    with pytest.raises(InputError, match="not left of"):
        require_plausible_lobes(Volume(five_lobes.array, turned))


def test_an_upper_lobe_below_the_lower_one_is_found(grid):
    array = np.zeros(grid.size_zyx, np.uint8)
    array[1:3, 4:8, 8:12], array[3:5, 4:8, 8:12] = 1, 2
    with pytest.raises(InputError, match="left upper lobe is not above that of left lower lobe"):
        require_plausible_lobes(Volume(array, grid))


def test_a_lobe_is_cut_where_a_face_of_the_scan_shows_more_than_a_fifth_of_its_largest_section(five_lobes):
    array = five_lobes.array.copy()  # largest axial section of each lobe: 6 x 2 = 12 voxels
    assert cut_lobes(array) == []
    array[-1, 2:4, 10] = 1  # 2 of 12 voxels in the uppermost slice: a tip
    assert cut_lobes(array) == []
    array[-1, 2:5, 10] = 1  # 3 of 12
    array[0, 2:8, 7:9] = 5  # its whole section in the lowest slice
    assert [lobe.key for lobe in cut_lobes(array)] == ["lul", "rml"]


def test_a_lobe_that_leaves_the_scan_sideways_is_cut(five_lobes):
    array = np.roll(five_lobes.array, 1, axis=2)  # the left lower lobe now ends in the last column
    assert [lobe.key for lobe in cut_lobes(array)] == ["lll"]


def test_scores_of_percentages_computed_by_hand(five_lobes):
    # 48 voxels a lobe: 0 -> 0; 1 = 2.1 % -> 1; 3 = 6.25 % -> 2; 12 = 25 % -> 3; 36 = 75 % -> 5
    lesions = lesions_in(five_lobes, {1: 0, 2: 1, 3: 3, 4: 12, 5: 36})
    assert derive_scores(lesions, five_lobes) == {1: 0, 2: 1, 3: 2, 4: 3, 5: 5}
    assert derive_scores(lesions_in(five_lobes, {2: 24}), five_lobes)[2] == 4  # 50 %


def test_less_than_one_percent_scores_1_in_training(grid):
    lobes = np.zeros((30, 30, 30), np.uint8)
    lobes[5:25, 5:25, 5:25] = 1
    volume = Volume(lobes, Geometry((30, 30, 30), (1.0,) * 3, (0.0,) * 3, grid.direction))
    assert derive_scores(lesions_in(volume, {1: 8}), volume) == {1: 1}  # 8 of 8000: 0.1 %


def test_absent_and_cut_lobes_get_no_score(five_lobes):
    array = np.where(five_lobes.array == 5, 0, five_lobes.array)
    array[0, 2:8, 13:15] = 2
    assert derive_scores(five_lobes.with_array(np.zeros_like(array)), five_lobes.with_array(array)) == {
        1: 0,
        3: 0,
        4: 0,
    }


def test_lesions_outside_the_lobes_are_an_error(five_lobes):
    lesions = lesions_in(five_lobes, {2: 4})
    lesions.array[0, 0, :5] = 4
    with pytest.raises(InputError, match="got 44 % of the lesions inside the lobes, expected at least 50 %"):
        derive_scores(lesions, five_lobes)


def test_lobe_files_are_found_by_the_case_s_name(five_lobes, write_image, tmp_path):
    files = LobeFiles(tmp_path, "ours")
    with pytest.raises(InputError, match=r"a: got 0 lobe masks .*a\.\*, expected one"):
        files.find("a")
    write_image(five_lobes, tmp_path / "a.nii.gz")
    write_image(five_lobes, tmp_path / "ab.mha")
    assert files.find("a") == tmp_path / "a.nii.gz"
    assert np.array_equal(files.read("a").array, five_lobes.array)
    write_image(five_lobes, tmp_path / "a.mha")
    with pytest.raises(InputError, match="a: got 2 lobe masks"):
        files.find("a")
