import numpy as np
import pytest

from algorithm.images import Geometry, Volume
from algorithm.preprocess import (
    bounding_box,
    covering_grid,
    crop,
    masked_intensity,
    moved,
    resample,
    uncrop,
    window,
)

ANGLE = np.deg2rad(12)
OBLIQUE = (np.cos(ANGLE), -np.sin(ANGLE), 0.0, np.sin(ANGLE), np.cos(ANGLE), 0.0, 0.0, 0.0, 1.0)


def grid(size=(6, 8, 10), spacing=(2.0, 0.7, 0.9), direction=OBLIQUE) -> Geometry:
    return Geometry(size, spacing, (-120.5, 33.25, 410.0), tuple(float(v) for v in direction))


def corner(geometry: Geometry, far: bool) -> tuple[float, ...]:
    """Outer corner of the first or the last voxel, in patient coordinates."""
    index = [n - 0.5 if far else -0.5 for n in geometry.size_zyx]
    return moved(geometry, index).origin_xyz_mm


def test_window_maps_its_ends_to_0_and_1_and_clamps():
    hu = np.array([-2000, -1200, -450, 300, 3000], dtype=np.int16)
    assert window(hu).tolist() == [0, 0, 0.5, 1, 1]


def test_bounding_box_with_margin_is_clipped():
    mask = np.zeros((10, 10, 10), dtype=bool)
    mask[0, 4:6, 8] = True
    assert bounding_box(mask, (2, 2, 2)) == (slice(0, 3), slice(2, 8), slice(6, 10))


def test_bounding_box_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="empty mask: expected at least one voxel"):
        bounding_box(np.zeros((2, 2, 2), dtype=bool))


def test_uncrop_inverts_crop_and_a_crop_stays_where_it_is():
    volume = Volume(np.arange(480, dtype=np.int16).reshape(6, 8, 10), grid())
    box = (slice(1, 5), slice(2, 8), slice(3, 7))
    part = crop(volume, box)
    whole = uncrop(part.array, box, (6, 8, 10))
    assert (whole[box] == volume.array[box]).all() and whole.sum() == volume.array[box].sum()
    assert part.geometry.origin_xyz_mm == pytest.approx(
        volume.to_sitk().TransformIndexToPhysicalPoint((3, 2, 1)), abs=1e-9
    )


def test_covering_grid_is_isotropic_and_covers_with_less_than_a_voxel_to_spare():
    covering = covering_grid(grid(), spacing_mm=1.5)
    assert covering.spacing_zyx_mm == (1.5, 1.5, 1.5)
    assert corner(covering, False) == pytest.approx(corner(grid(), False), abs=1e-9)
    for n, m, spacing in zip(grid().size_zyx, covering.size_zyx, grid().spacing_zyx_mm, strict=True):
        assert n * spacing - 1e-6 <= m * 1.5 < n * spacing + 1.5


def test_resampling_a_linear_field_is_exact_away_from_the_edge():
    geometry = grid(size=(12, 14, 16), spacing=(1.6, 1.6, 1.6))
    z, y, x = np.indices(geometry.size_zyx)
    field = Volume((3 * z + 2 * y - x).astype(np.float32), geometry)
    finer = covering_grid(geometry, spacing_mm=0.8)
    assert finer.size_zyx == (24, 28, 32)
    resampled = resample(field, finer, "linear").array[2:-2, 2:-2, 2:-2]
    z, y, x = (np.indices(finer.size_zyx) + 0.5) / 2 - 0.5
    assert resampled == pytest.approx((3 * z + 2 * y - x)[2:-2, 2:-2, 2:-2], abs=1e-4)


def test_nearest_resampling_makes_no_new_labels():
    labels = Volume(np.random.default_rng(0).choice([0, 3, 5], size=(6, 8, 10)).astype(np.uint8), grid())
    assert set(np.unique(resample(labels, covering_grid(grid(), spacing_mm=0.8), "nearest").array)) <= {0, 3, 5}


def test_masked_intensity_is_zero_outside_the_mask_and_unsmeared_inside():
    geometry = grid(size=(12, 20, 20), spacing=(1.5, 0.8, 0.8))
    inside = np.zeros(geometry.size_zyx, dtype=bool)
    inside[3:9, 5:15, 5:15] = True
    hu = np.where(inside, -450, 3000).astype(np.int16)  # bright bone right outside
    target = covering_grid(geometry, spacing_mm=1.2)
    image = masked_intensity(Volume(hu, geometry), inside, target).array
    kept = resample(Volume(inside, geometry), target, "nearest").array > 0
    assert (image[~kept] == 0).all()
    assert image[kept].max() <= 0.5 + 1e-6  # the bone never enters
    assert np.median(image[kept]) == pytest.approx(0.5)
