from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from algorithm.images import Geometry, Volume
from algorithm.overview import SUBTYPE_COLOURS, Parts, _informative_slices, draw_overview
from algorithm.segmenter import LesionSegmenter


@pytest.fixture
def scan() -> tuple[Volume, Volume]:
    geometry = Geometry((24, 30, 40), (2.0, 1.5, 1.5), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    lobes = np.zeros(geometry.size_zyx, dtype=np.uint8)
    lobes[2:22, 4:26, 4:18], lobes[2:22, 4:26, 22:36] = 3, 1
    return Volume(np.where(lobes > 0, -850, 0).astype(np.int16), geometry), Volume(lobes, geometry)


def test_picture_shows_the_lesion_in_its_colour(tmp_path, tiny_model, scan):
    ct, lobes = scan
    segmentation = LesionSegmenter(tiny_model, device=torch.device("cpu"), memory_gb=1.0).segment(ct, lobes)
    for marked in (False, True):
        labels = np.zeros(ct.array.shape, dtype=np.uint8)
        if marked:
            labels[8:16, 8:20, 24:34] = 2
        path = tmp_path / f"{marked}.png"
        draw_overview(ct, replace(segmentation, labels=ct.with_array(labels)), path)
    plain, picture = (imread(tmp_path / f"{marked}.png")[..., :3] for marked in (False, True))
    assert picture.shape == plain.shape and min(picture.shape[:2]) > 800
    reddish = (picture[..., 0] - picture[..., 1] > 0.25) & (plain[..., 0] - plain[..., 1] <= 0.25)
    assert reddish.sum() > 2000
    assert SUBTYPE_COLOURS[2] == "#ff3b30"


@pytest.mark.parametrize("occupied", [1, 2, 3])
def test_lungs_of_few_slices_are_shown_in_as_many(tmp_path, tiny_model, scan, occupied):
    ct, lobes = scan
    few = lobes.array.copy()
    few[2 + occupied :] = 0
    segmentation = LesionSegmenter(tiny_model, device=torch.device("cpu"), memory_gb=1.0).segment(
        ct, lobes.with_array(few)
    )
    draw_overview(ct, segmentation, tmp_path / "few.png")
    parts = Parts(ct.array, few, np.zeros_like(few), (2.0, 1.5, 1.5))
    assert _informative_slices(parts, axis=0) == list(range(2, 2 + occupied))


def test_slices_are_ordered_and_go_where_the_lesion_is():
    lobes = np.ones((40, 10, 10), dtype=np.uint8)
    labels = np.zeros_like(lobes)
    labels[3, 2:5, 2:5] = 1
    slices = _informative_slices(Parts(lobes, lobes, labels, (1.0, 1.0, 1.0)), axis=0)
    assert slices[0] == 3 and slices == sorted(slices) and len(set(slices)) == 4
