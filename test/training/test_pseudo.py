from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

import training.pseudo
from algorithm.images import Geometry, Volume
from algorithm.preprocess import covering_grid, resample
from algorithm.severity import SCORE_INTERVALS
from training.cases import Case, read_cases
from training.chunks import cut_lobe
from training.dram import DramNetwork, Drams
from training.files import load_array
from training.parallel import Workers
from training.prepare import prepare, prepared
from training.pseudo import LESION, VESSEL, chosen_threshold, pseudo, pseudo_labels, scan_dram
from training.scan_maps import ensemble_sizes, scan_map
from training.stages import Run, Stage, execute

CPU = torch.device("cpu")
PREPARE = Stage("prepare", "", (), lambda c: c.prepare, prepare)
PSEUDO = Stage("pseudo", "", (PREPARE,), lambda c: c.pseudo, pseudo)


@pytest.mark.parametrize(
    ("chunk_size", "scales", "sizes"),
    [
        (80, (0.8, 1.0, 1.2, 1.5), [64, 80, 96, 120]),
        (80, (1.06,), [88]),  # 84.8 is nearer to 88 than to 80
        (32, (1.2, 1.25, 0.9), [40, 32]),  # 38.4 and 40 both become 40
        (16, (0.2,), [16]),
    ],
)
def test_sizes_are_multiples_of_8_and_none_comes_twice(chunk_size, scales, sizes):
    assert ensemble_sizes(chunk_size, scales) == sizes


