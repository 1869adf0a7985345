"""The borders of found lobes, drawn again along fissures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from algorithm.engine import make_network
from algorithm.fissures import (
    BAND_MM,
    along_fissures,
    distance_to_border_mm,
    fissure_input,
    fissure_probability,
    lobe_borders,
    redraw,
)

SPACING_MM = 1.5


@pytest.fixture
def labels() -> NDArray[np.uint8]:
    """A right lung of three lobes, and a left one of two that touches it; lower lobes first along z."""
    labels = np.zeros((60, 24, 40), dtype=np.uint8)
    labels[2:20, 2:22, 2:20], labels[20:40, 2:22, 2:20], labels[40:58, 2:22, 2:20] = 4, 5, 3
    labels[2:28, 2:22, 20:38], labels[28:58, 2:22, 20:38] = 2, 1
    return labels


def sheet(labels: NDArray[np.uint8], z: int) -> NDArray[np.float32]:
    """A fissure through both lungs."""
    fissure = np.zeros(labels.shape, dtype=np.float32)
    fissure[z : z + 2] = 0.7
    return fissure


def test_borders_are_where_lobes_of_one_lung_meet(labels: NDArray[np.uint8]) -> None:
    expected = np.zeros(labels.shape, dtype=bool)
    expected[19:21, 2:22, 2:20] = expected[39:41, 2:22, 2:20] = expected[27:29, 2:22, 20:38] = True
    assert np.array_equal(lobe_borders(labels), expected)
    assert not lobe_borders(np.minimum(labels, 1)).any()


def test_distance_to_a_border(labels: NDArray[np.uint8]) -> None:
    distance_mm = distance_to_border_mm(labels, SPACING_MM)
    assert distance_mm[20, 10, 10] == 0
    assert distance_mm[10, 10, 2] == pytest.approx(9 * SPACING_MM)
    assert np.isinf(distance_to_border_mm(np.minimum(labels, 1), SPACING_MM)).all()


def test_borders_move_to_a_fissure_nearby(labels: NDArray[np.uint8]) -> None:
    moved = redraw(labels, sheet(labels, 23), distance_to_border_mm(labels, SPACING_MM))
    assert np.array_equal(moved > 0, labels > 0)
    assert (moved[2:23, 2:22, 2:20] == 4).all() and (moved[25:36, 2:22, 2:20] == 5).all()
    assert (moved[2:23, 2:22, 20:38] == 2).all() and (moved[25:58, 2:22, 20:38] == 1).all()


def test_a_fissure_beyond_the_band_moves_no_border_across_the_core(labels: NDArray[np.uint8]) -> None:
    far = 20 + int(BAND_MM / SPACING_MM) + 4
    moved = redraw(labels, sheet(labels, far), distance_to_border_mm(labels, SPACING_MM))
    assert (moved[28:36, 10, 2:20] == 5).all()
    assert (moved[2:13, 2:22, 2:20] == 4).all()


def test_a_lobe_within_the_band_altogether_keeps_a_core(labels: NDArray[np.uint8]) -> None:
    labels[labels == 5] = 4
    labels[36:40, 2:22, 2:20] = 5
    moved = redraw(labels, np.zeros(labels.shape, dtype=np.float32), distance_to_border_mm(labels, SPACING_MM))
    assert (moved == 5).any() and np.array_equal(moved > 0, labels > 0)


def test_lungs_of_one_lobe_stay_as_they_are(labels: NDArray[np.uint8]) -> None:
    whole = np.where(labels > 2, 3, np.where(labels > 0, 1, 0)).astype(np.uint8)
    distance_mm = distance_to_border_mm(whole, SPACING_MM)
    assert np.array_equal(redraw(whole, sheet(labels, 23), distance_mm), whole)


def test_the_network_sees_lung_and_nothing_else() -> None:
    """A sheet of 60 HU over lung is a tenth of its window."""
    image = np.array([(1024 - 850) / 1424, (1024 - 790) / 1424, 1.0, 1.0], dtype=np.float32)
    seen = fissure_input(image, np.array([True, True, True, False]))
    assert seen.dtype == np.float32
    assert float(seen[1] - seen[0]) == pytest.approx(0.105, abs=0.001)
    assert seen[2:].tolist() == [1.0, 0.0]


def test_only_what_is_near_a_border_is_looked_at(labels: NDArray[np.uint8], tiny_model) -> None:
    network = make_network(tiny_model.lobe_networks.fissures, device=torch.device("cpu"))
    image = np.random.default_rng(0).random(labels.shape, dtype=np.float32)
    distance_mm = distance_to_border_mm(labels, SPACING_MM)
    found = fissure_probability(network, image, labels, distance_mm)
    near = (distance_mm <= BAND_MM) & (labels > 0)
    assert (found[near] > 0).all() and found.max() < 1
    one_lobe = np.minimum(labels, 1)
    assert not fissure_probability(network, image, one_lobe, distance_to_border_mm(one_lobe, SPACING_MM)).any()


def test_the_lungs_stay_and_probabilities_add_up(labels: NDArray[np.uint8], tiny_model) -> None:
    rng = np.random.default_rng(0)
    network = make_network(tiny_model.lobe_networks.fissures, device=torch.device("cpu"))
    probability = np.zeros((6, *labels.shape), dtype=np.float32)
    for label in range(6):
        probability[label] = np.where(labels == label, 0.9, 0.02)
    image = rng.random(labels.shape, dtype=np.float32)
    result = along_fissures(probability, image, network, spacing_mm=SPACING_MM)
    assert np.array_equal(result[0], probability[0])
    assert result[:, labels > 0].sum(axis=0) == pytest.approx(1, abs=1e-5)
    cores = distance_to_border_mm(labels, SPACING_MM) > BAND_MM + 2 * SPACING_MM
    assert np.array_equal(result[1:].argmax(axis=0)[cores & (labels > 0)] + 1, labels[cores & (labels > 0)])
    probability[0] = 0.9
    assert along_fissures(probability, image, network, spacing_mm=SPACING_MM) is probability
