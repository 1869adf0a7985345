import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithm import tiling
from algorithm.engine import make_network
from algorithm.errors import InputError
from algorithm.images import Volume
from algorithm.lobes import LOBES
from algorithm.network import UNet3D
from algorithm.preprocess import resample
from evaluation.metrics import dice
from training import vessels as stage_module
from training.batches import Batches
from training.cases import Case, read_cases
from training.parallel import Workers
from training.prepare import PreparedCase, prepare, prepared
from training.settings import TrainingConfig, VesselSettings
from training.stages import Run, Stage, execute
from training.vesselness import without_thick
from training.vessels import (
    HealthyScan,
    chunk_vessels,
    healthy_cases,
    new_network,
    random_patch,
    scan_vessels,
    vessel_probability,
    vessel_terms,
    vessels,
)

PREPARE = Stage("prepare", "", (), lambda config: config.prepare, prepare)
VESSELS = Stage("vessels", "", (PREPARE,), lambda config: config.vessels, vessels)


def case(name: str, split: str, scores: dict[int, int]) -> Case:
    return Case(name, Path("ct.mha"), Path("lobes.mha"), scores, None, None, split)  # type: ignore[arg-type]


WELL = dict.fromkeys(range(1, 6), 0)
PATCHES = VesselSettings(patch_size=16, precision="32-true", spotted_share=0.0)


def test_healthy_are_training_cases_with_five_scores_of_0():
    cases = [
        case("sick", "train", WELL | {3: 1}),
        case("well", "train", WELL),
        case("partly scored", "train", dict.fromkeys(range(1, 5), 0)),
        case("not scored", "train", {}),
        case("held out", "test", WELL),
        case("for validation", "validation", WELL),
        case("well too", "train", dict(WELL)),
    ]
    assert [healthy.name for healthy in healthy_cases(cases)] == ["well", "well too"]


def test_no_healthy_case_is_an_error_that_names_the_cure():
    with pytest.raises(
        InputError, match="no healthy case .* split train and score 0 in all five lobes; add scans of healthy lungs"
    ):
        healthy_cases([case("sick", "train", WELL | {3: 1}), case("held out", "test", WELL)])


@pytest.fixture
def scan(tmp_path) -> HealthyScan:
    """Two lobes with intensity 0.2, 0.1 more two voxels deep and 0.3 more on vessel: one voxel, far from the edges."""
    lobes = np.zeros((30, 40, 50), dtype=np.uint8)
    lobes[2:28, 5:35, 5:20], lobes[2:28, 5:35, 30:45] = 1, 3
    reference, inner = np.zeros((2, *lobes.shape), dtype=np.uint8)
    reference[15, 20, 36] = 1
    inner[4:26, 7:33, 7:18] = inner[4:26, 7:33, 32:43] = 1
    np.save(tmp_path / "scan_image.npy", (0.2 * (lobes > 0) + 0.1 * inner + 0.3 * reference).astype(np.float16))
    np.save(tmp_path / "scan_lobes.npy", lobes)
    np.save(tmp_path / "reference.npy", np.stack([reference, inner]))
    return HealthyScan(PreparedCase("a", tmp_path), tmp_path / "reference.npy")


def test_image_vessels_and_eroded_lungs_of_a_patch_are_the_same_place(scan):
    for seed in range(20):
        patch = random_patch(scan, 0, settings=PATCHES, seed=seed)
        assert all(part.shape == (16,) * 3 and part.dtype == torch.float32 for part in vars(patch).values())
        levels = sorted(patch.image.unique().tolist())  # of background, border, inside and, if there is one, vessel
        assert torch.equal(patch.image >= levels[2], patch.inside == 1)
        assert torch.equal(patch.vessels == 1, patch.image == levels[-1]) or len(levels) == 3
        assert patch.vessels.sum() == len(levels) - 3


