import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from algorithm.errors import InputError
from training import stages
from training.files import write_text
from training.settings import TrainingConfig
from training.stages import Run, Stage, environment, execute

ROOT = Path(__file__).resolve().parents[2]
IN_ANOTHER_PROCESS = """
import sys, time
from pathlib import Path
from training.settings import TrainingConfig
from training.stages import Run, Stage, execute

def work(run, folder):
    print("at work", flush=True)
    time.sleep(60)

data, directory = map(Path, sys.argv[1:])
execute(Run(data, directory, TrainingConfig()), Stage("one", "", (), lambda c: c.regress, work))
"""


class Work:
    """A stage's work that counts how often it is done."""

    def __init__(self, results=None, error=None):
        self.times, self.results, self.error = 0, results or {}, error

    def __call__(self, run, folder):
        self.times += 1
        if self.error is not None:
            raise self.error
        write_text(folder / "result.txt", str(self.results))
        return self.results


def stage(work, name="one", needs=(), **more):
    return Stage(name, "", needs, lambda config: config.regress, work, **more)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "cases.csv").write_text("case\na\n")
    return Run(tmp_path, tmp_path / "run", TrainingConfig())


def changed(run, **values):
    return Run(run.data, run.directory, TrainingConfig.model_validate(values))


def names(run):
    return sorted(path.relative_to(run.directory).as_posix() for path in run.directory.rglob("*") if path.is_file())


def test_a_stage_is_recorded_and_done_once(run, capsys):
    work = Work({"lobes": 3})
    execute(run, stage(work))
    record = run.record("one")
    assert record["results"] == {"lobes": 3} and record["seed"] == 0
    assert record["settings"] == run.config.regress.model_dump(mode="json")
    assert record["config"] == run.config.model_dump(mode="json")
    assert record["environment"] == environment()
    assert record["data_sha256"] == hashlib.sha256(b"case\na\n").hexdigest()
    assert names(run) == [".one.lock", "config.json", "one/basis.json", "one/done.json", "one/result.txt"]
    before = {name: (run.directory / name).stat().st_mtime_ns for name in names(run)}
    execute(run, stage(work))
    assert work.times == 1 and "one: done already in" in capsys.readouterr().out
    assert before == {name: (run.directory / name).stat().st_mtime_ns for name in names(run)}


def test_the_run_says_what_it_was_started_with_last(run):
    execute(run, stage(Work()))
    other = changed(run, segment={"width": 4})
    execute(other, stage(Work(), "two"))
    latest = json.loads((run.directory / "config.json").read_text())
    assert latest == {
        "data": str(run.data),
        "config": other.config.model_dump(mode="json"),
        "environment": environment(),
    }
    assert run.record("one")["config"]["segment"]["width"] == 32


def test_the_environment_names_versions_and_commit(tmp_path, monkeypatch):
    found = environment()
    assert {"version", "commit", "python", "torch", "numpy", "SimpleITK", "device", "cores"} <= set(found)
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no git
    assert environment() == {**found, "commit": "unknown"}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"regress": {"width": 4}}, r"one: begun with other settings; use the same ones, another run .*width: then 32"),
        ({"regress": {"crf": {"iterations": 2}}}, r"\(settings\.crf\.iterations: then 5, now 2\)$"),
        ({"seed": 1}, r"one: begun with other seed; .* or delete this folder to start the stage again$"),
    ],
)
@pytest.mark.parametrize("error", [None, RuntimeError("stopped")], ids=["done", "begun"])
def test_another_basis_is_refused(run, values, message, error):
    try:
        execute(run, stage(Work(error=error)))
    except RuntimeError:
        assert not (run.directory / "one" / "done.json").exists()
    work = Work()
    with pytest.raises(InputError, match=message):
        execute(changed(run, **values), stage(work))
    assert work.times == 0


def test_other_data_are_refused(run):
    execute(run, stage(Work()))
    (run.data / "cases.csv").write_text("case\nb\n")
    with pytest.raises(InputError, match="begun with other data_sha256"):
        execute(run, stage(Work()))
    (run.data / "cases.csv").unlink()
    with pytest.raises(InputError, match=r"cases\.csv: no such file; expected the table of cases"):
        execute(run, stage(Work()))


