from __future__ import annotations

import math

import numpy as np
import pytest
import surface_distance
from grand_challenge_metrics.stats import percentile_hausdorff_distance
from scipy.spatial import KDTree

from evaluation import surfaces
from evaluation.errors import InputError
from evaluation.surfaces import bounding_box, surface_agreement


def cuboid(shape: tuple[int, ...], *edges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*edge) for edge in edges)] = True
    return mask


def ball(radius_mm: float, spacing_zyx_mm: tuple[float, ...], half_mm: float = 16.0) -> np.ndarray:
    axes = [np.arange(-math.ceil(half_mm / step), math.ceil(half_mm / step) + 1) * step for step in spacing_zyx_mm]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return z**2 + y**2 + x**2 <= radius_mm**2


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")  # why its search for distances is not used
def test_against_the_whole_of_the_package(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, spacing = (9, 12, 14), (1.5, 0.8, 0.7)
    reference, prediction = rng.random(shape) < 0.1, rng.random(shape) < 0.15
    reference[:4] = prediction[6:] = False  # and touching the borders of the array elsewhere
    distances = surface_distance.compute_surface_distances(reference, prediction, spacing)
    ours = surface_agreement(reference, prediction, spacing_zyx_mm=spacing)
    expected = surface_distance.compute_robust_hausdorff(distances, 95)
    assert ours.hausdorff95_mm == pytest.approx(expected, abs=0.0005)  # ours are whole micrometres
    assert ours.dice_2mm == pytest.approx(surface_distance.compute_surface_dice_at_tolerance(distances, 2.0))


@pytest.mark.parametrize(
    ("step", "spacing_mm", "within"), [(1, 1.0, True), (2, 1.0, True), (3, 1.0, False), (20, 0.1, True)]
)
def test_two_single_voxels(step, spacing_mm, within) -> None:
    # All eight corners of a voxel are surface, each with the area of one clipped corner of a cube, so half of the area
    # lies at step - 1 voxels from the other surface and half at step; 2 mm apart is within 2 mm, however it is rounded.
    shape = (3, 3, 30)
    reference, prediction = cuboid(shape, (1, 2), (1, 2), (1, 2)), cuboid(shape, (1, 2), (1, 2), (1 + step, 2 + step))
    agreement = surface_agreement(reference, prediction, spacing_zyx_mm=(spacing_mm,) * 3)
    assert agreement.hausdorff95_mm == pytest.approx(step * spacing_mm)
    assert agreement.dice_2mm == pytest.approx(1.0 if within else 0.5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_cube_and_its_half(axis) -> None:
    # Cube of 10 mm and its lower half: the far face lies 5 mm away from the half's cut, the sides by 0 to 5 mm.
    spacing = (0.5, 1.0, 1.25)
    size = [20, 10, 8]
    whole = cuboid((24, 14, 12), *((2, 2 + edge) for edge in size))
    half = whole.copy()
    half[(slice(None),) * axis + (slice(2 + size[axis] // 2, None),)] = False
    agreement = surface_agreement(whole, half, spacing_zyx_mm=spacing)
    assert agreement.hausdorff95_mm == pytest.approx(5.0)
    # Of 600 mm2 the far face (100) and 4 x 10 x 3 mm of the sides lie beyond 2 mm; of the half's 400 mm2 the inner
    # 6 x 6 mm of the cut do. Corners and edges are rounded off by the marching cubes: 6 %.
    assert agreement.dice_2mm == pytest.approx((600 - 100 - 120 + 400 - 36) / 1000, abs=0.06)


@pytest.mark.parametrize(
    ("spacing", "radius_mm", "dice"),
    [((0.5, 0.5, 0.5), 11.0, 1.0), ((0.6, 0.5, 0.4), 7.0, 0.0), ((0.4, 0.4, 0.4), 14.0, 0.0)],
)
def test_concentric_balls(spacing, radius_mm, dice) -> None:
    # Every point of one sphere lies at the difference of the radii from the other; voxels blur that by half of one.
    agreement = surface_agreement(ball(10.0, spacing), ball(radius_mm, spacing), spacing_zyx_mm=spacing)
    assert agreement.hausdorff95_mm == pytest.approx(abs(radius_mm - 10), abs=min(spacing) / 2)
    assert agreement.dice_2mm == pytest.approx(dice, abs=0.02)


@pytest.mark.parametrize("seed", [1, 2])
def test_few_elements_at_once_give_the_same(seed, monkeypatch) -> None:
    rng = np.random.default_rng(seed)
    noise, body = rng.random((20, 9, 10)) < 0.5, cuboid((20, 9, 10), (2, 5), (1, 8), (3, 6))
    pairs = [(noise, body), (body, noise), (noise, np.roll(noise, 1, axis=0)), (body, np.roll(body, 13, axis=0))]
    spacing = (1.5, 0.8, 0.7)
    whole = [surface_agreement(*pair, spacing_zyx_mm=spacing) for pair in pairs]
    sizes = []

    class Tree(KDTree):
        def __init__(self, data, **options) -> None:
            sizes.append(len(data))
            super().__init__(data, **options)

        def query(self, x):
            sizes.append(len(x))
            return super().query(x)

    monkeypatch.setattr(surfaces, "KDTree", Tree)
    monkeypatch.setattr(surfaces, "ELEMENTS_AT_ONCE", 250)
    for pair, expected in zip(pairs, whole, strict=True):
        parts = surface_agreement(*pair, spacing_zyx_mm=spacing)
        assert (parts.dice_2mm, parts.hausdorff95_mm) == pytest.approx((expected.dice_2mm, expected.hausdorff95_mm))
    assert 200 < max(sizes) <= 250  # a layer of the noise has up to 110


def test_the_percentile_against_grand_challenge_metrics() -> None:
    # Its surface is that of voxel centres without areas: on smooth bodies both agree to about a voxel.
    spacing = (1.0, 0.8, 0.8)
    reference, prediction = ball(9.0, spacing), np.roll(ball(12.0, spacing), (2, -3), axis=(0, 2))
    expected = percentile_hausdorff_distance(reference, prediction, percentile=0.95, voxelspacing=spacing)
    ours = surface_agreement(reference, prediction, spacing_zyx_mm=spacing)
    assert ours.hausdorff95_mm == pytest.approx(expected, abs=1.0)


def test_symmetry_shift_and_scale() -> None:
    rng = np.random.default_rng(5)
    first, second = rng.random((6, 7, 8)) < 0.2, rng.random((6, 7, 8)) < 0.2
    one = surface_agreement(first, second, spacing_zyx_mm=(1.0, 2.0, 3.0))
    other_way = surface_agreement(second, first, spacing_zyx_mm=(1.0, 2.0, 3.0))
    moved = surface_agreement(np.pad(first, 4), np.pad(second, 4), spacing_zyx_mm=(1.0, 2.0, 3.0))
    doubled = surface_agreement(first, second, spacing_zyx_mm=(2.0, 4.0, 6.0))
    assert (other_way.dice_2mm, other_way.hausdorff95_mm) == pytest.approx((one.dice_2mm, one.hausdorff95_mm))
    assert (moved.dice_2mm, moved.hausdorff95_mm) == pytest.approx((one.dice_2mm, one.hausdorff95_mm))
    assert doubled.hausdorff95_mm == pytest.approx(2 * one.hausdorff95_mm, abs=0.002)


def test_an_equal_mask_agrees_wholly() -> None:
    mask = ball(5.0, (1, 1, 1))
    agreement = surface_agreement(mask, mask.copy(), spacing_zyx_mm=(1, 1, 1))
    assert (agreement.dice_2mm, agreement.hausdorff95_mm) == (1.0, 0.0)


def test_no_surface_without_voxels() -> None:
    empty, full = np.zeros((3, 3, 3), dtype=bool), np.ones((3, 3, 3), dtype=bool)
    for reference, prediction in ((empty, empty), (full, empty), (empty, full)):
        assert surface_agreement(reference, prediction, spacing_zyx_mm=(1, 1, 1)) is None


def test_refuses_other_shapes() -> None:
    with pytest.raises(InputError, match=r"shapes \(3, 3, 3\) and \(3, 3, 4\)"):
        surface_agreement(np.ones((3, 3, 3), bool), np.ones((3, 3, 4), bool), spacing_zyx_mm=(1, 1, 1))


def test_bounding_box() -> None:
    assert bounding_box(cuboid((5, 6, 7), (1, 3), (2, 3), (0, 7))) == (slice(1, 3), slice(2, 3), slice(0, 7))
    assert np.zeros((2, 3))[bounding_box(np.zeros((2, 3)))].size == 0
