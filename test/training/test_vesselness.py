import math

import numpy as np
import pytest
from scipy import ndimage

from training.otsu import otsu_threshold
from training.vesselness import (
    distance_to_outside_mm,
    eigenvalues,
    eroded,
    hessian,
    reference_vessels,
    vesselness,
    without_thick,
)

FRANGI = {"alpha": 0.5, "beta": 0.5}
ENTRIES = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]


def everywhere(image: np.ndarray) -> np.ndarray:
    return np.ones(image.shape, dtype=bool)


def bell(*squared_distances: np.ndarray, sd: float) -> np.ndarray:
    return np.exp(-sum(squared_distances) / (2 * sd**2))


@pytest.fixture
def axes() -> tuple[np.ndarray, ...]:
    """Squared distances from the middle voxel along z, y and x."""
    return tuple((index - 20.0) ** 2 for index in np.indices((41, 41, 41)))


def test_eigenvalues_are_those_of_lapack():
    rng = np.random.default_rng(0)
    random = rng.normal(size=(500, 3, 3)) * 10.0 ** rng.uniform(-6, 3, (500, 1, 1))
    special = [np.zeros((3, 3)), np.eye(3) * -2, np.diag([1.0, -3, 1]), np.ones((3, 3)), np.diag([1e-9, 5, 5])]
    matrices = np.concatenate([random + random.transpose(0, 2, 1), special])
    ours = np.stack(eigenvalues({(a, b): matrices[:, a, b] for a, b in ENTRIES}), axis=1)
    scale = np.abs(matrices).max(axis=(1, 2))[:, None]
    assert (np.abs(ours - np.linalg.eigvalsh(matrices)) <= 1e-7 * scale).all()


def test_hessian_of_a_quadratic_is_its_coefficients():
    z, y, x = np.meshgrid(*(np.arange(-12.0, 13),) * 3, indexing="ij")
    where = np.zeros(z.shape, dtype=bool)
    where[12, 12, 12] = where[12, 13, 11] = True
    found = hessian(3 * z**2 - y**2 + 0.5 * x**2 + 2 * z * y - 4 * z * x + x * y + 7 * z, where, sigma_voxels=1.0)
    expected = {(0, 0): 6, (1, 1): -2, (2, 2): 1, (0, 1): 2, (0, 2): -4, (1, 2): 1}
    for axes, value in expected.items():
        np.testing.assert_allclose(found[axes], value, atol=1e-3)


def test_hessian_at_the_border_of_the_array_needs_no_voxel_outside():
    found = hessian(np.full((3, 4, 5), 0.7), np.ones((3, 4, 5), dtype=bool), sigma_voxels=1.0)
    assert all(values.shape == (60,) and np.abs(values).max() < 1e-6 for values in found.values())


@pytest.mark.parametrize("along", [0, 1, 2])
def test_a_tube_is_found_on_its_axis(axes, along):
    across = [axes[k] for k in range(3) if k != along]
    found = vesselness(bell(*across, sd=2.0), everywhere(axes[0]), spacing_mm=1.0, sigmas_mm=(2.0,), **FRANGI)
    # On the axis l1 = 0 and l2 = l3 give Frangi's first factor 1 - exp(-1 / 0.5); S = 2 c there gives the last one.
    assert found[20, 20, 20] == pytest.approx((1 - math.exp(-2)) ** 2, rel=1e-4)
    profile = np.moveaxis(found, along, 0)[20]
    assert np.unravel_index(profile.argmax(), profile.shape) == (20, 20)
    # The blurred tube bends inward to sqrt(2^2 + 2^2) = 2.83 voxels from its axis; further out only one l is negative.
    assert (np.diff(profile[20, 20:24]) < 0).all() and profile[20, 22] > 0 and (profile[20, 23:] == 0).all()


def test_the_middle_of_a_blob_is_damped(axes):
    found = vesselness(bell(*axes, sd=2.0), everywhere(axes[0]), spacing_mm=1.0, sigmas_mm=(2.0,), **FRANGI)
    assert found[20, 20, 20] == pytest.approx((1 - math.exp(-2)) * math.exp(-2) * (1 - math.exp(-2)), rel=1e-4)
    lenient = vesselness(
        bell(*axes, sd=2.0), everywhere(axes[0]), spacing_mm=1.0, sigmas_mm=(2.0,), alpha=1.0, beta=1.0
    )
    assert lenient[20, 20, 20] == pytest.approx((1 - math.exp(-0.5)) * math.exp(-0.5) * (1 - math.exp(-2)), rel=1e-4)


