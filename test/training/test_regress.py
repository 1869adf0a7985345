import csv

import numpy as np
import pytest
import torch

from training.config import RegressSettings, TrainingConfig
from training.loop import cosine, shuffled
from training.regress import entropy_weight, trained_network
from training.run import STAGES
from training.stages import Run, execute

STAGE = {stage.name: stage for stage in STAGES}


@pytest.fixture(scope="module")
def finished(phantoms, tiny_config, tmp_path_factory) -> Run:
    run = Run(phantoms, tmp_path_factory.mktemp("run"), tiny_config, device="cpu")
    execute(run, STAGE["prepare"])
    execute(run, STAGE["regress"])
    return run


def test_every_step_is_logged_with_every_term(finished):
    with (finished.folder("regress") / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(6))
    for row in rows:
        weighted = 2 * float(row["interval"]) + entropy_weight(finished.config.regress, int(row["step"])) * float(
            row["entropy"]
        )
        assert float(row["loss"]) == pytest.approx(weighted, rel=1e-3)


def test_a_run_that_was_killed_ends_like_one_that_was_not(finished, phantoms, tiny_config, tmp_path, monkeypatch):
    run = Run(phantoms, tmp_path, tiny_config, device="cpu")
    execute(run, STAGE["prepare"])
    with monkeypatch.context() as patch:
        import training.loop as loop

        def dies(folder, step, values):
            if step == 3:  # after the checkpoint at 2 steps
                raise KeyboardInterrupt
            return log(folder, step, values)

        log = loop._log
        patch.setattr(loop, "_log", dies)
        with pytest.raises(KeyboardInterrupt):
            execute(run, STAGE["regress"])
    execute(run, STAGE["regress"])
    unbroken, resumed = trained_network(finished).state_dict(), trained_network(run).state_dict()
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    logs = [(r.folder("regress") / "log.csv").read_text() for r in (finished, run)]
    assert logs[0] == logs[1]


def test_the_seed_decides(finished, phantoms, tiny_config, tmp_path):
    run = Run(phantoms, tmp_path, tiny_config.model_copy(update={"seed": 1}), device="cpu")
    execute(run, STAGE["prepare"])
    execute(run, STAGE["regress"])
    first, second = trained_network(finished).state_dict(), trained_network(run).state_dict()
    assert not torch.equal(first["last.weight"], second["last.weight"])


def test_entropy_waits_and_then_rises():
    settings = RegressSettings(steps=100, entropy_weight=0.5, entropy_start=0.3, entropy_full=0.6)
    assert [round(entropy_weight(settings, step), 3) for step in (0, 30, 45, 60, 99)] == [0, 0, 0.25, 0.5, 0.5]
    at_once = RegressSettings(steps=100, entropy_weight=1.0, entropy_start=0.0, entropy_full=0.0)
    assert entropy_weight(at_once, 0) == 1.0


def test_every_lobe_comes_once_an_epoch():
    seen = [i for step in range(10) for i in shuffled(20, 4, step, seed=5)]
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20)) and seen[:20] != seen[20:]
    assert list(shuffled(20, 4, 7, seed=5)) == seen[28:32]


def test_learning_rate_falls_along_a_cosine():
    rates = [cosine(0.1, fraction) for fraction in np.linspace(0, 1, 5)]
    assert rates == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447, 0.0], abs=1e-6)


def test_loss_that_is_not_finite_stops_the_training(phantoms, tiny_config, tmp_path):
    wild = TrainingConfig.model_validate(
        tiny_config.model_dump() | {"regress": tiny_config.regress.model_dump() | {"learning_rate": 1e30}}
    )
    run = Run(phantoms, tmp_path, wild, device="cpu")
    execute(run, STAGE["prepare"])
    with pytest.raises(RuntimeError, match=r"regress: the loss is nan at step \d; lower the learning rate"):
        execute(run, STAGE["regress"])
