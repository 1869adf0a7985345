from __future__ import annotations

import os

import pytest

from evaluation import workers
from evaluation.errors import InputError, WorkerError
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


def test_a_machine_that_is_too_small_is_said(machine, caplog) -> None:
    machine(gib=2)
    worker_count(3)
    assert "got 2.0 GiB of memory, expected 3 or more" in caplog.text


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


def judged(expressions: list[str]) -> list[object]:
    """What so many tasks give, each a Python expression: the processes know no module of the tests."""
    return list(over_scans(eval, expressions, name=lambda expression: f"scan {expressions.index(expression)}"))


def test_the_results_keep_their_order_and_come_from_other_processes(in_processes) -> None:
    slow, quick, other = judged(["__import__('time').sleep(0.2) or 1", "2", "__import__('os').getpid()"])
    assert (slow, quick) == (1, 2)
    assert other != os.getpid()


def test_a_single_process_is_another_one_too(in_processes, monkeypatch) -> None:
    monkeypatch.setattr(workers, "worker_count", lambda tasks: 1)
    assert judged(["__import__('os').getpid()"]) != [os.getpid()]


def test_the_first_failing_task_in_their_order_is_raised(in_processes) -> None:
    with pytest.raises(ValueError, match="'first'"):
        judged(["__import__('time').sleep(0.2) or int('first')", "int('second')"])


def test_a_task_that_kills_its_process_is_named_and_no_other(in_processes) -> None:
    done = []
    with pytest.raises(WorkerError, match="^scan 2: judging it takes more memory than there is, or kills its process"):
        for result in over_scans(eval, ["0", "1", KILL, "3"], name=lambda task: "scan 2" if task == KILL else "other"):
            done.append(result)
    assert done == [0, 1]


KILL = "__import__('os').kill(__import__('os').getpid(), 9)"


def test_a_task_that_is_too_large_only_beside_others_is_judged_alone(in_processes, tmp_path, caplog) -> None:
    mark = tmp_path / "killed once"
    once = f"__import__('os').path.exists({str(mark)!r}) or (open({str(mark)!r}, 'w').close(), {KILL})"
    assert judged(["0", once, "2"]) == [0, True, 2]
    assert "a worker process had too little memory, or was killed" in caplog.text


def test_too_little_memory_names_the_task(in_processes) -> None:
    with pytest.raises(WorkerError, match="^scan 1: judging it takes more memory than there is"):
        judged(["0", "bytearray(1 << 62)"])


def test_no_worker_writes_to_stderr(in_processes, capfd) -> None:
    judged(["__import__('os').write(2, b'of the reference')", "__import__('warnings').warn('of it too')"])
    judged(["__import__('logging').getLogger('evaluation').warning('and this')"])
    captured = capfd.readouterr()
    assert captured.err == ""
    assert all(text in captured.out for text in ("of the reference", "of it too", "and this"))


def test_a_task_without_memory_is_done_again_alone(in_processes, tmp_path) -> None:
    mark = tmp_path / "tried"
    once = f"(lambda p: 7 if p.exists() else (p.touch(), 'x' * 10**18))(__import__('pathlib').Path({str(mark)!r}))"
    assert judged([once, "2"]) == [7, 2]
