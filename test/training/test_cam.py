from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

import training.cam
from algorithm.errors import InputError
from algorithm.images import Geometry, Volume
from training.cam import CamNetwork, cam, min_max, raw_mask, refined_mask, scan_cam
from training.cases import of_split, read_cases
from training.chunks import cut_lobe
from training.files import load_array
from training.lobe_batches import ScoredLobe
from training.loop import load_trained
from training.otsu import otsu_threshold
from training.parallel import Workers
from training.prepare import prepare, prepared
from training.settings import CamSettings
from training.stages import Run, Stage, execute

CPU = torch.device("cpu")
PREPARE = Stage("prepare", "", (), lambda c: c.prepare, prepare)
CAM = Stage("cam", "", (PREPARE,), lambda c: c.cam, cam)


@pytest.fixture(scope="module")
def run(phantoms, tiny_config, tmp_path_factory) -> Run:
    run = Run(phantoms, tmp_path_factory.mktemp("run"), tiny_config, device="cpu", workers=Workers(1))
    execute(run, PREPARE)
    execute(run, CAM)
    return run


def parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def test_network_is_as_large_as_the_papers():
    network = CamNetwork(width=32)
    assert parameters(network.down, network.bottom) == 7_026_336
    assert parameters(network.classify) == 1_026  # 512 weights and a bias for each of two classes
    assert parameters(network) == 7_026_336 + 1_026