@pytest.fixture
def two_lobes():
    """Caches of a scan of two boxes side by side whose HU rise by 12, 6 and 5 a native voxel along z, y and x."""
    geometry = Geometry((30, 48, 60), (2.0, 0.8, 0.8), (-20.0, 5.0, 100.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    labels = np.zeros(geometry.size_zyx, dtype=np.uint8)
    labels[5:25, 8:40, 10:30], labels[5:25, 8:40, 30:50] = 1, 5
    z, y, x = np.indices(labels.shape)
    lobes, ct = Volume(labels, geometry), Volume((-1100 + 12 * z + 6 * y + 5 * x).astype(np.float32), geometry)
    grid = covering_grid(geometry, spacing_mm=1.5)
    on_grid = resample(lobes, grid, "nearest").array
    by_key = {"lul": 1, "rml": 5}
    return SimpleNamespace(
        array=lambda name: {"scan_lobes": on_grid}[name],
        geometry=lambda name: {"scan": grid}[name],
        chunk=lambda key: cut_lobe(ct, lobes, by_key[key], spacing_mm=1.2, margin_mm=5.0),
    )


def test_image_comes_back_where_it_was(two_lobes):
    """A linear function survives linear resampling, so each voxel shows where its value came from."""
    seen = []

    def image_itself(image, mask):
        seen.append(tuple(image.shape))
        return image

    whole = scan_map(image_itself, two_lobes, chunk_size=40, scales=(0.8, 1.0, 1.2, 1.5), device=CPU)
    assert seen == [(1, 1, n, n, n) for n in (32, 40, 48, 64)] * 2  # 1.5 * 40 = 60 is as near to 56
    z, y, x = np.indices(whole.shape)  # voxel k of the grid has its centre at (k + 1/2) 1.5 mm from the scan's edge
    native = [(index + 0.5) * 1.5 / spacing - 0.5 for index, spacing in zip((z, y, x), (2.0, 0.8, 0.8), strict=True)]
    expected = (-1100 + 12 * native[0] + 6 * native[1] + 5 * native[2] + 1200) / 1500
    lobes = two_lobes.array("scan_lobes")
    assert whole.dtype == np.float32 and not whole[lobes == 0].any()
    for label in (1, 5):
        deep = binary_erosion(lobes == label, iterations=3)
        np.testing.assert_allclose(whole[deep], expected[deep], atol=0.002)


def test_maps_of_all_sizes_count_alike(two_lobes):
    values = {32: 0.1, 40: 0.2, 48: 0.9}
    whole = scan_map(
        lambda image, mask: torch.full_like(image, values[image.shape[-1]]),
        two_lobes,
        chunk_size=40,
        scales=(0.8, 1.0, 1.2),
        device=CPU,
    )
    deep = binary_erosion(two_lobes.array("scan_lobes") == 1, iterations=3)
    np.testing.assert_allclose(whole[deep], 0.4, atol=1e-6)


def test_nothing_leaks_in_from_outside_the_lobe(two_lobes):
    whole = scan_map(
        lambda image, mask: torch.where(mask > 0, 0.7, -5.0), two_lobes, chunk_size=40, scales=(0.8, 1.2), device=CPU
    )
    lobes = two_lobes.array("scan_lobes")
    np.testing.assert_allclose(whole[lobes > 0], 0.7, atol=0.05)
    assert not whole[lobes == 0].any()


def test_dram_is_the_mean_probability_of_the_refined_logits(two_lobes):
    """Of 1/2 and 3/4: 5/8. The mean of their logits would give 0.634."""

    class BySize(torch.nn.Module):
        def forward(self, image, mask):
            refined = torch.full_like(image, {32: 0.0, 40: np.log(3.0)}[image.shape[-1]])
            return Drams(torch.full_like(image, -50.0), refined)

    dram = scan_dram(BySize(), two_lobes, chunk_size=40, scales=(0.8, 1.0), device=CPU)
    deep = binary_erosion(two_lobes.array("scan_lobes") == 5, iterations=3)
    np.testing.assert_allclose(dram[deep], 0.625, atol=1e-6)


def test_dram_of_the_real_network_is_a_probability(two_lobes):
    network = DramNetwork(width=1, attention=True).eval()
    dram = scan_dram(network, two_lobes, chunk_size=16, scales=(1.0, 1.5), device=CPU)
    assert dram.dtype == np.float32 and 0 < dram[two_lobes.array("scan_lobes") > 0].min() and dram.max() < 1


def case_of(split: str) -> Case:
    """Left upper lobe 0, right middle lobe 3, the others without a score."""
    nowhere = Path("nowhere")
    return Case("c", nowhere, nowhere, {1: 0, 5: 3}, lesions=None, vessels=None, split=split)


@pytest.mark.parametrize(("split", "in_healthy_lobe"), [("train", 0), ("validation", LESION), ("test", LESION)])
def test_labels(split, in_healthy_lobe):
    dram = np.array([[[0.9, 0.9, 0.5, 0.9, 0.1, 0.9, 0.9, 0.0]]], dtype=np.float32)
    lobes = np.array([[[1, 5, 5, 5, 5, 2, 1, 0]]], dtype=np.uint8)
    vessels = np.array([[[0, 0, 0, 1, 1, 0, 1, 0]]], dtype=np.uint8)
    label = partial(pseudo_labels, dram, case_of(split), lobes=lobes, vessels=vessels, threshold=0.5)
    labels = label(vessel_wins=True)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[[in_healthy_lobe, LESION, 0, VESSEL, VESSEL, LESION, VESSEL, 0]]]
    labels = label(vessel_wins=False)
    in_vessel = in_healthy_lobe or VESSEL
    assert labels.tolist() == [[[in_healthy_lobe, LESION, 0, LESION, VESSEL, LESION, in_vessel, 0]]]


@pytest.fixture
def run(phantoms, tiny_config, tmp_path, monkeypatch) -> Run:
    """A run whose network finds lesions everywhere, at 0.9, and whose vessels are every third slice."""

    class Everywhere(torch.nn.Module):
        def forward(self, image, mask):
            return Drams(torch.full_like(image, -9.0), torch.full_like(image, np.log(9.0)))

    monkeypatch.setattr(training.pseudo, "trained_network", lambda run: Everywhere())
    monkeypatch.setattr(training.pseudo, "scan_vessels", third_slices)
    config = tiny_config.model_copy(update={"pseudo": tiny_config.pseudo.model_copy(update={"threshold": 0.5})})
    run = Run(phantoms, tmp_path, config, device="cpu", workers=Workers(1))
    execute(run, PREPARE)
    return run


def third_slices(run, case):
    vessels = np.zeros_like(prepared(run, case).array("scan_lobes"))
    vessels[::3] = prepared(run, case).array("scan_lobes")[::3] > 0
    return vessels


def test_stage_maps_every_case_and_labels_those_to_learn_from(run):
    execute(run, PSEUDO)
    cases = read_cases(run.data)
    assert run.record("pseudo")["results"] == {"cases": len(cases), "threshold": 0.5}
    assert any(score == 0 for case in cases if case.split == "train" for score in case.scores.values())
    for case in cases:
        lobes = prepared(run, case).array("scan_lobes")
        dram = load_array(run.folder("pseudo") / f"{case.name}_dram.npy")
        assert dram.dtype == np.float16 and not dram[lobes == 0].any()
        np.testing.assert_allclose(dram[lobes > 0], 0.9, atol=1e-3)
        if case.split == "test":
            continue
        labels = load_array(run.folder("pseudo") / f"{case.name}_labels.npy")
        for label in np.unique(lobes):
            healthy = label == 0 or (case.split == "train" and case.scores.get(label) == 0)
            of_lobe = np.where(lobes == label, labels, 255)
            vessel = VESSEL if label else 0
            assert set(np.unique(of_lobe[::3])) <= {vessel, 255}
            assert set(np.unique(np.delete(of_lobe, np.s_[::3], axis=0))) <= {0 if healthy else LESION, 255}


def test_the_threshold_is_the_one_that_suits_the_validation_lobes(run, tiny_config):
    """Maps of the validation case in which half of every lobe is at 0.6, and a share of what its score says."""
    free = replace(run, config=tiny_config)
    asked = []

    def dram(case):
        asked.append(case.split)
        lobes = prepared(run, case).array("scan_lobes")
        values = np.zeros(lobes.shape, dtype=np.float32)
        for label, score in case.scores.items():
            own = values[lobes == label]
            middle = sum(SCORE_INTERVALS[score]) / 2
            own[: len(own) // 2] = 0.6
            own[: round(middle * len(own))] = 0.9
            values[lobes == label] = own
        return values

    assert any(case.scores[label] < 3 for case in read_cases(run.data) for label in case.scores)
    assert chosen_threshold(free, dram) == 0.6
    assert set(asked) == {"validation"}
    assert chosen_threshold(run, dram) == 0.5


def test_killed_stage_goes_on_with_the_case_it_was_at(run, monkeypatch):
    asked = []

    def dies_at_the_second(run, case):
        asked.append(case.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return third_slices(run, case)

    monkeypatch.setattr(training.pseudo, "scan_vessels", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        execute(run, PSEUDO)
    folder, cases = run.directory / "pseudo", read_cases(run.data)
    names = [case.name for case in cases if case.split != "test"]
    assert [path.name for path in folder.glob("*_labels.npy")] == [f"{names[0]}_labels.npy"]
    execute(run, PSEUDO)
    assert asked == [*names[:2], *names[1:]]
    assert len(list(folder.glob("*_labels.npy"))) == len(names) < len(cases)
    assert len(list(folder.glob("*_dram.npy"))) == len(cases)


def test_labels_without_their_dram_are_made_again(run):
    execute(run, PSEUDO)
    name = read_cases(run.data)[0].name
    path = run.folder("pseudo") / f"{name}_dram.npy"
    path.unlink()
    pseudo(run, path.parent)
    assert path.is_file()