def test_settings_of_other_stages_do_not_matter(run):
    work = Work()
    execute(run, stage(work))
    execute(changed(run, segment={"width": 4}), stage(work))
    assert work.times == 1


def test_earlier_stages_must_be_done_and_stay_what_they_were(run):
    two = Work()
    with pytest.raises(InputError, match="stage one is not done; run `python -m training one` first"):
        execute(run, stage(two, "two", (stage(Work()),)))
    execute(run, stage(Work()))
    execute(run, stage(two, "two", (stage(Work()),)))

    done = run.directory / "one" / "done.json"
    done.unlink()
    execute(run, stage(Work()))  # to the same effect, if not in the same time
    execute(run, stage(two, "two", (stage(Work()),)))
    assert two.times == 1

    def other_weights(run, folder):
        write_text(folder / "checkpoint.pt", "")
        return {}

    for work in (Work({"lobes": 4}), other_weights):
        done.unlink()
        execute(run, stage(work))
        with pytest.raises(InputError, match="two: begun with other earlier_stages_sha256"):
            execute(run, stage(two, "two", (stage(Work()),)))


def test_all_earlier_stages_must_have_what_the_run_has_now(run):
    one = stage(Work())
    two = Stage("two", "", (one,), lambda config: config.pseudo, Work())
    three = Stage("three", "", (two,), lambda config: config.segment, Work())
    for each in (one, two):
        execute(run, each)
    refusals = {
        r"run/one: begun with other settings; .*\(settings\.width: then 32, now 4\)": {"regress": {"width": 4}},
        r"run/two: begun with other settings; .*\(settings\.threshold: then None, now 0\.6\)": {
            "pseudo": {"threshold": 0.6}
        },
        r"run/one: begun with other seed;": {"seed": 1},
    }
    for message, values in refusals.items():
        with pytest.raises(InputError, match=message):
            execute(changed(run, **values), three)
    (run.data / "cases.csv").write_text("case\nb\n")
    with pytest.raises(InputError, match="run/one: begun with other data_sha256;"):
        execute(run, three)
    (run.data / "cases.csv").write_text("case\na\n")
    execute(run, three)

    (run.directory / "one" / "done.json").unlink()
    execute(run, stage(Work({"lobes": 4})))
    with pytest.raises(InputError, match="run/two: begun with other earlier_stages_sha256;"):
        execute(run, three)


def test_what_is_used_if_done_is_used_while_it_is_current(run):
    seen = []

    def look(run, folder):
        record = run.record_if_current("extra")
        seen.append(record and record["results"])
        return {}

    one = stage(Work())
    extra, last = stage(Work({"iou": 1}), "extra", (one,)), stage(look, "last", (one,), uses=("extra",))
    execute(run, one)
    execute(run, last)
    execute(run, extra)
    for _ in range(2):
        execute(run, last)
    assert seen == [None, {"iou": 1}]

    for name in ("one", "last"):  # what the extra stage found is of another result than this
        (run.directory / name / "done.json").unlink()
    (run.directory / "last" / "basis.json").unlink()
    execute(run, stage(Work({"lobes": 4})))
    execute(run, last)
    assert seen == [None, {"iou": 1}, None]


def test_a_stage_that_is_repeated_is_not_done_before_it_ends(run):
    work = Work()
    last = stage(work, "last", uses=("extra",))
    execute(run, last)
    execute(run, stage(Work(), "extra"))
    work.error = RuntimeError("stopped")
    with pytest.raises(RuntimeError, match="stopped"):
        execute(run, last)
    work.error = None
    execute(run, last)
    assert work.times == 3


def test_memory_is_that_of_this_process_and_of_its_largest_child(run, capsys):
    def work(run, folder):
        subprocess.run([sys.executable, "-c", "b'1' * 700_000_000"], check=True)
        return {}

    execute(run, stage(work))
    record = run.record("one")
    assert record["peak_memory_of_a_worker_gb"] >= 0.7 and record["peak_memory_gb"] > 0.1
    printed = capsys.readouterr().out
    assert f"peak {record['peak_memory_gb']} GB, of a worker {record['peak_memory_of_a_worker_gb']} GB" in printed


