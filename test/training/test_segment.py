import itertools
import math
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import training.segment
from algorithm.engine import make_network
from algorithm.errors import InputError
from algorithm.images import Volume
from algorithm.network import UNet3D
from training.batches import Batches
from training.borders import MARGIN_BORDERS
from training.cases import of_split, read_cases
from training.chunks import take
from training.prepare import PreparedCase, prepared
from training.segment import (
    Crop,
    LabelledScan,
    _chosen_margin,
    augmented_crops,
    labelled_scans,
    mean_loss,
    random_crop,
)
from training.settings import SegmentSettings

CPU = torch.device("cpu")


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
    crop = random_crop(scan, 0, settings=SegmentSettings(crop_size=92, lesion_share=0.0), seed=0)
    assert crop.image.shape == (92,) * 3 and crop.labels.shape == crop.inside.shape == (4,) * 3
    centre = crop.image[44:48, 44:48, 44:48]
    lobes = torch.from_numpy(scan.case.array("scan_lobes")).flatten()
    assert torch.equal(crop.inside, lobes[centre.long()] > 0)
    assert crop.inside[2, 2, 2]  # centred on a lobe voxel


def test_crops_can_be_centred_on_lesion(scan):
    for position in range(5):
        crop = random_crop(scan, position, settings=SegmentSettings(crop_size=92, lesion_share=1.0), seed=0)
        assert crop.labels[2, 2, 2] == 2 and (crop.labels == 2).sum() == 1


def test_a_healthy_scan_gives_crops_too(scan):
    np.save(scan.labels, np.zeros((30, 40, 50), dtype=np.uint8))
    crop = random_crop(scan, 0, settings=SegmentSettings(crop_size=92, lesion_share=1.0), seed=0)
    assert crop.labels.sum() == 0 and crop.inside[2, 2, 2]


def test_processes_see_together_what_one_with_all_of_the_batch_sees(scan):
    read = partial(random_crop, settings=SegmentSettings(crop_size=92), seed=7)
    one = Batches([scan] * 3, read, size=4, seed=7)[2]
    two = [Batches([scan] * 3, read, size=2, seed=7)[2 * 2 + process] for process in (0, 1)]
    assert [crop.position for crop in one] == [8, 9, 10, 11] == [crop.position for crops in two for crop in crops]
    whole = augmented_crops(one, seed=7, device=CPU)
    halves = [augmented_crops(crops, seed=7, device=CPU) for crops in two]
    for parts in zip(whole, *halves, strict=True):
        assert torch.equal(parts[0], torch.cat(parts[1:]))
    assert len({image.sum().item() for image in whole[0]}) > 1


def coded_crop(position: int) -> Crop:
    """Labels and lobe at random, and an image that tells them apart where they lie: in its middle 12 voxels."""
    rng = np.random.default_rng(0)
    labels, inside = rng.integers(0, 3, (12, 12, 12)), rng.random((12, 12, 12)) < 0.5
    image = np.zeros((100, 100, 100), dtype=np.float32)
    image[44:56, 44:56, 44:56] = (1 + 2 * labels + inside) / 10
    return Crop(torch.from_numpy(image), torch.from_numpy(labels), torch.from_numpy(inside), position)


def test_labels_and_lobe_are_mirrored_with_the_image():
    """Each crop on its own; contrast changes the levels of the middle, but not their order."""
    original, seen = coded_crop(0), set()
    mirrored = {axes: original.labels.flip(axes) for n in range(4) for axes in itertools.combinations(range(3), n)}
    image, labels, inside = augmented_crops([coded_crop(position) for position in range(24)], seed=1, device=CPU)
    assert image.shape == (24, 1, 100, 100, 100) and labels.dtype == torch.int64 and inside.dtype == torch.bool
    for k in range(24):
        middle = image[k, 0, 44:56, 44:56, 44:56]
        levels, rank = middle.unique(return_inverse=True)
        assert len(levels) == 6 and torch.equal(rank, 2 * labels[k] + inside[k])
        assert image[k].count_nonzero() == middle.numel()
        seen |= {axes for axes, expected in mirrored.items() if torch.equal(labels[k], expected)}
    assert len(seen) == 8  # of 24 draws; one of the 8 is missing by chance in 1 of 3 sequences, not in this one


def test_every_crop_counts_alike_however_much_of_it_lies_in_a_lobe():
    """One voxel without a clue, ln 3, and seven that are right."""
    labels = torch.ones(2, 2, 2, 2, dtype=torch.int64)
    logits = torch.zeros(2, 3, 2, 2, 2)
    logits[1, 1] = 100.0
    inside = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    inside[0, 0, 0, 0] = True
    inside[1] = True
    inside[1, 0, 0, 0] = False
    logits[1, :, 0, 0, 0] = torch.tensor([100.0, 0.0, 0.0])  # wrong, and outside
    assert mean_loss(logits, labels, inside, beta=0.8).item() == pytest.approx(math.log(3) / 2)


def test_training_cases_without_reference_labels_are_refused(ready, tmp_path):
    shutil.copytree(ready.directory / "prepare", tmp_path / "prepare")
    run = replace(ready, directory=tmp_path)
    names = [case.name for case in of_split(read_cases(ready.data), "train")]
    assert [scan.case.name for scan in labelled_scans(run, "reference")] == names and len(names) == 3
    for name in names[:2]:
        (tmp_path / "prepare" / name / "scan_classes.npy").unlink()
    message = f"reference labels: {names[0]}, {names[1]} have none in cases.csv; fill the column lesions"
    with pytest.raises(InputError, match=message):
        labelled_scans(run, "reference")


def test_lesion_begins_where_the_scores_of_validation_lobes_agree(ready, monkeypatch):
    """A network whose margin is the image: of its borders the one that is best, unless the settings have another."""

    def image_itself(network, case):
        assert (network.width, network.device.type) == (1, "cpu")
        return Volume(case.array("scan_image").astype(np.float32), case.geometry("scan"))

    asked = []

    def best(maps, borders, otherwise):
        asked.extend((values, lobes, scores) for values, lobes, scores in maps)
        assert (borders, otherwise) == (MARGIN_BORDERS, 0.0)
        return -0.3

    monkeypatch.setattr(training.segment, "scan_margin", image_itself)
    monkeypatch.setattr(training.segment, "best_border", best)
    network = make_network(UNet3D(out_channels=3, width=1, padding="valid").eval(), device=torch.device("cpu"))
    assert _chosen_margin(ready, network) == -0.3
    (case,) = of_split(read_cases(ready.data), "validation")
    ((values, lobes, scores),) = asked
    cache = prepared(ready, case)
    np.testing.assert_array_equal(values, cache.array("scan_image").astype(np.float32))
    np.testing.assert_array_equal(lobes, cache.array("scan_lobes"))
    assert scores == case.scores
    fixed = ready.config.model_copy(update={"segment": SegmentSettings(lesion_margin=0.25)})
    assert _chosen_margin(replace(ready, config=fixed), network) == 0.25
