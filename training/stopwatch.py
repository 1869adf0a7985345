"""The time that a piece of work takes over all its starts, also those that are cut off."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from algorithm.errors import InputError
from training.files import read_json, write_json

NOTE_EVERY_S = 20.0


@contextmanager
def all_starts(note: Path) -> Iterator[Callable[[], float]]:
    """Count seconds of work, from where an earlier start of it left off.

    A thread notes the time every 20 seconds, so that a start that is killed counts too, but for the last of them.

    Args:
        note: the file for it; gone when the work is done.

    Yields:
        The seconds so far.

    Raises:
        InputError: the note is damaged.
    """
    before = read_json(note)["seconds"] if note.is_file() else 0.0
    started, ended = time.perf_counter(), threading.Event()

    def seconds() -> float:
        return round(before + time.perf_counter() - started, 1)

    def write_note() -> None:
        with suppress(OSError, InputError):  # the work itself meets what is wrong with the disk, and says it
            write_json(note, {"seconds": seconds()})

    def keep_noting() -> None:
        while not ended.wait(NOTE_EVERY_S):
            write_note()

    thread = threading.Thread(target=keep_noting, daemon=True)
    thread.start()
    try:
        yield seconds
    except BaseException:
        _end(thread, ended)
        write_note()
        raise
    _end(thread, ended)
    note.unlink(missing_ok=True)


def _end(thread: threading.Thread, ended: threading.Event) -> None:
    ended.set()
    thread.join()
