from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

import training.pseudo
from algorithm.images import Geometry, Volume
from algorithm.preprocess import covering_grid, resample
from training.cases import Case, Split, read_cases
from training.chunks import cut_lobe
from training.dram import DramNetwork, Drams
from training.files import load_array
from training.parallel import Workers
from training.prepare import prepare, prepared
from training.pseudo import LESION, VESSEL, pseudo, pseudo_labels, scan_dram
from training.scan_maps import ensemble_sizes, scan_map
from training.settings import PseudoSettings
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


AS_IN_THE_PAPER = PseudoSettings(fit_scores=False)


def case_of(split: str) -> Case:
    """Left upper lobe 0, right middle lobe 3, the others without a score."""
    nowhere = Path("nowhere")
    return Case("c", nowhere, nowhere, {1: 0, 5: 3}, lesions=None, vessels=None, split=split)


@pytest.mark.parametrize(("split", "in_healthy_lobe"), [("train", 0), ("validation", LESION), ("test", LESION)])
def test_labels(split, in_healthy_lobe):
    dram = np.array([[[0.9, 0.9, 0.5, 0.9, 0.1, 0.9, 0.9, 0.0]]], dtype=np.float32)
    lobes = np.array([[[1, 5, 5, 5, 5, 2, 1, 0]]], dtype=np.uint8)
    vessels = np.array([[[0, 0, 0, 1, 1, 0, 1, 0]]], dtype=np.uint8)
    labels = pseudo_labels(dram, case_of(split), lobes=lobes, vessels=vessels, settings=AS_IN_THE_PAPER)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[[in_healthy_lobe, LESION, 0, VESSEL, VESSEL, LESION, VESSEL, 0]]]


FITTED = PseudoSettings()


def labelled(dram: list[float], score: int, *, vessels: int = 0, split: Split = "train") -> list[int]:
    """Labels of one lobe, whose first voxels are vessels."""
    nowhere = Path("nowhere")
    case = Case("c", nowhere, nowhere, {4: score}, lesions=None, vessels=None, split=split)
    probability = np.array([[dram]], dtype=np.float32)
    lobes = np.full(probability.shape, 4, dtype=np.uint8)
    of_vessels = np.zeros_like(lobes)
    of_vessels[..., :vessels] = 1
    labels = pseudo_labels(probability, case, lobes=lobes, vessels=of_vessels, settings=FITTED)
    return np.flatnonzero(labels[0, 0] == LESION).tolist()


RISING = [k / 100 for k in range(100)]  # above 0.5 from voxel 51 on


@pytest.mark.parametrize(("score", "share"), [(0, 0), (1, 4), (2, 20), (3, 44), (4, 56), (5, 81)])
def test_the_share_of_lesion_suits_the_score(score, share):
    """Taken for 2 to 4 %, 10 to 20 %, 31 to 44 %, 56 to 69 %, 81 to 94 %: the likeliest voxels."""
    assert labelled(RISING, score) == list(range(100 - share, 100))


def test_a_share_that_suits_the_score_is_left_alone():
    assert labelled([p + 0.1 for p in RISING], 4) == list(range(41, 100))


def test_vessels_are_no_lesion_but_count_as_lobe():
    """56 of 100 voxels, of the 60 that are no vessel; and of 50, no more than there are."""
    assert labelled(RISING, 4, vessels=40) == list(range(44, 100))
    assert labelled(RISING, 5, vessels=50) == list(range(50, 100))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_scores_that_are_to_be_predicted_are_not_looked_at(split):
    assert labelled(RISING, 5, split=split) == list(range(51, 100))


def test_voxels_of_one_probability_are_not_all_taken():
    assert len(labelled([0.9] * 100, 2)) == 20
    assert len(labelled([0.1] * 100, 2)) == 10


@pytest.fixture
def run(phantoms, tiny_config, tmp_path, monkeypatch) -> Run:
    """A run whose network finds lesions everywhere, at 0.9, and whose vessels are every third slice."""

    class Everywhere(torch.nn.Module):
        def forward(self, image, mask):
            return Drams(torch.full_like(image, -9.0), torch.full_like(image, np.log(9.0)))

    monkeypatch.setattr(training.pseudo, "trained_network", lambda run: Everywhere())
    monkeypatch.setattr(training.pseudo, "scan_vessels", third_slices)
    config = tiny_config.model_copy(
        update={"pseudo": tiny_config.pseudo.model_copy(update={"fit_scores": AS_IN_THE_PAPER.fit_scores})}
    )
    run = Run(phantoms, tmp_path, config, device="cpu", workers=Workers(1))
    execute(run, PREPARE)
    return run


def third_slices(run, case):
    vessels = np.zeros_like(prepared(run, case).array("scan_lobes"))
    vessels[::3] = prepared(run, case).array("scan_lobes")[::3] > 0
    return vessels


def test_stage_labels_every_case(run):
    execute(run, PSEUDO)
    cases = read_cases(run.data)
    assert run.record("pseudo")["results"] == {"cases": len(cases)}
    assert any(score == 0 for case in cases if case.split == "train" for score in case.scores.values())
    for case in cases:
        lobes = prepared(run, case).array("scan_lobes")
        dram, labels = (load_array(run.folder("pseudo") / f"{case.name}_{name}.npy") for name in ("dram", "labels"))
        assert dram.dtype == np.float16 and not dram[lobes == 0].any()
        np.testing.assert_allclose(dram[lobes > 0], 0.9, atol=1e-3)
        for label in np.unique(lobes):
            healthy = label == 0 or (case.split == "train" and case.scores.get(label) == 0)
            of_lobe = np.where(lobes == label, labels, 255)
            vessel = VESSEL if label else 0
            assert set(np.unique(of_lobe[::3])) <= {vessel, 255}
            assert set(np.unique(np.delete(of_lobe, np.s_[::3], axis=0))) <= {0 if healthy else LESION, 255}


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
    folder, names = run.directory / "pseudo", [case.name for case in read_cases(run.data)]
    assert [path.name for path in folder.glob("*_labels.npy")] == [f"{names[0]}_labels.npy"]
    execute(run, PSEUDO)
    assert asked == [*names[:2], *names[1:]]
    assert len(list(folder.glob("*_labels.npy"))) == len(list(folder.glob("*_dram.npy"))) == len(names)


def test_labels_without_their_dram_are_made_again(run):
    execute(run, PSEUDO)
    name = read_cases(run.data)[0].name
    path = run.folder("pseudo") / f"{name}_dram.npy"
    path.unlink()
    pseudo(run, path.parent)
    assert path.is_file()
