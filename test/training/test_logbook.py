"""What a training writes down, above all when it is gone on with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.logbook import LOG, VALIDATION, Logbook


def write(folder: Path, steps: range, *, done: int, loss: float) -> None:
    """Log steps from ``done`` on, with a validation after every second of them."""
    with Logbook(folder, done=done, is_writer=True) as logbook:
        for step in steps:
            logbook.step(step, {"loss": loss + step, "entropy": 0.5 if step > 1 else None})
            if step % 2:
                logbook.validation(step, {"kappa": loss / 100})


def test_a_term_that_was_not_computed_is_an_empty_cell(tmp_path):
    write(tmp_path, range(4), done=0, loss=10)
    assert (tmp_path / LOG).read_text() == "step,loss,entropy\n0,10,\n1,11,\n2,12,0.5\n3,13,0.5\n"
    assert (tmp_path / VALIDATION).read_text() == "step,kappa\n1,0.1\n3,0.1\n"


def test_what_was_logged_after_the_checkpoint_comes_again(tmp_path):
    write(tmp_path, range(5), done=0, loss=10)
    write(tmp_path, range(3, 6), done=3, loss=20)
    text = "step,loss,entropy\n0,10,\n1,11,\n2,12,0.5\n3,23,0.5\n4,24,0.5\n5,25,0.5\n"
    assert (tmp_path / LOG).read_text() == text
    assert (tmp_path / VALIDATION).read_text() == "step,kappa\n1,0.1\n3,0.2\n5,0.2\n"


@pytest.mark.parametrize("cut", ["", "st", "step,loss,entropy", "step,loss,entropy\n", "step,loss,entropy\n0,1"])
def test_a_log_that_was_cut_off_is_gone_on_with(tmp_path, cut):
    (tmp_path / LOG).write_text(cut)
    write(tmp_path, range(1), done=0, loss=10)
    assert (tmp_path / LOG).read_text() == "step,loss,entropy\n0,10,\n"


def test_a_last_line_that_was_cut_off_is_dropped_alone(tmp_path):
    (tmp_path / LOG).write_text("step,loss,entropy\n0,10,\n1,11,\n2,1")
    write(tmp_path, range(2, 3), done=2, loss=10)
    assert (tmp_path / LOG).read_text() == "step,loss,entropy\n0,10,\n1,11,\n2,12,0.5\n"


def test_tensorboard_shows_every_step_once(tmp_path):
    """The curves of the two runs join where the second began."""
    write(tmp_path, range(5), done=0, loss=10)
    (written,) = (tmp_path / "tensorboard").iterdir()
    written.rename(written.with_name("events.out.tfevents.0"))  # files are read by name, which begins with the second
    write(tmp_path, range(3, 6), done=3, loss=20)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"train/loss", "train/entropy", "validation/kappa"}
    curve = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert curve == [(0, 10), (1, 11), (2, 12), (3, 23), (4, 24), (5, 25)]
    assert [event.step for event in board.Scalars("train/entropy")] == [2, 3, 4, 5]
    kappas = [(event.step, round(event.value, 6)) for event in board.Scalars("validation/kappa")]
    assert kappas == [(1, 0.1), (3, 0.2), (5, 0.2)]


def test_pictures_are_shown_at_their_step(tmp_path):
    with Logbook(tmp_path, done=0, is_writer=True) as logbook:
        logbook.picture(7, np.zeros((4, 6, 3), dtype=np.uint8))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    (shown,) = board.Images("validation")
    assert (shown.step, shown.height, shown.width) == (7, 4, 6)


def test_the_other_processes_write_nothing(tmp_path):
    with Logbook(tmp_path, done=0, is_writer=False) as logbook:
        logbook.step(0, {"loss": 1.0})
        logbook.validation(0, {"kappa": 1.0})
        logbook.picture(0, np.zeros((4, 6, 3), dtype=np.uint8))
    assert list(tmp_path.iterdir()) == []
