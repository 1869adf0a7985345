from __future__ import annotations

import os

import pytest

from evaluation import workers
from evaluation.errors import InputError
from evaluation.workers import memory_bytes, over_scans, worker_count

GIB = 1024**3


@pytest.fixture
def machine(monkeypatch):
    """Pretend to have so many processors, so much memory, and such a setting."""

    def pretend(*, processors: int = 8, gib: float = 64, setting: str = "") -> None:
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)), raising=False)
        monkeypatch.setattr(workers, "memory_bytes", lambda: int(gib * GIB))
        monkeypatch.setenv("EVALUATION_MAX_WORKERS", setting)

    return pretend


@pytest.mark.parametrize(
    ("tasks", "pretended", "expected"),
    [
        (100, {}, 8),
        (3, {}, 3),
        (100, {"setting": "5"}, 5),
        (100, {"setting": "50"}, 8),
        (100, {"gib": 8}, 3),
        (100, {"gib": 2}, 1),
        (0, {}, 1),
    ],
)
def test_the_least_of_all_bounds(machine, tasks, pretended, expected) -> None:
    machine(**pretended)
    assert worker_count(tasks) == expected


@pytest.mark.parametrize("setting", ["0", "-1", "1.5", "all"])
def test_refuses_other_settings(machine, setting) -> None:
    machine(setting=setting)
    with pytest.raises(InputError, match=f"EVALUATION_MAX_WORKERS: got '{setting}', expected a whole number above 0"):
        worker_count(2)


@pytest.mark.parametrize(("text", "expected"), [(f"{GIB}\n", GIB), ("max\n", None), (f"{2**62}\n", None)])
def test_the_containers_limit_counts(tmp_path, monkeypatch, text, expected) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(workers, "_CONTAINER_LIMITS", (limit, tmp_path / "none"))
    physical = memory_bytes()
    limit.write_text(text)
    assert memory_bytes() == (expected or physical)


def test_one_process_works_in_order_and_here() -> None:
    assert list(over_scans(lambda number: (number, os.getpid()), [3, 1, 2])) == [(n, os.getpid()) for n in (3, 1, 2)]


def test_the_first_failing_task_is_named_and_the_results_keep_their_order(machine) -> None:
    machine(processors=2)
    assert list(over_scans(abs, [-3, 2, -1])) == [3, 2, 1]
    with pytest.raises(ValueError, match="'first'"):
        list(over_scans(int, ["1", "first", "second"]))


def test_a_killed_process_is_explained(machine) -> None:
    machine(processors=2)
    with pytest.raises(InputError, match=r"one of 2 worker processes was killed.*2 GiB.*EVALUATION_MAX_WORKERS"):
        list(over_scans(os._exit, [9, 9]))
