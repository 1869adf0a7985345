"""The stage that learns to see fissures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save as to_safetensors

from algorithm.errors import InputError
from algorithm.fissures import lobe_borders
from algorithm.model import LobeNetworks, find_model, load_model, sha256
from algorithm.network import UNet3D
from training.fissures import BORDERS, BorderedScan, new_network, random_patch, trained, write_borders
from training.lobe_scans import LobeScan, read_lobe_scan
from training.lobes import description as lobe_description
from training.lobes import trained as trained_chest
from training.run import FISSURES, LOBES
from training.settings import FissureSettings, TrainingConfig
from training.stages import Run, execute


@pytest.fixture(scope="module")
def done(phantoms: Path, tiny_config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(phantoms, tmp_path_factory.mktemp("fissures"), tiny_config, device="cpu")
    execute(run, LOBES)
    execute(run, FISSURES)
    return run


@pytest.fixture
def bordered(done: Run) -> BorderedScan:
    path = sorted((done.folder("fissures") / BORDERS).iterdir())[0]
    return BorderedScan(LobeScan(path.stem, done.folder("lobes") / "cache"), path)


def test_stage_is_judged_by_the_lobes_of_the_validation_cases_beside_those_as_they_were(done: Run) -> None:
    results = done.record("fissures")["results"]
    assert results["without"] == done.record("lobes")["results"]["validation"]
    assert set(results["validation"]) == {"dice", "lul", "lll", "rul", "rll", "rml"}
    log = pd.read_csv(done.folder("fissures") / "log.csv")
    assert list(log.columns) == ["step", "loss", "cross_entropy", "dice"]
    assert len(log) == 6


def test_the_network_learns(done: Run) -> None:
    settings = done.config.fissures
    torch.manual_seed(done.config.seed)
    before, after = new_network(settings), trained_of(done)
    assert any(not torch.equal(after.state_dict()[name], value) for name, value in before.state_dict().items())
    assert after.padding == "valid"


@pytest.fixture(scope="module")
def model(done: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with the networks of the run."""
    directory = tmp_path_factory.mktemp("models") / "model"
    shutil.copytree(find_model(), directory)
    chest = trained_chest(done.config.lobes, done.folder("lobes"))
    networks = LobeNetworks(chest, trained_of(done))
    weights = to_safetensors({name: value.contiguous() for name, value in networks.state_dict().items()})
    (directory / "lobes.safetensors").write_bytes(weights)
    about = json.loads((directory / "model.json").read_text())
    network = lobe_description(done.config.lobes, fissure_width=done.config.fissures.width)
    about |= {"lobe_network": network.model_dump(mode="json"), "training": {"fissures": {"seed": 4}}}
    about["files"]["lobes.safetensors"] = sha256(weights)
    (directory / "model.json").write_text(json.dumps(about))
    return directory


@pytest.fixture
def begun(done: Run, start_from: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """Make a run with the lobe network of `done`, that begins with a model's network for fissures."""
    shutil.copytree(done.folder("lobes"), tmp_path / "lobes")
    return partial(start_from, done, "fissures", tmp_path)


def trained_of(run: Run) -> UNet3D:
    return trained(run.config.fissures, run.folder("fissures"))


def test_training_may_begin_with_the_network_of_a_model(done: Run, begun: Callable[..., Run], model: Path) -> None:
    run = begun(model, steps=1, learning_rate=1e-9)
    execute(run, FISSURES)
    theirs, ours = trained_of(done), trained_of(run)
    weights = dict(ours.named_parameters())
    assert all(torch.allclose(weights[name], value, atol=1e-6) for name, value in theirs.named_parameters())


def test_no_steps_take_the_network_of_a_model_as_it_is(done: Run, begun: Callable[..., Run], model: Path) -> None:
    run = begun(model, steps=0)
    execute(run, FISSURES)
    theirs, ours = trained_of(done), trained_of(run)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())
    results, before = run.record("fissures")["results"], done.record("fissures")["results"]
    assert {name: results[name] for name in before} == before
    weights = load_model(model).description.identity.lobe_weights_sha256
    assert results["started_from"] == {"lobe_weights_sha256": weights, "seed": 4}


def test_a_model_to_start_from_must_have_the_same_network(begun: Callable[..., Run]) -> None:
    run = begun(find_model())
    with pytest.raises(InputError, match=r"fissures\.start_from: .* has .*, expected fissure_width 1, spacing_mm 8"):
        execute(run, FISSURES)
    with pytest.raises(ValueError, match="steps: got 0 without start_from"):
        FissureSettings(steps=0)


def test_needs_the_lobe_network(done: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stage lobes is not done"):
        execute(replace(done, directory=tmp_path), FISSURES)


def test_patches_hold_fissures_and_can_be_repeated(done: Run, bordered: BorderedScan) -> None:
    settings = done.config.fissures
    patch_of = partial(random_patch, bordered, settings=settings, seed=0)
    for position in range(10):
        patch, again = patch_of(position), patch_of(position)
        assert patch.image.shape == patch.borders.shape == patch.inside.shape == (settings.patch_size,) * 3
        assert torch.equal(patch.image, again.image) and patch.borders.any()
        assert not patch.image[patch.inside == 0].any() and not patch.borders[patch.inside == 0].any()
        assert 0 <= float(patch.image.min()) and float(patch.image.max()) <= 1
    assert not torch.equal(patch_of(0).image, patch_of(1).image)


def test_patches_as_they_are_show_the_scan(done: Run, bordered: BorderedScan) -> None:
    patch = random_patch(bordered, 3, settings=done.config.fissures, seed=0, changed=False)
    assert patch.image.max() > 0
    drawn = FissureSettings(**(done.config.fissures.model_dump() | {"drawn_share": 1.0, "spotted_share": 0.0}))
    changed = random_patch(bordered, 3, settings=drawn, seed=0)
    assert torch.equal(changed.borders, patch.borders) and not torch.equal(changed.image, patch.image)


def test_borders_are_those_of_the_scan(done: Run, bordered: BorderedScan) -> None:
    labels = read_lobe_scan(bordered.scan).lobes.numpy()
    assert np.array_equal(np.load(bordered.borders), np.flatnonzero(lobe_borders(labels)))


def test_a_scan_in_which_no_lobes_meet_is_named(done: Run, bordered: BorderedScan, tmp_path: Path) -> None:
    folder = tmp_path / bordered.scan.name
    folder.mkdir()
    item = read_lobe_scan(bordered.scan)
    np.save(folder / "image.npy", item.image.numpy())
    np.save(folder / "lobes.npy", np.minimum(item.lobes.numpy(), 1))
    alone = BorderedScan(LobeScan(bordered.scan.name, tmp_path), tmp_path / "borders" / "of.npy")
    with pytest.raises(InputError, match=f"case {bordered.scan.name}: no two lobes of a lung meet"):
        write_borders([alone], done)


def test_too_small_patches_in_mixed_precision_are_refused() -> None:
    with pytest.raises(ValueError, match="voxels are too few in bf16-mixed"):
        FissureSettings(patch_size=16)
