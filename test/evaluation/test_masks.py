from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from evaluation.errors import InputError
from evaluation.masks import Grid, GridMismatchError, read_mask

ARRAY = np.arange(24, dtype=np.int16).reshape(2, 3, 4) % 4
GRID = Grid((10, 20, 30), (2.0, 0.5, 0.5), (1.0, 2.0, 3.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def test_reads_labels_and_grid(tmp_path, write_mask) -> None:
    mask = read_mask(write_mask(tmp_path / "m.mha", ARRAY), highest_label=3)
    assert mask.array.dtype == np.uint8
    assert np.array_equal(mask.array, ARRAY)
    assert mask.grid.size_zyx == (2, 3, 4)
    assert mask.grid.spacing_zyx_mm == pytest.approx((1.5, 0.8, 0.7))
    assert mask.grid.origin_xyz_mm == (-12.5, 7.25, -300.0)


def test_corners_agree_with_the_image_library() -> None:
    angle = np.deg2rad(20)
    direction = (np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, -1)
    image = sitk.Image([4, 3, 2], sitk.sitkUInt8)
    image.SetSpacing((0.7, 0.8, 1.5))
    image.SetOrigin((5, 6, 7))
    image.SetDirection(direction)
    corners = Grid((2, 3, 4), (1.5, 0.8, 0.7), (5, 6, 7), direction).corners_mm()
    expected = [
        image.TransformContinuousIndexToPhysicalPoint((x, y, z))
        for x in (-0.5, 3.5)
        for y in (-0.5, 2.5)
        for z in (-0.5, 1.5)
    ]
    assert corners == pytest.approx(np.array(expected))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"origin_xyz_mm": (1.0, 2.0, 3.009)}, True),
        ({"origin_xyz_mm": (1.0, 2.0, 3.011)}, False),
        ({"spacing_zyx_mm": (2.0, 0.5, 0.5001)}, True),
        ({"spacing_zyx_mm": (2.0, 0.5, 0.501)}, False),
        ({"direction": (-1, 0, 0, 0, 1, 0, 0, 0, 1)}, False),
        ({"size_zyx": (10, 20, 31)}, False),
    ],
)
def test_grids_match_within_a_hundredth_of_a_millimetre(change, expected) -> None:
    other = Grid(**{**vars(GRID), **change})
    assert GRID.matches(other) is expected
    assert other.matches(GRID) is expected


def test_another_grid_is_refused_and_both_are_shown(tmp_path, write_mask) -> None:
    grid = read_mask(write_mask(tmp_path / "a.mha", ARRAY), highest_label=3).grid
    shifted = write_mask(tmp_path / "b.mha", ARRAY, shift_mm=1.0)
    with pytest.raises(
        GridMismatchError, match=r"b.mha: got .*\(-11.5, 8.25, -299\).*expected .*\(-12.5, 7.25, -300\)"
    ):
        read_mask(shifted, highest_label=3, grid=grid)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (ARRAY + np.float32(0.25), "got float32 voxels that are not whole numbers, expected labels 0 to 3"),
        (np.full((2, 3, 4), np.nan), "got float64 voxels that are not whole numbers"),
        (np.full((2, 3, 4), np.inf), "got labels inf to inf, expected 0 to 3"),
        (ARRAY.astype(np.float64) + 1, "got labels 1 to 4, expected 0 to 3"),
        (ARRAY[0], "got 2 dimensions and 1 channels, expected 3 and 1"),
        (ARRAY + 1, "got labels 1 to 4, expected 0 to 3"),
        (ARRAY - 1, "got labels -1 to 2, expected 0 to 3"),
    ],
)
def test_refuses_what_is_no_label_mask(tmp_path, write_mask, array, message) -> None:
    with pytest.raises(InputError, match=message):
        read_mask(write_mask(tmp_path / "m.mha", array), highest_label=3)


def test_refuses_colours(tmp_path) -> None:
    sitk.WriteImage(sitk.Image([4, 3, 2], sitk.sitkVectorUInt8, 3), str(tmp_path / "m.mha"))
    with pytest.raises(InputError, match="m.mha: got 3 dimensions and 3 channels, expected 3 and 1"):
        read_mask(tmp_path / "m.mha", highest_label=3)


def test_refuses_missing_and_other_files(tmp_path) -> None:
    with pytest.raises(InputError, match="m.mha: got no such file"):
        read_mask(tmp_path / "m.mha", highest_label=3)
    (tmp_path / "m.mha").write_text("not an image")
    with pytest.raises(InputError, match="m.mha: got a file that cannot be read"):
        read_mask(tmp_path / "m.mha", highest_label=3)
    (tmp_path / "m.nrrd").write_text("")
    with pytest.raises(InputError, match="m.nrrd: got another kind of file, expected .mha, .nii.gz, .nii"):
        read_mask(tmp_path / "m.nrrd", highest_label=3)


