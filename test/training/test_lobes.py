"""The stage that learns lobes, and what the model directory gets of it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from algorithm.errors import InputError
from algorithm.lobe_checks import require_lungs
from algorithm.model import find_model, load_model
from algorithm.segmenter import LesionSegmenter
from training.cases import of_split, read_table
from training.lobe_dice import compare_lobes
from training.lobe_scans import LobeScan, LobeScanItem, random_crop, read_lobe_scan
from training.lobes import lobe_terms, measure_dice, new_network
from training.lobes import trained as trained_network
from training.run import LOBES as STAGE
from training.settings import LobeSettings, TrainingConfig
from training.stages import Run, execute


@pytest.fixture(scope="module")
def trained(phantoms: Path, tiny_config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(phantoms, tmp_path_factory.mktemp("lobes"), tiny_config, device="cpu")
    execute(run, STAGE)
    return run


def test_loss_of_a_perfect_and_of_an_even_guess() -> None:
    target = torch.arange(6).repeat(1, 8, 8, 1)
    member = torch.nn.functional.one_hot(target, 6).permute(0, 4, 1, 2, 3).float()
    perfect = lobe_terms(100 * member, target)
    assert float(perfect["cross_entropy"][1]) == pytest.approx(0, abs=1e-6)
    assert float(perfect["dice"][1]) == pytest.approx(0, abs=1e-6)
    even = lobe_terms(torch.zeros_like(member), target)
    assert float(even["cross_entropy"][1]) == pytest.approx(math.log(6))
    # 64 of 320 voxels of the lungs are a lobe's: twice 64 / 5 over 64 and 320 / 5, 1 added above and below
    assert float(even["dice"][1]) == pytest.approx(1 - (2 * 64 / 5 + 1) / (64 + 64 + 1))


def test_a_lobe_outside_the_crop_costs_nothing() -> None:
    target = torch.zeros(1, 8, 8, 8, dtype=torch.int64)
    target[:, :4] = 2
    member = torch.nn.functional.one_hot(target, 6).permute(0, 4, 1, 2, 3).float()
    assert float(lobe_terms(100 * member, target)["dice"][1]) == pytest.approx(0, abs=1e-6)


def test_loss_without_lungs_is_finite() -> None:
    logits = torch.zeros(1, 6, 8, 8, 8, requires_grad=True)
    terms = lobe_terms(logits, torch.zeros(1, 8, 8, 8, dtype=torch.int64))
    (terms["cross_entropy"][1] + terms["dice"][1]).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert float(terms["dice"][1].detach()) == pytest.approx(0)


def test_where_the_outline_is_uncertain_the_loss_asks_for_the_share_of_lung() -> None:
    """As many voxels are lung as not: the best single probability is one half."""
    target = torch.arange(512).remainder(2).mul(3).view(1, 8, 8, 8)
    costs = {}
    for odds in (-0.5, 0.0, 0.5):
        logits = torch.full((1, 6, 8, 8, 8), -50.0)
        logits[:, 0], logits[:, 3] = 0.0, odds
        costs[odds] = float(sum(weight * value for weight, value in lobe_terms(logits, target).values()))
    assert min(costs, key=costs.__getitem__) == 0.0


def test_stage_learns_from_the_training_cases_and_judges_by_the_validation_cases(trained: Run) -> None:
    results = trained.record("lobes")["results"]
    assert results["training_cases"] == 3 and results["validation_cases"] == 1
    assert set(results["validation"]) == {"dice", "lul", "lll", "rul", "rll", "rml"}
    names = {path.name for path in (trained.folder("lobes") / "cache").iterdir()}
    assert names == {case.name for case in read_table(trained.data) if case.split != "test"}
    log = pd.read_csv(trained.folder("lobes") / "log.csv")
    assert list(log.columns) == ["step", "loss", "cross_entropy", "dice"]
    assert len(log) == 6


def test_stage_lowers_the_loss_of_what_it_has_seen(trained: Run) -> None:
    settings, cache = trained.config.lobes, trained.folder("lobes") / "cache"
    torch.manual_seed(trained.config.seed)
    networks = new_network(settings).eval(), trained_network(settings, trained.folder("lobes"))
    losses = []
    for network in networks:
        total = 0.0
        for case in of_split(read_table(trained.data), "train"):
            item = read_lobe_scan(LobeScan(case.name, cache))
            image, target = random_crop(item, settings, seed=trained.config.seed, device=torch.device("cpu"))
            with torch.inference_mode():
                total += float(sum(weight * value for weight, value in lobe_terms(network(image), target).values()))
        losses.append(total)
    assert losses[1] < 0.99 * losses[0]


def as_of_model(model: Path) -> dict[str, Any]:
    """The settings that a model's lobe network was built with."""
    theirs = json.loads((model / "model.json").read_text())["lobe_network"]
    return {name: theirs[name] for name in ("width", "spacing_mm", "fold", "window_hu")}