def test_plates_dark_tubes_and_flat_places_are_no_vessels(axes):
    for image in (bell(axes[0], sd=2.0), 1 - bell(axes[0], axes[1], sd=2.0), np.full((41, 41, 41), 0.3)):
        found = vesselness(image, everywhere(image), spacing_mm=1.0, sigmas_mm=(1.0, 2.0), **FRANGI)
        assert found[20, 20, 20] < 1e-3


def test_each_scale_answers_to_tubes_of_its_size():
    """Amplitude 1 and SD s give, at scale t, l2 = l3 = -s^2 / (s^2 + t^2)^2 on the axis."""
    y, x = np.meshgrid(np.arange(121.0), np.arange(161.0), indexing="ij")
    thin, thick = (bell((y - 60) ** 2, (x - at) ** 2, sd=sd) for at, sd in ((40, 4.0), (110, 12.0)))
    image = np.broadcast_to(thin + thick, (5, 121, 161))
    middle = np.zeros(image.shape, dtype=bool)
    middle[2] = True
    at_4, at_12 = (
        vesselness(image, middle, spacing_mm=0.25, sigmas_mm=(sigma,), **FRANGI)[2, 60] for sigma in (1.0, 3.0)
    )

    def strength(sd: float, scale: float) -> float:
        return sd**2 / (sd**2 + scale**2) ** 2

    def expected(weaker: float, stronger: float) -> float:
        return (1 - math.exp(-2)) * (1 - math.exp(-2 * (weaker / stronger) ** 2))

    assert at_4[40] == pytest.approx((1 - math.exp(-2)) ** 2, rel=0.01)
    assert at_4[110] == pytest.approx(expected(strength(12, 4), strength(4, 4)), rel=0.05)
    assert at_12[110] == pytest.approx((1 - math.exp(-2)) ** 2, rel=0.01)
    assert at_12[40] == pytest.approx(expected(strength(4, 12), strength(12, 12)), rel=0.05)
    both = vesselness(image, middle, spacing_mm=0.25, sigmas_mm=(1.0, 3.0), **FRANGI)[2, 60]
    np.testing.assert_array_equal(both, np.maximum(at_4, at_12))


def test_vesselness_is_frangis_formula_voxel_by_voxel():
    image = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(14, 15, 16)), 1.0)
    where = np.zeros(image.shape, dtype=bool)
    where[2:-2, 2:-2, 3:-1] = True
    alpha, beta, expected = 0.4, 0.7, np.zeros(image.shape)
    for sigma in (0.8, 1.6):
        derivatives = hessian(image, where, sigma_voxels=sigma)
        matrices = np.zeros((int(where.sum()), 3, 3))
        for (a, b), values in derivatives.items():
            matrices[:, a, b] = matrices[:, b, a] = values
        by_size = [sorted(values, key=abs) for values in np.linalg.eigvalsh(matrices)]
        norms = [math.sqrt(sum(v**2 for v in values)) for values in by_size]
        c = max(norms) / 2
        for index, (l1, l2, l3), s in zip(np.argwhere(where), by_size, norms, strict=True):
            if l2 < 0 and l3 < 0:
                plate, blob = abs(l2) / abs(l3), abs(l1) / math.sqrt(abs(l2 * l3))
                value = (1 - math.exp(-(plate**2) / (2 * alpha**2))) * math.exp(-(blob**2) / (2 * beta**2))
                value *= 1 - math.exp(-(s**2) / (2 * c**2))
                expected[tuple(index)] = max(expected[tuple(index)], value)
    found = vesselness(image, where, spacing_mm=2.0, sigmas_mm=(1.6, 3.2), alpha=alpha, beta=beta)
    assert 0.2 < (expected > 0)[where].mean() < 0.9
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_otsu_lies_between_two_heaps():
    low, high = np.linspace(0.0, 0.2, 900, dtype=np.float32), np.linspace(0.7, 0.9, 100, dtype=np.float32)
    assert 0.199 <= otsu_threshold(np.concatenate([low, high])) < 0.7


def test_distance_to_outside_counts_the_arrays_border_as_outside():
    distance = distance_to_outside_mm(np.ones((3, 5, 5), dtype=bool), spacing_mm=1.5)
    assert distance[1, 2, 2] == 3.0 and distance[0, 2, 2] == 1.5
    assert (distance_to_outside_mm(np.zeros((3, 3, 3), dtype=bool), spacing_mm=1.5) == 0).all()


