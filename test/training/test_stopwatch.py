import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from algorithm.errors import InputError
from training import stopwatch
from training.files import read_json, write_json
from training.stopwatch import all_starts

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_END = """
import sys, time
from pathlib import Path
from training import stopwatch

stopwatch.NOTE_EVERY_S = 0.05
note = Path(sys.argv[1])
with stopwatch.all_starts(note):
    while not note.is_file() or stopwatch.read_json(note)["seconds"] < 0.3:
        time.sleep(0.02)
    print("noted", flush=True)
    time.sleep(60)
"""


def test_work_that_is_done_leaves_no_note(tmp_path):
    with all_starts(tmp_path / "seconds.json") as seconds:
        assert 0 <= seconds() < 60
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_fails_counts(tmp_path):
    note = tmp_path / "seconds.json"
    write_json(note, {"seconds": 1000.0})
    for _ in range(2):
        before = read_json(note)["seconds"]
        with pytest.raises(ValueError, match="a bug"), all_starts(note):
            raise ValueError("a bug")
        assert before <= read_json(note)["seconds"] < before + 60
    with all_starts(note) as seconds:
        assert 1000 <= seconds() < 1180
    assert not note.exists()


def test_a_start_that_is_killed_counts(tmp_path):
    note = tmp_path / "seconds.json"
    command = [sys.executable, "-c", WITHOUT_END, str(note)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "noted\n"
        finally:
            os.kill(process.pid, signal.SIGKILL)
    with all_starts(note) as seconds:
        assert seconds() >= 0.3


def test_a_full_disk_that_takes_no_note_does_not_stop_the_work(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(stopwatch, "NOTE_EVERY_S", 0.01)
    third, tries = threading.Event(), itertools.count(1)

    def full(descriptor):
        if next(tries) == 3:
            third.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with all_starts(tmp_path / "seconds.json"):
        assert third.wait(timeout=30)
    assert not recwarn.list
    with pytest.raises(ValueError, match="a bug"), all_starts(tmp_path / "seconds.json"):
        raise ValueError("a bug")


def test_a_damaged_note_is_refused(tmp_path):
    note = tmp_path / "seconds.json"
    note.write_text("{")
    with pytest.raises(InputError, match=r"seconds\.json"), all_starts(note):
        pass
