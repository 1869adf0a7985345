"""Work over many scans in a few processes: as many as processors and memory allow, and no more than one was told."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from evaluation.errors import InputError, WorkerError
from evaluation.streams import prepare_worker

VARIABLE = "EVALUATION_MAX_WORKERS"
WORKER_MEMORY_BYTES = 2 * 1024**3
"""What a worker may need at 512 x 512 x 400 voxels; see `python -m evaluation benchmark`."""

_RESERVED_BYTES = 1024**3
_CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

_TOO_LARGE = (
    "judging it takes more memory than there is, or kills its process; expected lesions, not voxels scattered over the "
    "whole scan; where the mask is an ordinary one, the organisers need a larger machine"
)

log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")


def worker_count(tasks: int) -> int:
    """Number of processes: bounded by tasks, processors, memory at 2 GiB each, and EVALUATION_MAX_WORKERS.

    Raises:
        InputError: EVALUATION_MAX_WORKERS is not a whole number above 0.
    """
    setting = os.environ.get(VARIABLE, "").strip()
    if setting and not (setting.isascii() and setting.isdigit() and int(setting) > 0):
        raise InputError(f"{VARIABLE}: got {setting!r}, expected a whole number above 0, or nothing")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bounds = [tasks, processors, (memory_bytes() - _RESERVED_BYTES) // WORKER_MEMORY_BYTES]
    if bounds[-1] < 1:
        log.warning(
            "got %.1f GiB of memory, expected %d or more: a scan may be too large for this machine, whoever made it",
            memory_bytes() / 1024**3,
            (_RESERVED_BYTES + WORKER_MEMORY_BYTES) >> 30,
        )
    return max(1, min(bounds + [int(setting)] if setting else bounds))


def memory_bytes() -> int:
    """Memory of this machine or of the container this runs in, whichever is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CONTAINER_LIMITS:
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []  # "max" where there is none
    return min(limits)


def over_scans(
    work: Callable[[Task], Result], tasks: Sequence[Task], *, name: Callable[[Task], str]
) -> Iterator[Result]:
    """Do the same work on every task, in other processes than this one.

    When a process lacks memory or is killed, the tasks that are left are done one at a time, so that a task that is
    too large on its own can be told from several that were too large together.

    Args:
        work: a function of a module, whose results can be pickled.
        tasks: what to work on.
        name: what to call a task in an error.

    Yields:
        The results in the order of the tasks.

    Raises:
        Exception: what the first failing task in that order raised; tasks that have not begun are dropped.
        WorkerError: a task had too little memory, or killed its process even alone.
    """
    left = list(tasks)
    for workers in dict.fromkeys((worker_count(len(tasks)), 1)):
        log.info("%d scans, processes: %d", len(left), workers)
        try:
            with start_pool(workers) as pool:
                for result in pool.map(work, left[:]):
                    yield result
                    del left[0]
            return
        except (MemoryError, BrokenProcessPool):
            log.warning(
                "a worker process had too little memory, or was killed: each may need %d GiB; %s sets a smaller "
                "number of them",
                WORKER_MEMORY_BYTES >> 30,
                VARIABLE,
            )
    raise WorkerError(f"{name(left[0])}: {_TOO_LARGE}")


def start_pool(workers: int) -> Executor:
    """So many processes that share nothing with this one; even a single one, for it may be killed."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=prepare_worker)
