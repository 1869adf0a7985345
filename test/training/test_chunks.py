import numpy as np
import pytest
import torch

from algorithm.images import Geometry, Volume
from training.chunks import cut_lobe, resize

CPU = torch.device("cpu")


@pytest.fixture
def scan() -> tuple[Volume, Volume]:
    """Two box-shaped lobes side by side; the second is bright."""
    geometry = Geometry((30, 48, 60), (2.0, 0.8, 0.8), (-20.0, 5.0, 100.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    lobes = np.zeros(geometry.size_zyx, dtype=np.uint8)
    lobes[5:25, 8:40, 10:30], lobes[5:25, 8:40, 30:50] = 1, 2
    hu = np.where(lobes == 2, 300, -850).astype(np.int16)
    return Volume(hu, geometry), Volume(lobes, geometry)


def test_chunk_has_its_margin_and_nothing_of_the_neighbour(scan):
    chunk = cut_lobe(*scan, 1, spacing_mm=1.2, margin_mm=5.0)
    size_mm = [n * 1.2 for n in chunk.mask.shape]
    lobe_mm = (20 * 2.0, 32 * 0.8, 20 * 0.8)
    for size, lobe, native in zip(size_mm, lobe_mm, (2.0, 0.8, 0.8), strict=True):
        assert lobe + 10 - 1.2 <= size <= lobe + 2 * (5 + native) + 1.2
    assert chunk.image.max() < 0.25  # (-850 + 1200) / 1500; the bright lobe beside it would be 1
    assert (chunk.image[chunk.mask == 0] == 0).all()


def test_margin_is_clipped_to_the_scan(scan):
    chunk = cut_lobe(*scan, 1, spacing_mm=1.2, margin_mm=500.0)
    assert [n * 1.2 for n in chunk.mask.shape] == pytest.approx([60, 38.4, 48], abs=1.2)


def test_resizing_keeps_the_fraction_of_the_lobe():
    """The supervision depends on it: a lesion of a third stays a third however the chunk is stretched."""
    mask = np.zeros((31, 50, 22), dtype=np.uint8)
    mask[4:28, 5:45, 3:19] = 1
    image = np.zeros(mask.shape, dtype=np.float16)
    image[4:12, 5:45, 3:19] = 1.0

    for jitter in (1.0, 0.93, 1.08):
        resized, inside = resize(torch.from_numpy(image), torch.from_numpy(mask), 48, jitter=jitter)
        assert resized.shape == inside.shape == (1, 1, 48, 48, 48)
        assert (resized[inside == 0] == 0).all()
        assert (resized.sum() / inside.sum()).item() == pytest.approx(1 / 3, abs=0.02)