def test_resamples_to_the_nearest_label_where_asked(tmp_path, write_mask) -> None:
    coarse = write_mask(tmp_path / "coarse.mha", ARRAY, spacing=(2.0, 2.0, 2.0))
    grid = read_mask(coarse, highest_label=3).grid
    # The same box cut into halves of every edge: centres of the eight new voxels lie half a mm from the old one's.
    fine = Grid((4, 6, 8), (1.0, 1.0, 1.0), tuple(value - 0.5 for value in grid.origin_xyz_mm), grid.direction)
    with pytest.raises(GridMismatchError):
        read_mask(coarse, highest_label=3, grid=fine)
    resampled = read_mask(coarse, highest_label=3, grid=fine, resample=True)
    assert np.array_equal(resampled.array, ARRAY.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2))
    assert (resampled.grid, resampled.is_resampled) == (fine, True)
    assert not read_mask(coarse, highest_label=3, grid=grid, resample=True).is_resampled


@pytest.mark.parametrize("array", [ARRAY, np.zeros_like(ARRAY)], ids=["labels", "empty"])
def test_does_not_resample_a_mask_of_elsewhere(tmp_path, write_mask, array) -> None:
    grid = read_mask(write_mask(tmp_path / "a.mha", ARRAY), highest_label=3).grid
    far = write_mask(tmp_path / "b.mha", array, shift_mm=500.0)
    with pytest.raises(GridMismatchError, match=r"b.mha: got .*\(487.5, 507.25, 200\)"):
        read_mask(far, highest_label=3, grid=grid, resample=True)


def test_a_voxel_that_falls_between_those_of_the_reference_vanishes(tmp_path, write_mask) -> None:
    fine = np.zeros((2, 3, 4), dtype=np.uint8)
    fine[0, 0, 1] = 1
    path = write_mask(tmp_path / "fine.mha", fine, spacing=(0.5, 0.5, 0.5))
    grid = read_mask(path, highest_label=3).grid
    coarse = Grid((1, 1, 1), (2.0, 2.0, 2.0), grid.origin_xyz_mm, grid.direction)
    resampled = read_mask(path, highest_label=3, grid=coarse, resample=True)
    assert (resampled.array.tolist(), resampled.is_resampled) == ([[[0]]], True)


TURNED = (np.sqrt(0.5), -np.sqrt(0.5), 0, np.sqrt(0.5), np.sqrt(0.5), 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("origin", "direction", "expected"),
    [
        ((9.9, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1), True),
        ((10.1, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1), False),
        ((0, 0, -10.1), (1, 0, 0, 0, 1, 0, 0, 0, 1), False),
        # A square of 10 mm on its corner, centre 14.14 / 2 from it: along x its corner reaches 5 + 7.07 mm.
        ((12.0, 0, 0), TURNED, True),
        ((12.2, 0, 0), TURNED, False),
        # Along the diagonal its side lies 5 mm from its centre and our corner 7.07 mm from ours, so they part at
        # 12.07 mm, 8.54 along each axis, where along x and y both still overlap.
        ((8.4, 8.4, 0), TURNED, True),
        ((8.7, 8.7, 0), TURNED, False),
    ],
)
def test_whether_boxes_overlap(origin, direction, expected) -> None:
    # One voxel of 10 mm each: its centre is the origin.
    here = Grid((1, 1, 1), (10, 10, 10), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    there = Grid((1, 1, 1), (10, 10, 10), origin, direction)
    assert here.overlaps(there) is expected
    assert there.overlaps(here) is expected


def test_the_share_of_a_mask_that_a_grid_covers() -> None:
    whole = Grid((200, 10, 10), (1.0, 2.0, 2.0), (5.0, 5.0, 5.0), tuple(np.eye(3).ravel()))
    where = np.zeros(whole.size_zyx, dtype=bool)
    where[100:, 2:8] = True
    upper = Grid((50, 10, 10), (1.0, 2.0, 2.0), (5.0, 5.0, 155.0), whole.direction)
    assert whole.covered_share(where, whole) == 1
    assert upper.covered_share(where, whole) == pytest.approx(0.5, abs=0.02)
    turned = Grid((50, 10, 10), (1.0, 2.0, 2.0), (23.0, 23.0, 155.0), tuple(np.diag([-1.0, -1.0, 1.0]).ravel()))
    assert turned.covered_share(where, whole) == upper.covered_share(where, whole)
    lower = Grid((50, 10, 10), (1.0, 2.0, 2.0), (5.0, 5.0, 5.0), whole.direction)
    assert lower.covered_share(where, whole) == 0
    one = np.zeros(whole.size_zyx, dtype=bool)
    one[101, 3, 3] = True
    assert (lower.covered_share(one, whole), whole.covered_share(one, whole)) == (0, 1)