def test_pooling_is_the_mean_over_the_lobe():
    """The mask covers one coarse voxel whole and half of its neighbour, which then counts half."""
    network = CamNetwork(width=2).eval()
    image = torch.rand(1, 1, 16, 16, 24, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros_like(image)
    mask[..., :8, :8, :12] = 1
    with torch.inference_mode():
        logits, class_map = network(image, mask)
        whole, _ = network(image, torch.ones_like(mask))
    assert class_map.shape == (1, 2, 2, 2, 3)
    expected = (class_map[..., 0, 0, 0] + 0.5 * class_map[..., 0, 0, 1]) / 1.5
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(whole, class_map.mean(dim=(2, 3, 4)))
    assert not torch.allclose(logits, whole)


def test_size_that_three_poolings_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        CamNetwork(width=1)(torch.zeros(1, 1, 16, 20, 16), torch.ones(1, 1, 16, 20, 16))


def test_min_max_takes_in_the_lobes_alone():
    values = np.array([[[-100, -2, 0, 6, 100]]], dtype=np.float32)
    inside = np.array([[[False, True, True, True, False]]])
    assert min_max(values, inside).tolist() == [[[0, 0, 0.25, 1, 0]]]


def test_min_max_of_a_constant_or_of_nothing_is_zero():
    values = np.full((1, 1, 3), 0.3, dtype=np.float32)
    assert not min_max(values, np.array([[[True, True, False]]])).any()
    assert not min_max(values, np.zeros((1, 1, 3), dtype=bool)).any()


def test_raw_mask_divides_the_values_in_the_lobes():
    """The values outside would move the threshold above all values inside."""
    activation = np.array([[[0.0, 0.1, 0.2, 0.8, 0.9, 50.0, 51.0]]], dtype=np.float16)
    lobes = np.array([[[1, 1, 5, 5, 1, 0, 0]]], dtype=np.uint8)
    assert raw_mask(activation, lobes).tolist() == [[[False, False, False, True, True, False, False]]]


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_map_has_no_lesion(value):
    activation, lobes = np.full((2, 3, 4), value, dtype=np.float16), np.ones((2, 3, 4), dtype=np.uint8)
    vessels = np.zeros_like(lobes)
    intensity = np.random.default_rng(0).random((2, 3, 4))
    assert not raw_mask(activation, lobes).any()
    assert not refined_mask(activation, lobes, intensity=intensity, vessels=vessels, factor=1.0).any()


def test_no_lobe_no_lesion():
    activation, lobes = np.random.default_rng(0).random((2, 3, 4)), np.zeros((2, 3, 4), dtype=np.uint8)
    assert not raw_mask(activation, lobes).any()
    assert not refined_mask(activation, lobes, intensity=activation, vessels=lobes, factor=1.0).any()
    assert otsu_threshold(activation[lobes > 0]) == float("inf")


def test_refined_mask_wants_activation_density_and_no_vessel():
    activation = np.array([[[0.9, 0.9, 0.9, 0.1, 0.1, 0.1]]], dtype=np.float32)
    intensity = np.array([[[0.8, 0.8, 0.2, 0.8, 0.2, 0.2]]], dtype=np.float32)
    vessels = np.array([[[0, 1, 0, 0, 0, 0]]], dtype=np.uint8)
    lobes = np.ones((1, 1, 6), dtype=np.uint8)
    refined = refined_mask(activation, lobes, intensity=intensity, vessels=vessels, factor=1.0)
    assert refined.tolist() == [[[True, False, False, False, False, False]]]


def test_attenuation_factor_counts_from_the_lower_end_of_the_window():
    """Otsu's threshold is just above the dark values, -600 HU; at a factor of 0.75 it is some -750 HU."""
    hu = np.array([[[-600.0, -600.0, -800.0, 0.0, 0.0]]])
    intensity = ((hu + 1200) / 1500).astype(np.float32)
    activation = np.array([[[1.0, 0.0, 1.0, 1.0, 0.0]]])
    lobes, vessels = np.ones((1, 1, 5), dtype=np.uint8), np.zeros((1, 1, 5), dtype=np.uint8)
    threshold_hu = otsu_threshold(intensity) * 1500 - 1200
    assert -600 <= threshold_hu < -580
    for factor, expected in ((1.0, [0, 0, 0, 1, 0]), (0.75, [1, 0, 0, 1, 0]), (0.6, [1, 0, 1, 1, 0])):
        refined = refined_mask(activation, lobes, intensity=intensity, vessels=vessels, factor=factor)
        assert refined[0, 0].astype(int).tolist() == expected


class BrightIsDiseased(torch.nn.Module):
    """The lesion map is the mean intensity minus 10; a lobe is diseased where it is bright."""

    def forward(self, image, mask):
        lesion = functional.avg_pool3d(image, 8) - 10
        brightness = (image * mask).sum() / mask.sum()
        return torch.stack([torch.tensor(0.5), brightness])[None], torch.cat([-lesion, lesion], dim=1)


@pytest.fixture
def dim_and_bright():
    """Caches of a scan of two lobes side by side, of intensity 0.3 and 0.9."""
    geometry = Geometry((24, 24, 48), (2.0, 2.0, 2.0), (-20.0, 5.0, 100.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    lobes = np.zeros(geometry.size_zyx, dtype=np.uint8)
    lobes[4:20, 4:20, 4:24], lobes[4:20, 4:20, 24:44] = 1, 3
    ct = Volume(np.where(lobes == 1, -750, 150).astype(np.int16), geometry)
    labels = {"lul": 1, "rul": 3}
    return SimpleNamespace(
        array=lambda name: {"scan_lobes": lobes}[name],
        geometry=lambda name: {"scan": geometry}[name],
        chunk=lambda key: cut_lobe(ct, Volume(lobes, geometry), labels[key], spacing_mm=2.0, margin_mm=4.0),
    )


@pytest.mark.parametrize("skip", [False, True])
def test_map_is_scaled_over_all_lobes_and_healthy_ones_can_be_left_out(dim_and_bright, skip):
    settings = CamSettings(chunk_size=32, skip_negative_lobes=skip)
    scaled = scan_cam(BrightIsDiseased(), dim_and_bright, settings, scales=(1.0, 1.5), device=CPU)
    lobes = dim_and_bright.array("scan_lobes")
    assert scaled.dtype == np.float32 and scaled.shape == lobes.shape
    assert not scaled[lobes == 0].any()
    assert scaled.max() == scaled[lobes == 3].max() == 1
    assert scaled[lobes == 1].max() == 0 if skip else 0.2 < scaled[lobes == 1].max() < 0.5


def test_stage_maps_the_test_cases(run):
    folder, cases = run.folder("cam"), read_cases(run.data)
    held_out = of_split(cases, "test")
    assert {path.name for path in folder.glob("*.npy")} == {f"{case.name}_cam.npy" for case in held_out}
    for case in held_out:
        scaled, lobes = load_array(folder / f"{case.name}_cam.npy"), prepared(run, case).array("scan_lobes")
        assert scaled.dtype == np.float16 and scaled.shape == lobes.shape
        assert scaled[lobes > 0].min() == 0 and scaled.max() == 1
        assert not scaled[lobes == 0].any()
    scores = [score for case in of_split(cases, "train") for score in case.scores.values()]
    results = run.record("cam")["results"]
    assert results == {"lobes": len(scores), "diseased_lobes": sum(s > 0 for s in scores), "maps": len(held_out)}


def test_maps_come_from_the_trained_network(run):
    case = of_split(read_cases(run.data), "test")[0]
    network = load_trained(CamNetwork(width=run.config.cam.width), run.folder("cam"))
    again = scan_cam(network, prepared(run, case), run.config.cam, scales=run.config.pseudo.scales, device=CPU)
    stored = load_array(run.folder("cam") / f"{case.name}_cam.npy")
    np.testing.assert_allclose(stored, again, atol=1e-3)


def test_resumed_stage_makes_the_missing_map_and_trains_no_more(run):
    folder = run.folder("cam")
    (missing,) = folder.glob("*_cam.npy")
    before, log, made = load_array(missing), (folder / "log.csv").read_bytes(), missing.stat().st_mtime_ns
    cam(run, folder)
    assert missing.stat().st_mtime_ns == made
    missing.unlink()
    cam(run, folder)
    assert (load_array(missing) == before).all()
    assert (folder / "log.csv").read_bytes() == log and missing.stat().st_mtime_ns != made


@pytest.mark.parametrize(("scores", "count"), [((2, 5), 2), ((0, 0), 0)])
def test_one_class_is_not_enough(run, tmp_path, monkeypatch, scores, count):
    lobes = [ScoredLobe(prepared(run, read_cases(run.data)[0]), "lul", score) for score in scores]
    monkeypatch.setattr(training.cam, "scored_lobes", lambda run, cases: lobes)
    with pytest.raises(InputError, match=f"{count} of 2 scored training lobes have a lesion, expected some with"):
        cam(run, tmp_path)
