from __future__ import annotations

import numpy as np
import pytest

from algorithm.images import Geometry
from algorithm.lobe_labels import expected_dice, hard_labels, keep_main_parts, labels_at
from algorithm.preprocess import covering_grid

FINE = Geometry((30, 40, 50), (2.0, 1.0, 1.5), (-20.0, 5.0, 300.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def probability_of(labels: np.ndarray, sure: float = 1.0) -> np.ndarray:
    """Probability of six classes, as sure as told of the given label, and the rest of it for the background."""
    probability = sure * (labels == np.arange(6)[:, None, None, None]).astype(np.float32)
    probability[0] += 1 - sure
    return probability.astype(np.float32)


def two_blocks(shape: tuple[int, int, int] = (10, 12, 20)) -> np.ndarray:
    labels = np.zeros(shape, dtype=np.uint8)
    labels[2:8, 2:10, 1:9] = 3
    labels[2:8, 2:10, 11:19] = 1
    return labels


def test_hard_labels_are_the_likeliest_lobe_where_lung_is_likelier_than_not():
    voxels = np.array([[0.6, 0.4, 0, 0, 0, 0], [0.45, 0.1, 0.2, 0.25, 0, 0], [0.4, 0, 0, 0, 0.3, 0.3]])
    assert hard_labels(voxels.T[..., None, None].astype(np.float32)).ravel().tolist() == [0, 3, 4]


def test_what_is_apart_from_a_lung_is_taken_out():
    labels = two_blocks()
    labels[0, 0, 0] = 3
    probability = probability_of(labels)
    keep_main_parts(probability)
    assert np.array_equal(hard_labels(probability), two_blocks())


def test_strays_of_a_lobe_go_to_the_lobe_around_them():
    labels = two_blocks()
    labels[4, 5, 4] = 4  # an island of the lower lobe in the upper one
    probability = probability_of(labels)
    probability[3, 4, 5, 4], probability[4, 4, 5, 4] = 0.3, 0.7
    labels[2:8, 2:10, 6:9] = 4  # the lower lobe itself
    probability[:, 2:8, 2:10, 6:9] = probability_of(labels)[:, 2:8, 2:10, 6:9]
    keep_main_parts(probability)
    found = hard_labels(probability)
    assert found[4, 5, 4] == 3
    assert (found == 4).sum() == 6 * 8 * 3
    assert probability.sum(axis=0) == pytest.approx(1.0)


def test_expected_dice_of_a_lobe():
    probability = probability_of(two_blocks(), sure=0.75)
    voxels = 6 * 8 * 8
    assert expected_dice(probability) == pytest.approx(
        {label: 2 * 0.75 * voxels / (voxels + 0.75 * voxels) for label in (1, 3)}
    )


def test_labels_at_finer_voxels_follow_the_coarse_lobes():
    coarse = covering_grid(FINE, spacing_mm=5.0)
    labels = np.zeros(coarse.size_zyx, dtype=np.uint8)
    labels[2:10, 2:6, 2:7], labels[2:10, 2:6, 7:13] = 3, 1
    found = labels_at(probability_of(labels), coarse, FINE)
    assert found.shape == FINE.size_zyx
    # edges of the coarse voxels: z 10 to 50 mm of 60, y 10 to 30 mm of 40, x 10, 35 and 65 mm of 75
    z, y, x = np.nonzero(found)
    assert (z.min(), z.max(), y.min(), y.max(), x.min(), x.max()) == (5, 24, 10, 29, 7, 42)
    right, left = (np.nonzero(found == label)[2] for label in (3, 1))
    assert right.max() < left.min() and abs(35 / 1.5 - left.min()) <= 1


def test_no_lungs_give_no_labels():
    coarse = covering_grid(FINE, spacing_mm=5.0)
    empty = probability_of(np.zeros(coarse.size_zyx, dtype=np.uint8))
    assert not labels_at(empty, coarse, FINE).any()
