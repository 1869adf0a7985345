from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch

from algorithm import lobe_segmenter
from algorithm.errors import InputError
from algorithm.images import Geometry, Volume
from algorithm.lobe_segmenter import (
    LobeSegmenter,
    expected_dice,
    hard_labels,
    keep_main_parts,
    labels_at,
    lobe_probability,
    probability_at_once,
)
from algorithm.orientation import from_canonical
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
