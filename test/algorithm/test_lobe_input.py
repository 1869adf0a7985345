from __future__ import annotations

import numpy as np
import pytest

from algorithm.images import Geometry, Volume
from algorithm.lobe_input import lobe_network_input

IDENTITY = (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)
WINDOW = (-1024.0, 400.0)


def scan(array: np.ndarray, spacing_zyx_mm: tuple[float, float, float]) -> Volume:
    return Volume(array.astype(np.int16), Geometry(array.shape, spacing_zyx_mm, (1.0, 2.0, 3.0), IDENTITY))


@pytest.mark.parametrize("size", [(98, 9, 10), (97, 10, 7), (2, 1, 5)])
def test_the_last_slices_count_whatever_their_number(size):
    image = lobe_network_input(scan(np.full(size, -312.0), (0.5, 0.7, 0.7)), spacing_mm=1.5, window_hu=WINDOW).array
    assert image == pytest.approx(0.5, abs=1e-3)


def test_thin_slices_are_averaged():
    rng = np.random.default_rng(0)
    image = lobe_network_input(
        scan(rng.normal(-500, 100, (60, 40, 40)), (0.5, 0.75, 0.75)), spacing_mm=1.5, window_hu=WINDOW
    )
    assert image.geometry.size_zyx == (20, 20, 20) and image.geometry.spacing_zyx_mm == (1.5, 1.5, 1.5)
    assert image.array.std() == pytest.approx(100 / (400 + 1024) / 12**0.5, rel=0.05)
