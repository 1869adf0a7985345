"""The parts of phantoms: grids, random fields, tubes, lobes, noise."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from algorithm.images import Geometry, Volume
from training.phantom.grid import box_around, crop, indices, isotropic, positions, resample
from training.phantom.lobes import LOBE_LABELS, lungs_on_grid, warp_lobes
from training.phantom.scanner import add_noise, draw_protocol, field_of_view
from training.phantom.shapes import procedural_lobes
from training.phantom.texture import fractal
from training.phantom.vessels import Tubes, _widen_at_hilum, draw_tubes, grow_lung_tubes

TURNED = Geometry((5, 6, 7), (2.0, 1.5, 0.5), (10.0, -20.0, 30.0), (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))


def test_positions_agree_with_simpleitk_and_indices_invert_them() -> None:
    index = np.array([[4], [1], [6]])
    point = positions(TURNED, index)
    image = Volume(np.zeros(TURNED.size_zyx, dtype=np.uint8), TURNED).to_sitk()
    np.testing.assert_allclose(point[0], image.TransformIndexToPhysicalPoint((6, 1, 4)), rtol=1e-6)
    np.testing.assert_allclose(indices(TURNED, point), index, atol=1e-5)


def test_crop_keeps_positions() -> None:
    box = (slice(1, 4), slice(2, 6), slice(3, 5))
    part = crop(TURNED, box)
    assert part.size_zyx == (3, 4, 2)
    np.testing.assert_allclose(positions(part, np.zeros((3, 1))), positions(TURNED, np.array([[1], [2], [3]])))
    assert box_around(TURNED, positions(TURNED, np.array([[1, 3], [2, 5], [3, 4]]))) == box


def test_fast_and_general_resampling_agree() -> None:
    source = isotropic(np.zeros(3), np.full(3, 20.0), 2.0)
    volume = Volume(np.random.default_rng(0).normal(size=source.size_zyx).astype(np.float32), source)
    target = Geometry((9, 8, 7), (1.7, 1.1, 2.1), (1.3, 0.4, 2.2), source.direction)
    general = sitk.Resample(
        volume.to_sitk(),
        Volume(np.zeros(target.size_zyx, np.uint8), target).to_sitk(),
        sitk.Transform(),
        sitk.sitkLinear,
    )
    np.testing.assert_allclose(resample(volume, target), sitk.GetArrayFromImage(general), atol=1e-5)


def test_resampling_to_tilted_axes_follows_patient_positions() -> None:
    source = isotropic(np.array([0.0, -40.0, 0.0]), np.array([40.0, 40.0, 60.0]), 2.0)
    z, y, x = np.meshgrid(*(np.arange(n) * 2.0 for n in source.size_zyx), indexing="ij")
    volume = Volume((x + 3 * (y - 40) - 2 * z).astype(np.float32), source)
    point = positions(TURNED, np.indices(TURNED.size_zyx).reshape(3, -1))
    expected = (point @ np.array([1, 3, -2])).reshape(TURNED.size_zyx)
    np.testing.assert_allclose(resample(volume, TURNED), expected, atol=1e-3)


def test_fractal_has_the_wanted_spread_and_smoothness() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-200, 200, (20_000, 3)).astype(np.float32)
    near = points + np.float32(0.2)
    values = fractal(np.random.default_rng(5), points, (12.0,), (2.0,))
    beside = fractal(np.random.default_rng(5), near, (12.0,), (2.0,))
    assert values.std() == pytest.approx(2.0, rel=0.3)
    assert np.abs(values - beside).max() < 0.6


def test_a_tube_fills_its_volume_even_when_thinner_than_a_voxel() -> None:
    geometry = isotropic(np.zeros(3), np.full(3, 30.0), 1.0)
    start, end = np.array([[5.0, 14.3, 15.2]], dtype=np.float32), np.array([[25.0, 15.8, 14.6]], dtype=np.float32)
    for radius_mm in (0.3, 3.0):
        drawn = draw_tubes(Tubes(start, end, np.array([radius_mm], dtype=np.float32)), geometry)
        expected_mm3 = np.pi * radius_mm**2 * 20.1 + 4 / 3 * np.pi * radius_mm**3
        assert drawn.sum() == pytest.approx(expected_mm3, rel=0.3)
        assert drawn.max() <= 1.0


def test_thick_slices_average_thin_ones() -> None:
    start, end = np.array([[2.0, 10.0, 10.5]], dtype=np.float32), np.array([[18.0, 10.0, 10.5]], dtype=np.float32)
    tube = Tubes(start, end, np.ones(1, dtype=np.float32))
    thick = Geometry((5, 20, 20), (4.0, 1.0, 1.0), (0.0, 0.0, 1.5), tuple(np.eye(3).ravel()))
    drawn = draw_tubes(tube, thick)
    assert 0.3 < drawn.max() < 0.8
    assert drawn.sum() * 4 == pytest.approx(np.pi * 16, rel=0.35)


def test_lobes_on_a_grid_keep_their_volumes() -> None:
    rng = np.random.default_rng(3)
    lobes = warp_lobes(rng, procedural_lobes(rng, 4.0), 4.0)
    ct = field_of_view(rng, draw_protocol(rng, 4.0), lobes)
    lungs = lungs_on_grid(lobes, ct)
    for label in LOBE_LABELS:
        before_ml = np.count_nonzero(lobes.labels == label) * lobes.geometry.voxel_ml
        after_ml = np.count_nonzero(lungs.labels == label) * ct.voxel_ml
        assert after_ml == pytest.approx(before_ml, rel=0.08)
    assert ((lungs.coverage > 0.3) | (lungs.labels == 0)).all()
    assert np.count_nonzero(lungs.fissure_mm < 2) > 100


def test_vessels_start_at_the_hilum_and_thin_outward() -> None:
    rng = np.random.default_rng(4)
    lobes = warp_lobes(rng, procedural_lobes(rng, 4.0), 4.0)
    tubes = grow_lung_tubes(rng, lobes)
    left, right = tubes.hila
    assert left[0] > right[0] + 20
    middle = (tubes.vessels.start + tubes.vessels.end) / 2
    off_mm = np.minimum(np.linalg.norm(middle - left, axis=1), np.linalg.norm(middle - right, axis=1))
    near, far = tubes.vessels.radius_mm[off_mm < 30], tubes.vessels.radius_mm[off_mm > 80]
    assert near.mean() > 2 * far.mean()
    assert 2 * tubes.vessels.radius_mm.max() > 6
    assert 2 * tubes.vessels.radius_mm.min() < 1.2


def test_vessels_are_wider_at_the_hilum_and_as_they_were_far_from_it() -> None:
    away_mm = np.array([0, 20, 150], dtype=np.float32)
    start = np.stack([away_mm, np.zeros(3), np.zeros(3)], axis=1).astype(np.float32)
    tubes = Tubes(start, start, np.full(3, 2, dtype=np.float32))
    for seed in range(8):
        radius_mm = _widen_at_hilum(np.random.default_rng(seed), tubes, np.zeros(3, dtype=np.float32)).radius_mm
        assert 2 * 1.9 >= radius_mm[0] > radius_mm[1] > 2
        assert radius_mm[2] == pytest.approx(2, abs=1e-4)


def test_noise_has_the_protocol_s_strength_and_is_correlated_in_the_slice() -> None:
    rng = np.random.default_rng(6)
    protocol = draw_protocol(rng, 1.0)
    air = np.full((12, 64, 64), -860.0, dtype=np.float32)
    add_noise(rng, air, protocol)
    assert air.std() == pytest.approx(0.75 * protocol.noise_hu, rel=0.15)
    noise = air - air.mean()
    assert (noise[:, :, 1:] * noise[:, :, :-1]).mean() / noise.var() > 0.2
