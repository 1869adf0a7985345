import numpy as np
import pytest
import torch

from training.chunks import take
from training.prepare import PreparedCase
from training.segment import LabelledScan, random_crop
from training.settings import SegmentSettings


def test_take_fills_with_zeros_outside():
    array = np.arange(1, 28).reshape(3, 3, 3)
    cube = take(array, (0, 1, 2), 4)
    assert cube.shape == (4, 4, 4)
    assert (cube[2:, 1:4, :3] == array[:2, :, :3]).all()
    assert cube.sum() == array[:2, :, :].sum()


@pytest.mark.parametrize("centre", [(-9, 0, 0), (20, 1, 1)])
def test_take_of_a_place_outside_is_empty(centre):
    assert take(np.ones((3, 3, 3)), centre, 4).sum() == 0


@pytest.fixture
def scan(tmp_path) -> LabelledScan:
    """Intensity that names its own place, two lobes, and one lesion voxel."""
    shape = (30, 40, 50)
    lobes = np.zeros(shape, dtype=np.uint8)
    lobes[5:25, 5:35, 5:20], lobes[5:25, 5:35, 30:45] = 1, 3
    classes = np.zeros(shape, dtype=np.uint8)
    classes[20, 30, 40] = 2
    np.save(tmp_path / "scan_image.npy", np.arange(lobes.size, dtype=np.float32).reshape(shape))
    np.save(tmp_path / "scan_lobes.npy", lobes)
    np.save(tmp_path / "labels.npy", classes)
    return LabelledScan(PreparedCase("a", tmp_path), tmp_path / "labels.npy")


def test_image_and_labels_of_a_crop_are_the_same_place(scan):
    crop = random_crop(scan, SegmentSettings(crop_size=92, lesion_share=0.0), np.random.default_rng(0))
    assert crop.image.shape == (92,) * 3 and crop.labels.shape == crop.inside.shape == (4,) * 3
    centre = crop.image[44:48, 44:48, 44:48]
    lobes = torch.from_numpy(scan.case.array("scan_lobes")).flatten()
    assert torch.equal(crop.inside, lobes[centre.long()] > 0)
    assert crop.inside[2, 2, 2]  # centred on a lobe voxel


def test_crops_can_be_centred_on_lesion(scan):
    for seed in range(5):
        crop = random_crop(scan, SegmentSettings(crop_size=92, lesion_share=1.0), np.random.default_rng(seed))
        assert crop.labels[2, 2, 2] == 2 and (crop.labels == 2).sum() == 1


def test_a_healthy_scan_gives_crops_too(scan):
    np.save(scan.labels, np.zeros((30, 40, 50), dtype=np.uint8))
    crop = random_crop(scan, SegmentSettings(crop_size=92, lesion_share=1.0), np.random.default_rng(0))
    assert crop.labels.sum() == 0 and crop.inside[2, 2, 2]