@pytest.mark.parametrize(
    ("thickest_mm", "kept"),
    [(2.9, 0), (3.0, 8), (8.9, 8), (9.0, 8 + 125)],  # a line of one voxel is 2 x 1.5 mm, a cube of five 2 x 3 x 1.5 mm
)
def test_what_is_thicker_than_the_ball_goes(thickest_mm, kept):
    vessels = np.zeros((20, 20, 20), dtype=bool)
    vessels[2, 2, 4:12] = True
    vessels[8:13, 8:13, 8:13] = True
    thin = without_thick(vessels, spacing_mm=1.5, thickest_mm=thickest_mm)
    assert not (thin & ~vessels).any()
    assert thin[2, 2].sum() == (8 if kept else 0)
    assert thin[10, 10, 10] == (kept > 8)


def test_a_thin_branch_of_a_thick_object_stays():
    vessels = np.zeros((20, 20, 40), dtype=bool)
    vessels[6:15, 6:15, :9] = True
    vessels[10, 10, 9:] = True
    thin = without_thick(vessels, spacing_mm=1.5, thickest_mm=8.0)
    assert thin[10, 10, 14:].all() and not thin[8:13, 8:13, 2:7].any()
    assert not without_thick(np.zeros_like(vessels), spacing_mm=1.5, thickest_mm=8.0).any()


def tube(shape: tuple[int, ...], start: tuple[float, ...], end: tuple[float, ...], radius: float) -> np.ndarray:
    """Voxels within a radius of a straight line between two points, all in voxels."""
    a, b = np.array(start), np.array(end)
    points = np.moveaxis(np.indices(shape), 0, -1) - a
    along = np.clip(points @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(points - along[..., None] * (b - a), axis=-1) <= radius


@pytest.fixture(scope="module")
def tree() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, lungs and vessels at 1.5 mm: an ellipsoid with a tree that comes in through its side and branches."""
    shape = (48, 44, 52)
    z, y, x = (index - (n - 1) / 2 for index, n in zip(np.indices(shape), shape, strict=True))
    lungs = (z / 22) ** 2 + (y / 20) ** 2 + (x / 24) ** 2 <= 1
    pieces = [
        ((24, 22, 0), (24, 22, 20), 1.8),
        ((24, 22, 20), (36, 14, 32), 1.4),
        ((24, 22, 20), (12, 30, 32), 1.4),
        ((36, 14, 32), (38, 22, 42), 1.2),
        ((36, 14, 32), (30, 8, 38), 1.2),
        ((12, 30, 32), (14, 20, 42), 1.2),
        ((24, 22, 20), (24, 24, 46), 1.4),
    ]
    vessels = np.any([tube(shape, *piece) for piece in pieces], axis=0) & lungs
    image = ndimage.gaussian_filter(np.where(vessels, 0.8, 0.25), 0.5)
    image += np.random.default_rng(0).normal(0, 0.01, shape)
    return np.where(lungs, image, 0).astype(np.float16), lungs, vessels


TREE = {"spacing_mm": 1.5, "sigmas_mm": (1.0, 1.5, 2.0, 2.5, 3.0), **FRANGI}


def shrunken(lungs: np.ndarray, erosion_mm: float) -> np.ndarray:
    return eroded(lungs, spacing_mm=TREE["spacing_mm"], erosion_mm=erosion_mm)


def test_reference_recovers_a_tree_of_tubes(tree):
    image, lungs, vessels = tree
    reference = reference_vessels(image, lungs, shrunken(lungs, 3.0), **TREE)
    inner = distance_to_outside_mm(lungs, spacing_mm=1.5) > 3.0
    assert reference.dtype == np.uint8 and not reference[~inner].any()
    found, true = reference[inner] > 0, vessels[inner]
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.8
    assert (true & ~found & (tube(lungs.shape, (24, 22, 3), (24, 22, 20), 0.5))[inner]).sum() == 0


def test_the_border_of_the_lungs_is_no_vessel(tree):
    _, lungs, _ = tree
    outermost = lungs & (distance_to_outside_mm(lungs, spacing_mm=1.5) <= 1.5)
    mixed_with_chest_wall = np.where(outermost, 0.6, np.where(lungs, 0.25, 0.0))
    assert not reference_vessels(mixed_with_chest_wall, lungs, shrunken(lungs, 0.0), **TREE).any()


@pytest.mark.parametrize("lungs", [np.zeros((9, 9, 9), dtype=bool), np.indices((9, 9, 9)).sum(axis=0) == 12])
def test_lungs_without_a_voxel_left_have_no_vessels(lungs):
    assert not reference_vessels(lungs.astype(np.float16), lungs, shrunken(lungs, 3.0), **TREE).any()
