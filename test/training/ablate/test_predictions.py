import json
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithm.errors import InputError
from algorithm.images import Volume
from algorithm.network import UNet3D
from algorithm.preprocess import bounding_box, covering_grid, crop, resample
from evaluation.metrics import iou
from training.ablate import predictions
from training.ablate.predictions import make_predictor, margin_of_mask, on_ct_grid
from training.ablate.rows import Row, table_rows
from training.cases import Case, Scan, of_split, read_cases, read_scan
from training.parallel import Workers
from training.prepare import prepare, prepared
from training.settings import TrainingConfig
from training.stages import Run


@pytest.fixture(scope="module")
def config(tiny_config) -> TrainingConfig:
    prepare = tiny_config.prepare.model_copy(update={"scan_spacing_mm": 3.0})
    pseudo = tiny_config.pseudo.model_copy(update={"threshold": 0.5})
    return tiny_config.model_copy(update={"prepare": prepare, "pseudo": pseudo})


@pytest.fixture(scope="module")
def caches(phantoms, config, tmp_path_factory) -> Path:
    """A prepared data set."""
    directory = tmp_path_factory.mktemp("run")
    (directory / "prepare").mkdir()
    prepare(Run(phantoms, directory, config, device="cpu", workers=Workers(1)), directory / "prepare")
    (directory / "prepare" / "done.json").write_text("{}")
    return directory


@pytest.fixture
def run(phantoms, config, caches, tmp_path) -> Run:
    (tmp_path / "prepare").symlink_to(caches / "prepare")
    return Run(phantoms, tmp_path, config, device="cpu")


@pytest.fixture(scope="module")
def case(phantoms) -> Case:
    return of_split(read_cases(phantoms), "test")[0]


@pytest.fixture(scope="module")
def scan(case) -> Scan:
    return read_scan(case)


def row(config: TrainingConfig, slug: str) -> Row:
    return next(row for row in table_rows(config) if row.slug == slug)


def done(run: Run, stage: str) -> Path:
    folder = run.directory / stage
    folder.mkdir()
    (folder / "done.json").write_text("{}")
    return folder


def reference(scan: Scan) -> np.ndarray:
    return (scan.lesions.array > 0) & (scan.lobes.array > 0)


def on_scan_grid(array: np.ndarray, run: Run, case: Case, scan: Scan) -> np.ndarray:
    """From the CT's grid to that of the prepared scan."""
    return resample(scan.ct.with_array(array.astype(np.float32)), prepared(run, case).geometry("scan"), "linear").array


def test_a_margin_comes_back_to_the_ct_where_it_is_positive(scan):
    """A margin that is linear in x is interpolated exactly, and is positive on one side of its plane."""
    box = bounding_box(scan.lobes.array)
    part = crop(scan.ct, box).geometry
    grid = covering_grid(part, spacing_mm=3.0)
    plane_mm = part.origin_xyz_mm[0] + 0.4 * part.size_zyx[2] * part.spacing_zyx_mm[2]
    x_mm = grid.origin_xyz_mm[0] + np.arange(grid.size_zyx[2]) * grid.spacing_zyx_mm[2]
    margin = np.broadcast_to((x_mm - plane_mm).astype(np.float32), grid.size_zyx)
    ct_x_mm = scan.ct.geometry.origin_xyz_mm[0] + np.arange(scan.ct.array.shape[2]) * scan.ct.geometry.spacing_zyx_mm[2]
    expected = np.broadcast_to(ct_x_mm > plane_mm, scan.ct.array.shape) & (scan.lobes.array > 0)
    lesions = on_ct_grid(Volume(np.ascontiguousarray(margin), grid), scan)
    assert expected.any() and np.array_equal(lesions, expected)


def test_a_mask_survives_the_way_to_the_ct(run, case, scan):
    mask = on_scan_grid(reference(scan), run, case, scan) > 0.5
    back = on_ct_grid(margin_of_mask(mask, prepared(run, case)), scan)
    assert iou(reference(scan), back) > 0.7  # on a grid of 3 mm


def test_a_mask_of_whole_lobes_keeps_their_rim(run, case, scan):
    cache = prepared(run, case)
    assert np.array_equal(on_ct_grid(margin_of_mask(cache.array("scan_lobes") > 0, cache), scan), scan.lobes.array > 0)


def test_the_threshold_row_finds_what_is_bright_in_the_lobes_and_no_vessel(
    run, config, case, scan, tmp_path, monkeypatch
):
    vessels = on_scan_grid(scan.vessels.array > 0, run, case, scan) > 0.5
    monkeypatch.setattr(predictions, "scan_vessels", lambda run, case: vessels.astype(np.uint8))
    lesions = make_predictor(run, row(config, "threshold"), tmp_path)(case, scan)
    known = on_ct_grid(margin_of_mask(vessels, prepared(run, case)), scan)
    inside = (scan.lobes.array > 0) & ~known
    assert known.any()
    assert lesions.any() and not lesions[~inside].any()
    assert scan.ct.array[lesions].min() > scan.ct.array[inside & ~lesions].max()


@pytest.fixture
def cam(run, case, scan) -> np.ndarray:
    """A map that is high in lesions and, as high, at vessels."""
    lesions = on_scan_grid(reference(scan), run, case, scan) > 0.5
    vessels = on_scan_grid(scan.vessels.array > 0, run, case, scan) > 0.5
    inside = prepared(run, case).array("scan_lobes") > 0
    array = np.where((lesions | vessels) & inside, 0.9, 0.1).astype(np.float16)
    np.save(done(run, "cam") / f"{case.name}_cam.npy", array * inside)
    return vessels & ~lesions & inside