def test_half_of_the_patches_are_centred_on_a_vessel(scan):
    middle = (slice(7, 9),) * 3  # voxel 8, and 7 where an axis is mirrored
    patches = [random_patch(scan, 0, settings=PATCHES, seed=seed) for seed in range(300)]
    centred = sum(bool(patch.vessels[middle].any()) for patch in patches)
    assert all(patch.inside[middle].any() for patch in patches)
    assert 120 <= centred <= 180  # 150 expected, standard deviation 9


def test_lesions_are_no_vessels_and_consolidation_hides_those_in_it(scan):
    spotted = PATCHES.model_copy(update={"spotted_share": 1.0})
    hidden = shown = 0
    for seed in range(200):
        plain = random_patch(scan, 0, settings=PATCHES, seed=seed, stretched=False)
        patch = random_patch(scan, 0, settings=spotted, seed=seed, stretched=False)
        lungs = plain.image > 0
        assert torch.equal(patch.image[~lungs], plain.image[~lungs]) and torch.equal(patch.inside, plain.inside)
        assert (patch.image > plain.image + 0.05).any() and patch.image.max() <= 0.87
        assert not (patch.vessels > plain.vessels).any()
        hidden += int((plain.vessels - patch.vessels).sum())
        shown += int((patch.vessels * (patch.image > plain.image + 0.05)).sum())
    assert hidden >= 1 and shown > 30


def test_a_batch_depends_on_seed_and_number_alone(scan):
    def batches(seed):
        return Batches([scan] * 3, partial(random_patch, settings=PATCHES, seed=seed), size=2, seed=seed)

    first, again, other = batches(5)[4], batches(5)[4], batches(6)[4]
    assert all(torch.equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a.image, b.image) for a, b in zip(first, other, strict=True))


def test_losses_count_voxels_with_a_reference_only():
    logits = torch.tensor([0.0, 0.0, 0.0, 0.0, 50.0, -50.0]).reshape(1, 1, 1, 1, 6)
    target = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 1.0]).reshape(logits.shape)
    inside = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0]).reshape(logits.shape)
    terms = vessel_terms(logits, target, inside)
    assert [weight for weight, _ in terms.values()] == [1.0, 1.0]
    assert terms["cross_entropy"][1].item() == pytest.approx(math.log(2))
    assert terms["dice"][1].item() == pytest.approx(1 - (2 * 0.5 + 1) / (4 * 0.5 + 1 + 1))


def test_perfect_prediction_has_no_loss():
    target = (torch.arange(64) % 3 == 0).float().reshape(1, 1, 4, 4, 4)
    terms = vessel_terms(200 * target - 100, target, torch.ones_like(target))
    assert all(value.item() == pytest.approx(0, abs=1e-6) for _, value in terms.values())


@pytest.fixture(scope="module")
def networks() -> dict[str, UNet3D]:
    """The same weights, unlike the initial ones as after training, with either padding."""
    torch.manual_seed(0)
    settings = VesselSettings(width=1)
    same, valid = new_network(settings, "same"), new_network(settings, "valid")
    with torch.no_grad():
        for module in same.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        same.last.weight.mul_(20)
    valid.load_state_dict(same.state_dict())
    return {"same": same.eval(), "valid": valid.eval()}


@pytest.fixture(scope="module")
def speckle() -> np.ndarray:
    return np.random.default_rng(1).random((4, 20, 4), dtype=np.float32)


def probability_of(network: UNet3D, image: np.ndarray) -> np.ndarray:
    fast = make_network(network, device=torch.device("cpu"))
    return vessel_probability(fast, image, np.ones(image.shape, dtype=bool))


def test_tiles_do_not_show(networks, speckle, monkeypatch):
    whole = probability_of(networks["valid"], speckle)
    plan = tiling.TilePlan(speckle.shape, (8, 8, 8))
    monkeypatch.setattr(tiling, "plan_tiles", lambda shape, **_: plan)
    tiled = probability_of(networks["valid"], speckle)
    assert len(list(plan.tiles())) == 3 and whole.std() > 1e-3
    np.testing.assert_allclose(tiled, whole, atol=2e-6)


