from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch

from algorithm import lobe_segmenter
from algorithm.errors import InputError
from algorithm.images import Geometry, Volume
from algorithm.lobe_labels import hard_labels
from algorithm.lobe_segmenter import LobeSegmenter, lobe_probability, probability_at_once
from algorithm.orientation import from_canonical


@pytest.mark.parametrize("shape", [(8, 16, 24), (9, 13, 18), (3, 4, 5)])
def test_any_size_goes_through_the_network(tiny_model, shape):
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    probability = probability_at_once(tiny_model.lobe_networks.chest, image, torch.device("cpu"))
    assert probability.shape == (6, *shape)
    assert probability.sum(axis=0) == pytest.approx(1.0, abs=1e-5)


class Threshold(torch.nn.Module):
    """Takes what is dark for lung: on the patient's left the left upper lobe, on the right the right upper one."""

    period = 8

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        dark = (image < 0.3).float()
        middle = torch.arange(image.shape[-1]) >= image.shape[-1] // 2
        logits = torch.zeros(1, 6, *image.shape[2:])
        logits[:, 0], logits[:, 1], logits[:, 3] = (
            5 * (1 - dark[:, 0]),
            5 * dark[:, 0] * middle,
            5 * dark[:, 0] * ~middle,
        )
        return logits


def test_the_second_time_the_network_sees_the_box_around_the_lungs(monkeypatch):
    image = np.full((48, 64, 80), 0.7, dtype=np.float32)
    image[16:32, 20:36, 10:30] = image[16:32, 20:36, 45:65] = 0.1
    seen = []

    def at_once(network, part, device):
        seen.append(part.shape)
        return probability_at_once(network, part, device)

    monkeypatch.setattr(lobe_segmenter, "probability_at_once", at_once)
    probability = lobe_probability(Threshold(), image, torch.device("cpu"), spacing_mm=1.5)
    assert seen == [(48, 64, 80), (16 + 16, 16 + 16, 55 + 16)]  # 12 mm on all sides
    assert np.array_equal(hard_labels(probability) > 0, image < 0.3)
    assert (hard_labels(probability)[..., :40] != 1).all() and (hard_labels(probability)[..., 40:] != 3).all()


def test_without_lungs_there_is_no_second_time():
    image = np.full((16, 16, 16), 0.7, dtype=np.float32)
    probability = lobe_probability(Threshold(), image, torch.device("cpu"), spacing_mm=1.5)
    assert (probability[0] > 0.5).all()


@pytest.fixture
def segmenter(tiny_model, monkeypatch) -> LobeSegmenter:
    segmenter = LobeSegmenter(tiny_model, torch.device("cpu"))
    segmenter.network, segmenter.fissures = Threshold(), None
    return segmenter


@pytest.fixture
def chest() -> Volume:
    """Two lungs of 1.6 litres in LPS order, of different heights."""
    hu = np.full((40, 32, 48), 40, dtype=np.int16)
    hu[4:34, 4:28, 4:22] = -850
    hu[8:38, 4:28, 26:44] = -850
    geometry = Geometry(hu.shape, (5.0, 5.0, 5.0), (3.0, -7.0, 11.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    return Volume(hu, geometry)


def test_segment(segmenter, chest):
    found = segmenter.segment(chest)
    assert found.source == "model" and set(found.confidence) == {1, 3}
    dark, left = chest.array < 0, np.arange(48) >= 24
    for label, side in ((1, left), (3, ~left)):
        reference = dark & side
        overlap = 2 * (reference & (found.labels.array == label)).sum()
        assert overlap / (reference.sum() + (found.labels.array == label).sum()) > 0.97
    assert any("left lower lobe is 0 %" in warning for warning in found.warnings)


def test_borders_are_drawn_again_along_fissures_and_confidence_stays(segmenter, chest, monkeypatch):
    def lower_lobes(probability, image, network, *, spacing_mm):
        assert network == "network" and image.shape == probability.shape[1:] and spacing_mm == 1.5
        return probability[[0, 2, 1, 4, 3, 5]]

    before = segmenter.segment(chest)
    segmenter.fissures = "network"
    monkeypatch.setattr(lobe_segmenter, "along_fissures", lower_lobes)
    after = segmenter.segment(chest)
    assert np.array_equal(after.labels.array, np.array([0, 2, 1, 4, 3, 5])[before.labels.array])
    assert after.confidence == before.confidence


def test_any_orientation_gives_the_same_lobes(segmenter, chest):
    expected = segmenter.segment(chest).labels.array
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        direction = np.zeros((3, 3))
        for axis, (patient_axis, sign) in enumerate(zip(order, signs, strict=True)):
            direction[patient_axis, axis] = sign
        size_xyz, spacing_xyz = (tuple(getattr(chest.geometry, name)[::-1]) for name in ("size_zyx", "spacing_zyx_mm"))
        geometry = Geometry(
            tuple(size_xyz[axis] for axis in order[::-1]),
            tuple(spacing_xyz[axis] for axis in order[::-1]),
            (1.0, 2.0, 3.0),
            tuple(direction.ravel().tolist()),
        )
        turned = from_canonical(chest, geometry)
        found = segmenter.segment(turned)
        assert found.labels.geometry == geometry
        assert np.array_equal(found.labels.array, from_canonical(chest.with_array(expected), geometry).array)


def test_water_is_refused(segmenter, chest):
    chest.array[:] = 0
    with pytest.raises(InputError, match="no lungs were found: got 0 ml"):
        segmenter.segment(chest)


def test_a_model_without_a_lobe_network_says_so(tiny_model):
    from dataclasses import replace

    with pytest.raises(InputError, match="this model cannot find them; give a lobe mask"):
        LobeSegmenter(replace(tiny_model, lobe_networks=None), torch.device("cpu"))


def test_a_scan_that_is_too_large_is_refused(segmenter):
    geometry = Geometry((4, 4, 4), (900.0, 400.0, 400.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    scan = Volume(np.full(geometry.size_zyx, -850, dtype=np.int16), geometry)
    with pytest.raises(
        InputError, match=r"3600 x 1600 x 1600 mm .*, expected 80 million at most .*; crop it to the chest"
    ):
        segmenter.segment(scan)