def test_the_cam_rows(run, config, case, scan, cam, tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "scan_vessels", lambda run, case: cam.astype(np.uint8))
    raw = make_predictor(run, row(config, "cam-raw"), tmp_path)(case, scan)
    refined = make_predictor(run, row(config, "cam-refinement"), tmp_path)(case, scan)
    vessels = on_ct_grid(margin_of_mask(cam, prepared(run, case)), scan) & ~reference(scan)
    assert raw[vessels].mean() > 0.9 and refined[vessels].mean() < 0.2
    removed = raw & ~refined & ~vessels
    assert iou(reference(scan), raw) > 0.7 and removed.any() and not (refined & ~raw).any()
    assert np.median(scan.ct.array[refined]) > np.median(scan.ct.array[removed]) + 100  # HU


@pytest.fixture
def trained(monkeypatch, case, scan, run) -> list[tuple[str, object]]:
    """Calls of a regression network that gives 0.6 in lesions and 0.4 elsewhere."""
    calls: list[tuple[str, object]] = []
    share = 0.4 + 0.2 * on_scan_grid(reference(scan), run, case, scan)

    def train_dram(run, settings, folder):
        calls.append(("train", folder))
        return {}

    def load_dram(settings, folder):
        calls.append(("load", folder))
        return torch.nn.Identity()

    def scan_dram(network, case, *, chunk_size, scales, device):
        calls.append(("map", (chunk_size, scales, device.type)))
        return share.astype(np.float32)

    for function in (train_dram, load_dram, scan_dram):
        monkeypatch.setattr(predictions, function.__name__, function)
    return calls


def test_a_dram_row_is_trained_in_its_folder(run, config, case, scan, trained, tmp_path):
    lesions = make_predictor(run, row(config, "dram-attention"), tmp_path / "own")(case, scan)
    assert trained == [
        ("train", tmp_path / "own"),
        ("load", tmp_path / "own"),
        ("map", (16, (1.0, 1.5), "cpu")),
    ]
    assert iou(reference(scan), lesions) > 0.7  # cut at the threshold of 0.5


def test_the_row_of_the_run_itself_is_read_and_not_trained_again(run, config, case, scan, trained, tmp_path):
    dram = 0.4 + 0.2 * on_scan_grid(reference(scan), run, case, scan)
    stage = done(run, "pseudo")
    (stage / "done.json").write_text(json.dumps({"results": {"threshold": 0.5}}))
    np.save(stage / f"{case.name}_dram.npy", dram.astype(np.float16))
    lesions = make_predictor(run, row(config, "dram-vessel-suppression"), tmp_path / "own")(case, scan)
    assert iou(reference(scan), lesions) > 0.7
    assert trained == []


def test_a_dram_is_not_cut_short_by_what_it_does_not_know(run, config, case, scan, tmp_path):
    stage = done(run, "pseudo")
    (stage / "done.json").write_text(json.dumps({"results": {"threshold": 0.5}}))
    dram = 0.6 * (prepared(run, case).array("scan_lobes") > 0)
    np.save(stage / f"{case.name}_dram.npy", dram.astype(np.float16))
    lesions = make_predictor(run, row(config, "dram-vessel-suppression"), tmp_path / "own")(case, scan)
    assert lesions.sum() > 0.995 * (scan.lobes.array > 0).sum()


def test_the_threshold_is_the_one_of_the_pseudo_labels(run, config, case, scan, trained, tmp_path, monkeypatch):
    high = config.model_copy(update={"pseudo": config.pseudo.model_copy(update={"threshold": 0.7})})
    other = Run(run.data, run.directory, high, device="cpu")
    assert not make_predictor(other, row(high, "dram-raw"), tmp_path / "own")(case, scan).any()
    assert [name for name, _ in trained] == ["train", "load", "map"]
    chosen = []
    monkeypatch.setattr(predictions, "chosen_threshold", lambda run, dram: chosen.append(dram(case)) or 0.35)
    everywhere = make_predictor(run, row(config, "dram-raw"), tmp_path / "own")(case, scan)
    assert chosen[0].shape == prepared(run, case).array("scan_lobes").shape
    assert everywhere.sum() > 0.9 * (scan.lobes.array > 0).sum()


@pytest.mark.parametrize(("slug", "labels"), [("dram-context", "pseudo"), ("supervised", "reference")])
def test_the_final_networks(run, config, case, scan, tmp_path, monkeypatch, slug, labels):
    asked = []

    def trained_network(run, labels):
        asked.append(labels)
        return UNet3D(out_channels=3, width=1, padding="valid").eval()

    def scan_margin(network, cache):
        assert (network.width, network.device.type) == (1, "cpu")
        image = cache.array("scan_image").astype(np.float32)
        return Volume(image - np.float32(0.6), cache.geometry("scan"))

    stage = done(run, "segment" if labels == "pseudo" else "segment-reference")
    monkeypatch.setattr(predictions, "trained_network", trained_network)
    monkeypatch.setattr(predictions, "scan_margin", scan_margin)

    def found(border: float) -> np.ndarray:
        (stage / "done.json").write_text(json.dumps({"results": {"lesion_margin": border}}))
        return make_predictor(run, row(config, slug), tmp_path)(case, scan)

    lesions, more = found(0.0), found(-0.1)
    assert asked == [labels] * 2 and lesions.any() and not more[scan.lobes.array == 0].any()
    assert more[lesions].all() and more.sum() > lesions.sum()


@pytest.mark.parametrize(
    ("slug", "stage"),
    [("cam-raw", "cam"), ("cam-refinement", "cam"), ("dram-context", "segment"), ("supervised", "segment-reference")],
)
def test_a_row_asks_for_its_stage(run, config, tmp_path, slug, stage):
    with pytest.raises(InputError, match=f"stage {stage} is not done"):
        make_predictor(run, row(config, slug), tmp_path)
