"""The stage that learns to draw the lobes' borders again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from algorithm.errors import InputError
from training.fissures import fissure_terms, new_network, trained
from training.lobes import lobe_terms
from training.run import FISSURES, LOBES
from training.settings import TrainingConfig
from training.stages import Run, execute


@pytest.fixture(scope="module")
def done(phantoms: Path, tiny_config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(phantoms, tmp_path_factory.mktemp("fissures"), tiny_config, device="cpu")
    execute(run, LOBES)
    execute(run, FISSURES)
    return run


def test_stage_is_judged_by_the_validation_cases_beside_the_lobes_as_they_were(done: Run) -> None:
    results = done.record("fissures")["results"]
    lobes = done.record("lobes")["results"]
    assert results["without"] == lobes["validation"]
    assert set(results["validation"]) == {"dice", "lul", "lll", "rul", "rll", "rml"}
    log = pd.read_csv(done.folder("fissures") / "log.csv")
    assert list(log.columns) == ["step", "loss", "cross_entropy", "dice", "inside"]
    assert len(log) == 6


def test_the_network_learns(done: Run) -> None:
    crops, settings = done.config.lobes, done.config.fissures
    before, after = new_network(crops, settings), trained(crops, settings, done.folder("fissures"))
    assert before.network.last.weight.abs().max() == 0 and after.network.last.weight.abs().max() > 0


def test_needs_the_lobe_network(done: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stage lobes is not done"):
        execute(replace(done, directory=tmp_path), FISSURES)


def test_other_crops_than_those_of_the_lobe_network_are_refused(done: Run) -> None:
    values = done.config.model_dump(mode="json")
    config = TrainingConfig.model_validate_json(json.dumps({**values, "lobes": {**values["lobes"], "bend_mm": 1.0}}))
    with pytest.raises(InputError, match="bend_mm"):
        execute(replace(done, config=config), FISSURES)


def test_too_shallow_crops_in_mixed_precision_are_refused(tiny_config: TrainingConfig) -> None:
    values = tiny_config.model_dump(mode="json")
    with pytest.raises(ValueError, match="voxels are too few in bf16-mixed"):
        TrainingConfig.model_validate({**values, "fissures": {**values["fissures"], "precision": "bf16-mixed"}})


def test_loss_counts_lobes_inside_the_lungs_alone() -> None:
    target = torch.zeros(1, 8, 8, 8, dtype=torch.int64)
    target[:, :2], target[:, 2:4] = 3, 5
    logits = torch.zeros(1, 6, 8, 8, 8)
    logits[:, 3, :2] = 50  # one of the two lobes is found, of the other nothing is known
    terms = fissure_terms(logits, target)
    weight, inside = terms["inside"]
    assert weight == 1 and float(inside) == pytest.approx(math.log(5) / 2)
    for name, (_, value) in lobe_terms(logits, target).items():
        assert terms[name][1] == value
    logits[:, 0] = 100  # whether it is lung at all is no matter of this term
    assert float(fissure_terms(logits, target)["inside"][1]) == pytest.approx(math.log(5) / 2)


def test_loss_without_lungs_is_finite() -> None:
    logits = torch.zeros(1, 6, 8, 8, 8, requires_grad=True)
    terms = fissure_terms(logits, torch.zeros(1, 8, 8, 8, dtype=torch.int64))
    sum(value for _, value in terms.values()).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert float(terms["inside"][1].detach()) == 0