def test_prediction_is_that_of_the_network_as_trained_far_from_its_borders(networks, speckle):
    """Zero padding inside the network is felt up to 54 voxels deep; 62 before the scan keep its poolings in phase."""
    padded = np.pad(speckle, [(62, 62 + (4 - n) % 8) for n in speckle.shape])
    with torch.inference_mode():
        logits = networks["same"](torch.from_numpy(padded)[None, None])[0, 0]
    expected = logits.sigmoid().numpy()[tuple(slice(62, 62 + n) for n in speckle.shape)]
    np.testing.assert_allclose(probability_of(networks["valid"], speckle), expected, atol=1e-5)


@pytest.fixture(scope="module")
def finished(phantoms, tiny_config, tmp_path_factory) -> Run:
    """A run whose network knows little, and a threshold low enough that it finds something."""
    config = tiny_config.model_dump()
    config["vessels"]["threshold"] = 0.05
    run = Run(phantoms, tmp_path_factory.mktemp("run"), TrainingConfig.model_validate(config), "cpu", Workers(1))
    execute(run, PREPARE)
    execute(run, VESSELS)
    return run


def test_results_are_those_of_the_masks(finished):
    cases = read_cases(finished.data)
    results = finished.record("vessels")["results"]
    assert results["cases"] == len(cases) == 5 and results["healthy_cases"] == len(healthy_cases(cases)) >= 1
    shares, dices, mistaken = [], [], []
    for one in cases:
        caches, mask = prepared(finished, one), scan_vessels(finished, one)
        inside = caches.array("scan_lobes") > 0
        assert mask.dtype == np.uint8 and mask.shape == inside.shape and not mask[~inside].any()
        shares.append((mask > 0).sum() / inside.sum())
        if one.split == "validation":
            classes = caches.array("scan_classes")
            beside = inside & (classes != 2)
            dices.append(dice(classes[beside] == 1, mask[beside] > 0))
            mistaken.append([(classes[mask > 0] == 2).sum(), (mask > 0).sum()])
    assert 0 < np.mean(shares) < 1 and len(dices) == 1
    assert results["vessel_share"] == pytest.approx(np.mean(shares))
    assert results["dice_against_reference"] == pytest.approx(np.mean(dices))
    lesion, masked = np.sum(mistaken, axis=0)
    assert results["lesion_share"] == pytest.approx(lesion / masked) and 0 < lesion < masked


def test_chunk_masks_are_the_scans_on_the_grids_of_the_chunks(finished):
    one = prepared(finished, read_cases(finished.data)[0])
    scan = Volume(scan_vessels(finished, one), one.geometry("scan"))
    for lobe in LOBES:
        mask, grid = chunk_vessels(finished, one, lobe.key), one.geometry(lobe.key)
        assert mask.dtype == np.uint8 and mask.shape == one.chunk(lobe.key).mask.shape
        np.testing.assert_array_equal(mask, resample(scan, grid, "nearest").array)


def test_only_healthy_cases_have_references(finished):
    folder = finished.directory / "vessels" / "references"
    names = {healthy.name for healthy in healthy_cases(read_cases(finished.data))}
    assert {path.stem for path in folder.iterdir()} == names


def test_a_stopped_stage_does_only_what_is_missing(finished):
    folder = finished.directory / "vessels"
    masks = folder / "masks"
    names = [one.name for one in read_cases(finished.data)]
    expected = {name: np.load(masks / name / "scan.npy") for name in names}
    record = json.loads((folder / "done.json").read_text())
    (folder / "done.json").unlink()
    (masks / names[1]).rename(masks / f"{names[1]}.0.tmp")  # as if it had been stopped while this was written
    (masks / f"{names[1]}.0.tmp" / "scan.npy").write_bytes(b"half")
    (masks / names[2] / "lul.npy").unlink()  # as the error of a damaged file asks for
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy") if path.parent.name[:5] not in names[1:3]}
    execute(finished, VESSELS)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(folder.rglob("*.tmp"))
    assert (masks / names[2] / "lul.npy").is_file()
    for name in names:
        np.testing.assert_array_equal(np.load(masks / name / "scan.npy"), expected[name])
    assert finished.record("vessels")["results"] == record["results"]