def test_training_may_begin_with_the_network_of_a_model(
    trained: Run, start_from: Callable[..., Run], tmp_path: Path
) -> None:
    model = find_model()
    run = start_from(trained, STAGE.name, tmp_path, model, **as_of_model(model), steps=1, learning_rate=1e-9)
    execute(run, STAGE)
    theirs = load_model(model).lobe_networks
    ours = trained_network(run.config.lobes, run.folder("lobes"))
    assert theirs is not None
    for name, value in theirs.chest.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, atol=1e-6)
    began = run.record("lobes")["results"]["started_from"]
    description = load_model(model).description
    assert began == {"lobe_weights_sha256": description.files["lobes.safetensors"], **description.training["lobes"]}


def test_no_steps_take_the_network_of_a_model_as_it_is(
    trained: Run, start_from: Callable[..., Run], tmp_path: Path
) -> None:
    model = find_model()
    run = start_from(trained, STAGE.name, tmp_path, model, **as_of_model(model), steps=0)
    execute(run, STAGE)
    theirs = load_model(model).lobe_networks
    ours = trained_network(run.config.lobes, run.folder("lobes"))
    assert theirs is not None
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.chest.state_dict().items())
    assert set(run.record("lobes")["results"]["validation"]) == {"dice", "lul", "lll", "rul", "rll", "rml"}


def test_no_steps_and_no_network_are_refused() -> None:
    with pytest.raises(ValueError, match="steps: got 0 without start_from"):
        LobeSettings(steps=0)


