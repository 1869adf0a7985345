from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from algorithm.errors import InputError
from training.cases import read_cases
from training.dram import Drams
from training.lobe_batches import LobeBatch
from training.loop import BEST
from training.regress import Weights, dram_terms, load_dram, ramped, train_dram, trained_network, weights_at
from training.run import STAGES
from training.settings import Ramp, RegressSettings
from training.stages import Run, execute

STAGE = {stage.name: stage for stage in STAGES}
TERMS = ("interval", "equivariance", "entropy", "refinement")


@pytest.fixture(scope="module")
def finished(ready, tmp_path_factory) -> Run:
    directory = tmp_path_factory.mktemp("run")
    for stage in ("prepare", "vessels"):
        (directory / stage).symlink_to(ready.directory / stage)
    run = replace(ready, directory=directory)
    execute(run, STAGE["regress"])
    return run


def test_every_step_is_logged_with_every_term(finished):
    with (finished.folder("regress") / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(6))
    for row in rows:
        weights = weights_at(finished.config.regress, int(row["step"]))
        used = [term for term in TERMS if row[term]]
        assert used == [term for term in TERMS if getattr(weights, term)]
        weighted = sum(getattr(weights, term) * float(row[term]) for term in used)
        assert float(row["loss"]) == pytest.approx(weighted, rel=1e-3)
    assert float(rows[-1]["equivariance"]) > 0


def test_validations_are_logged_with_a_picture_each(finished):
    folder = finished.folder("regress")
    with (folder / "validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 5]
    assert all(-1 <= float(row["kappa"]) <= 1 and float(row["interval"]) >= 0 for row in rows)
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["step_000003.png", "step_000006.png"]
    assert list((folder / "tensorboard").iterdir())


def test_the_best_network_is_the_result(finished):
    folder = finished.folder("regress")
    with (folder / "validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: (float(row["kappa"]), -float(row["interval"])))
    state = torch.load(folder / BEST, weights_only=True)
    assert state["step"] == int(best["step"]) + 1
    result = trained_network(finished).state_dict()
    assert all(torch.equal(result[name], state["network"][name]) for name in result)


def test_the_seed_decides(finished, tmp_path):
    other = replace(finished, config=finished.config.model_copy(update={"seed": 1}))
    settings = finished.config.regress
    train_dram(other, settings, tmp_path)
    first, second = trained_network(finished).state_dict(), load_dram(settings, tmp_path).state_dict()
    assert not torch.equal(first["unet.last.weight"], second["unet.last.weight"])


def test_no_scored_validation_case_is_refused(ready, tmp_path, monkeypatch):
    cases = [case for case in read_cases(ready.data) if case.split != "validation"]
    monkeypatch.setattr("training.validation.read_cases", lambda data: cases)
    with pytest.raises(InputError, match="no validation case has a score"):
        train_dram(ready, ready.config.regress, tmp_path)


def test_loss_that_is_not_finite_stops_the_training(ready, tmp_path):
    wild = ready.config.regress.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(RuntimeError, match=r"the loss is (nan|inf) at step \d; lower learning_rate"):
        train_dram(ready, wild, tmp_path)


def test_terms_wait_and_then_rise():
    late = Ramp(weight=0.5, start=0.3, full=0.6)
    assert [round(ramped(late, step=s, steps=100), 3) for s in (0, 30, 45, 60, 99)] == [0, 0, 0.25, 0.5, 0.5]
    assert ramped(Ramp(weight=1.0), step=0, steps=100) == 1.0
    assert ramped(Ramp(weight=2.0, start=0.5, full=0.5), step=49, steps=100) == 0
    assert ramped(Ramp(weight=2.0, start=0.5, full=0.5), step=50, steps=100) == 2


class Pointwise(torch.nn.Module):
    """A network whose logit is 10 x intensity - 5, and whose refined logit is twice that."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> Drams:
        return Drams(10 * image - 5, 20 * image - 10)


def batch(score: int) -> LobeBatch:
    image = torch.zeros(1, 1, 16, 16, 16)
    image[..., 4:12, 4:12, 4:12] = 0.5  # logit 0: probability 1/2
    mask = (image > 0).float()
    return LobeBatch(image=image, mask=mask, vessels=None, scores=[score])


def test_terms_by_hand():
    """Half of every lobe voxel is lesion: distance 0.25 from (25, 50) below, entropy ln 2, empty target at score 0."""
    settings = RegressSettings(chunk_size=16, attention=False, scale_range=(1.0, 1.0))
    all_on = Weights(interval=2.0, equivariance=1.0, entropy=1.0, refinement=1.0)
    rng = np.random.default_rng(0)
    terms = dram_terms(Pointwise(), batch(0), {0: 3.0}, all_on, settings, rng)
    assert {name: weight for name, (weight, _) in terms.items()} == dict(zip(TERMS, (2, 1, 1, 1), strict=True))
    assert terms["interval"][1].item() == pytest.approx(3 * 0.25)  # y^2 for score 0
    assert terms["entropy"][1].item() == pytest.approx(np.log(2))
    assert terms["equivariance"][1].item() == pytest.approx(0, abs=1e-6)  # quarter turns of a pointwise network
    # target 0, z = (logit 0 > 0) = 0: -log(1 - 1/2)
    assert terms["refinement"][1].item() == pytest.approx(np.log(2))


def test_terms_of_no_weight_are_left_out():
    settings = RegressSettings(chunk_size=16, attention=False)
    only = Weights(interval=2.0, equivariance=0.0, entropy=0.0, refinement=0.0)
    terms = dram_terms(Pointwise(), batch(3), {3: 1.0}, only, settings, np.random.default_rng(0))
    assert [name for name, (_, value) in terms.items() if value is not None] == ["interval"]
    assert terms["interval"][1].item() == pytest.approx(0)  # 0.5 lies in [0.25, 0.5]