def test_thick_vessels_are_left_out(finished, monkeypatch):
    cases = read_cases(finished.data)
    limited = finished.config.vessels.model_copy(update={"thickest_mm": 10.0})
    run = replace(finished, config=finished.config.model_copy(update={"vessels": limited}))
    folder = finished.directory / "limited"
    shutil.copytree(finished.directory / "vessels", folder)
    shutil.rmtree(folder / "masks" / cases[0].name)
    monkeypatch.setattr(stage_module, "vessel_probability", lambda network, image, lungs: lungs.astype(np.float32))
    vessels(run, folder)
    everywhere = prepared(finished, cases[0]).array("scan_lobes") > 0
    thin = without_thick(everywhere, spacing_mm=5.0, thickest_mm=10.0)
    assert thin.sum() < everywhere.sum()
    np.testing.assert_array_equal(np.load(folder / "masks" / cases[0].name / "scan.npy"), thin)


@pytest.mark.parametrize("name", ["references", "tensorboard", "masks"])
def test_a_case_may_be_named_like_a_folder_of_the_stage(finished, tmp_path, monkeypatch, name):
    shutil.copytree(finished.directory, tmp_path / "run")
    run = replace(finished, directory=tmp_path / "run")
    cases = read_cases(finished.data)
    (run.directory / "prepare" / cases[-1].name).rename(run.directory / "prepare" / name)
    monkeypatch.setattr(stage_module, "read_cases", lambda _: [*cases[:-1], replace(cases[-1], name=name)])
    assert vessels(run, run.directory / "vessels")["cases"] == len(cases)
    found = scan_vessels(run, replace(cases[-1], name=name))
    np.testing.assert_array_equal(found, scan_vessels(finished, cases[-1]))


def test_masks_are_refused_before_the_stage_is_done(finished, tmp_path):
    with pytest.raises(InputError, match="stage vessels is not done; run `python -m training vessels` first"):
        scan_vessels(replace(finished, directory=tmp_path), read_cases(finished.data)[0])


def give_geometry(scan: HealthyScan) -> None:
    geometry = {"size_zyx": [30, 40, 50], "spacing_zyx_mm": [1.5] * 3, "origin_xyz_mm": [0.0] * 3}
    (scan.case.folder / "geometries.json").write_text(
        json.dumps({"scan": geometry | {"direction": [1.0, 0, 0, 0, 1, 0, 0, 0, 1]}})
    )


def test_references_tell_where_they_were_looked_for(scan):
    """Of a tube across a lobe, what lies within 3 mm, two voxels, of the lobe's border is not looked for."""
    image = 0.2 * (scan.case.array("scan_lobes") > 0)
    image[2:28, 19:21, 36:38] = 0.7
    np.save(scan.case.folder / "scan_image.npy", image.astype(np.float16))
    give_geometry(scan)
    _, inner = np.load(scan.reference)
    stage_module._write_reference(VesselSettings(), scan)
    reference, eroded_lungs = np.load(scan.reference)
    assert reference.dtype == np.uint8
    np.testing.assert_array_equal(eroded_lungs, inner)
    assert reference[8:22, 19:21, 36:38].all() and not reference[inner == 0].any()


def test_a_healthy_case_without_any_tube_is_named(scan):
    np.save(scan.case.folder / "scan_image.npy", (0.2 * (scan.case.array("scan_lobes") > 0)).astype(np.float16))
    give_geometry(scan)
    with pytest.raises(InputError, match=r"case a: no vessel found 3\.0 mm or more inside the lungs"):
        stage_module._write_reference(VesselSettings(), scan)