def test_other_weights_to_start_from_are_noticed(trained: Run, start_from: Callable[..., Run], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(find_model(), model)
    run = start_from(trained, STAGE.name, tmp_path, model, **as_of_model(model), steps=1)
    execute(run, STAGE)
    with (model / "lobes.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(InputError, match="first_weights: then"):
        execute(run, STAGE)


def test_a_model_to_start_from_must_have_the_same_network(
    trained: Run, start_from: Callable[..., Run], tmp_path: Path
) -> None:
    model = find_model()
    width = as_of_model(model)["width"] + 1
    with pytest.raises(InputError, match=rf"lobes\.start_from: .* has .*, expected .*width={width}"):
        execute(
            start_from(trained, STAGE.name, tmp_path / "one", model, **{**as_of_model(model), "width": width}), STAGE
        )
    without = tmp_path / "model"
    shutil.copytree(model, without)
    description = json.loads((without / "model.json").read_text())
    description["lobe_network"] = None
    del description["files"]["lobes.safetensors"]
    (without / "model.json").write_text(json.dumps(description))
    (without / "lobes.safetensors").unlink()
    with pytest.raises(InputError, match="has no lobe network, expected"):
        execute(start_from(trained, STAGE.name, tmp_path / "two", without), STAGE)
    with pytest.raises(InputError, match="nowhere"):
        execute(start_from(trained, STAGE.name, tmp_path / "three", tmp_path / "nowhere"), STAGE)


def test_needs_training_cases(trained: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(trained.data, data)
    table = (data / "cases.csv").read_text()
    (data / "cases.csv").write_text(table.replace(",train\n", ",test\n"))
    with pytest.raises(InputError, match="no case with split train"):
        execute(replace(trained, data=data, directory=tmp_path / "run"), STAGE)


def test_validation_is_not_needed(trained: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(trained.data, data)
    table = (data / "cases.csv").read_text()
    (data / "cases.csv").write_text(table.replace(",validation\n", ",test\n"))
    run = replace(trained, data=data, directory=tmp_path / "run")
    execute(run, STAGE)
    assert run.record("lobes")["results"]["validation"] == {}


class Perfect(torch.nn.Module):
    """Reads the label off an image that is the label."""

    period = 8

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 10 * (image.round() == torch.arange(6.0).view(1, 6, 1, 1, 1)).float()


def test_measure_dice(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import lobes

    def labels_as_image(scan: LobeScan) -> LobeScanItem:
        item = read_lobe_scan(scan)
        return LobeScanItem(item.lobes.half(), item.lobes, 0)

    monkeypatch.setattr(lobes, "read_lobe_scan", labels_as_image)
    cases, cache = of_split(read_table(trained.data), "train"), trained.folder("lobes") / "cache"
    scans = [LobeScan(case.name, cache) for case in cases]
    dices = measure_dice(Perfect(), scans, torch.device("cpu"), spacing_mm=3)
    assert dices == pytest.approx(dict.fromkeys(("dice", "lul", "lll", "rul", "rll", "rml"), 1.0), abs=0.01)


def test_interrupted_training_goes_on_to_the_same_result(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import loop

    saved = loop._save_checkpoint

    def killed(*arguments: Any) -> None:
        saved(*arguments)
        raise KeyboardInterrupt

    run = replace(trained, directory=tmp_path)
    monkeypatch.setattr(loop, "_save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        execute(run, STAGE)
    monkeypatch.setattr(loop, "_save_checkpoint", saved)
    execute(run, STAGE)
    one, other = (torch.load(r.folder("lobes") / "checkpoint.pt")["network"] for r in (trained, run))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_compare_lobes(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segmenter that finds the very lobes of the case scores 1 and changes no percentage."""
    from algorithm.lobe_segmenter import FoundLobes
    from training import lobe_dice
    from training.cases import read_scan

    case = of_split(read_table(trained.data), "test")[0]
    segmenter = LesionSegmenter.from_directory(find_model(), device="cpu")
    lobes = read_scan(case).lobes
    monkeypatch.setattr(segmenter, "find_lobes", lambda ct: FoundLobes(lobes, "model", {}, ["one", "two"]))
    table = compare_lobes(segmenter, trained.data, tmp_path, split="test", with_lesions=True)
    assert table[["lungs", "lul", "lll", "rul", "rll", "rml"]].to_numpy().tolist() == [[1.0] * 6]
    assert table["lul_percent_found"].tolist() == table["lul_percent_given"].tolist()
    assert table["warnings"].tolist() == ["one; two"]
    assert {path.name for path in tmp_path.iterdir()} == {"lobes.csv", "summary.md", f"{case.name}.png"}
    assert "| lungs | 1 | 1.0000 | 1.0000 | - |" in (tmp_path / "summary.md").read_text()
    assert "| rml | 1 | 1.0000 | 1.0000 | 0.00 |" in (tmp_path / "summary.md").read_text()
    with pytest.raises(InputError, match="no case with split train"):
        monkeypatch.setattr(lobe_dice, "read_table", lambda data: [case])
        compare_lobes(segmenter, trained.data, tmp_path, split="train", with_lesions=False)


def test_a_scan_that_the_model_refuses_counts_as_missed(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = LesionSegmenter.from_directory(find_model(), device="cpu")
    water = of_split(read_table(trained.data), "test")[0]
    monkeypatch.setattr(segmenter, "find_lobes", lambda ct: require_lungs(ct.with_array(np.zeros(ct.array.shape)), ct))
    table = compare_lobes(segmenter, trained.data, tmp_path, split="test", with_lesions=True)
    assert table[["lungs", "lul", "lll", "rul", "rll", "rml"]].to_numpy().tolist() == [[0.0] * 6]
    assert f"Refused, and counted as Dice 0: {water.name}: no lungs were found" in (tmp_path / "summary.md").read_text()


def test_a_scan_that_cannot_be_used_is_named(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = LesionSegmenter.from_directory(find_model(), device="cpu")

    def unreadable(case: object) -> None:
        raise InputError("got no pixels")

    monkeypatch.setattr("training.lobe_dice.read_scan", unreadable)
    name = of_split(read_table(trained.data), "test")[0].name
    with pytest.raises(InputError, match=f"case {name}: got no pixels"):
        compare_lobes(segmenter, trained.data, tmp_path, split="test", with_lesions=False)