def test_all_starts_of_a_stage_count(run, capsys):
    folder = run.directory / "one"
    folder.mkdir(parents=True)
    write_text(folder / "seconds.json", '{"seconds": 1000}')  # as a start left it that was killed
    with pytest.raises(ValueError, match="a bug"):
        execute(run, stage(Work(error=ValueError("a bug"))))
    execute(run, stage(Work()))
    seconds = run.record("one")["seconds"]
    assert 1000 <= seconds < 1300 and f"one: {seconds} s, peak" in capsys.readouterr().out
    assert not (folder / "seconds.json").exists()


def test_a_full_disk_anywhere_in_a_stage_is_said_and_the_stage_goes_on_later(run):
    full = OSError(28, "No space left on device")
    with pytest.raises(InputError, match=r"run/one: no space left on the disk, .* finished parts are kept") as caught:
        execute(run, stage(Work(error=full)))
    assert "\n" not in str(caught.value) and not (run.directory / "one" / "done.json").exists()
    with pytest.raises(ValueError, match="^a bug$"):
        execute(run, stage(Work(error=ValueError("a bug"))))
    execute(run, stage(Work()))
    assert run.record("one")["results"] == {}


def test_what_a_killed_process_left_is_removed_first(run):
    left = run.directory / "one" / "checkpoint.pt.0f.tmp"
    left.parent.mkdir(parents=True)
    left.touch()
    execute(run, stage(Work()))
    assert not left.exists()


def test_two_processes_do_not_both_work_and_a_killed_one_lets_go(run):
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(run.data), str(run.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "at work\n"
            work = Work()
            with pytest.raises(InputError, match="one: another process is working on this stage; wait for it to end"):
                execute(run, stage(work))
            execute(run, stage(Work(), "two"))  # another stage is free
        finally:
            os.kill(other.pid, signal.SIGKILL)
    assert work.times == 0
    execute(run, stage(work))
    assert work.times == 1


def test_the_lock_is_free_after_an_error(run):
    with pytest.raises(ValueError, match="a bug"):
        execute(run, stage(Work(error=ValueError("a bug"))))
    execute(run, stage(Work()))


def test_a_stage_that_another_process_finished_meanwhile_is_not_done_again(run, monkeypatch):
    first, second = Work(), Work()
    lock = stages._only_process

    def late(*args):
        monkeypatch.setattr(stages, "_only_process", lock)
        execute(run, stage(first))
        return lock(*args)

    monkeypatch.setattr(stages, "_only_process", late)
    execute(run, stage(second))
    assert (first.times, second.times) == (1, 0)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_several_processes_do_only_what_is_done_together(run, rank, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    work = Work()
    with pytest.raises(InputError, match="^stage one: got 2 processes, expected one; run it without torchrun$"):
        execute(run, stage(work))
    assert work.times == 0 and not run.directory.exists()


def test_tasks_of_slurm_are_no_ranks(run, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    execute(run, stage(Work()))
    assert run.record("one")["results"] == {}


@pytest.fixture
def second_rank(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(stages, "_PATIENCE_S", 0.3)


def test_other_ranks_work_but_write_no_record(run, second_rank):
    work = Work()
    one = stage(work, together=True)
    with pytest.raises(InputError, match=r"basis\.json: rank 0 has not begun the stage within 0\.3 s"):
        execute(run, one)
    assert work.times == 0

    begins = threading.Timer(0.1, lambda: begin(run))
    begins.start()
    execute(run, one)
    begins.join()
    assert work.times == 1 and names(run) == ["one/basis.json", "one/result.txt"]
    with pytest.raises(InputError, match="begun with other seed"):
        execute(changed(run, seed=1), one)
    (run.directory / "one" / "done.json").write_text("{}")
    execute(run, one)
    assert work.times == 1


def begin(run):
    """What rank 0 does before the work."""
    (run.directory / "one").mkdir(parents=True)
    write_text(run.directory / "one" / "basis.json", json.dumps(stages._basis(run, stage(Work()))))


def test_the_first_of_several_ranks_spares_what_others_may_be_writing(run, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    left = run.directory / "one" / "a.npy.0f.tmp"
    left.parent.mkdir(parents=True)
    left.touch()
    execute(run, stage(Work(), together=True))
    assert left.exists() and (run.directory / "one" / "done.json").is_file()
