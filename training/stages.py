"""The run directory: a folder per stage, and the record that says a stage is done, with what and from what."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from algorithm import __version__
from algorithm.errors import InputError
from algorithm.model import sha256
from training.cases import TABLE
from training.files import changes, explained_when_full, read_json, remove_stale, sha256_of_files, write_json
from training.parallel import Workers, console, end_workers
from training.settings import Settings, TrainingConfig
from training.stopwatch import all_starts

RECORD = "done.json"
BASIS = "basis.json"
CONFIG = "config.json"
SECONDS = "seconds.json"

_LIBRARIES = ("torch", "lightning-fabric", "numpy", "scipy", "SimpleITK")
_EARLIER, _USED = "earlier_stages_sha256", "used_if_done_sha256"
_COST = ("seconds", "peak_memory_gb", "peak_memory_of_a_worker_gb", "environment", "config")
_PATIENCE_S = 600.0
_POLL_S = 0.1


@dataclass(frozen=True)
class Run:
    """What every stage is given.

    Attributes:
        data: directory with cases.csv.
        directory: where the stages write, a folder each.
        config: settings of all stages.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: who does the work over scans, and how many processes read ahead for a GPU.
    """

    data: Path
    directory: Path
    config: TrainingConfig
    device: str = "auto"
    workers: Workers = Workers()

    def folder(self, stage: str) -> Path:
        """The folder of a finished stage.

        Raises:
            InputError: the stage has not been run.
        """
        folder = self.directory / stage
        if not (folder / RECORD).is_file():
            raise InputError(f"{folder}: stage {stage} is not done; run `python -m training {stage}` first")
        return folder

    def record(self, stage: str) -> dict[str, Any]:
        """What a finished stage recorded: its settings, environment, cost and results."""
        return read_json(self.folder(stage) / RECORD)

    def record_if_current(self, stage: str) -> dict[str, Any] | None:
        """The record of a stage, if it is finished and what it read from earlier stages is what they hold now."""
        if not (self.directory / stage / RECORD).is_file():
            return None
        record = self.record(stage)
        for name, digest in record[_EARLIER].items():
            if not (self.directory / name / RECORD).is_file() or sha256_of_results(self.record(name)) != digest:
                return None
        return record


@dataclass(frozen=True)
class Stage:
    """A step of the training.

    Attributes:
        name: the sub-command, and the stage's folder.
        summary: one line of help.
        needs: stages whose results it reads.
        settings: the part of the configuration that it depends on.
        work: does it, resuming from whatever it finds in its folder, and returns results worth recording.
        together: whether processes that torchrun started do it together.
        uses: names of stages whose results it reads where they are done and current; it is done again with new ones.
    """

    name: str
    summary: str
    needs: tuple[Stage, ...]
    settings: Callable[[TrainingConfig], Settings]
    work: Callable[[Run, Path], dict[str, Any]]
    together: bool = False
    uses: tuple[str, ...] = ()


def execute(run: Run, stage: Stage) -> None:
    """Do a stage unless it is done already, and record what it took.

    One process at a time may work on a stage of a run. Where several processes train together, all of them do the
    work; only rank 0 locks the stage, writes its basis and its record, and the others wait until it has begun.

    Raises:
        InputError: a stage that it needs is not done; it or one that it needs was done, or begun, on another basis
            (other settings, data, or results of earlier stages); another process is at it; several processes are to
            do what takes one; or the disk is full.
    """
    if processes() > 1 and not stage.together:
        raise InputError(f"stage {stage.name}: got {processes()} processes, expected one; run it without torchrun")
    folder, is_first = run.directory / stage.name, rank() == 0
    if not is_first:
        _wait_for(folder / BASIS)
    basis = _basis(run, stage)
    if is_done(folder, basis):
        if is_first:
            console.print(f"{stage.name}: done already in {folder}", markup=False, soft_wrap=True)
        return
    with explained_when_full(folder):
        if not is_first:
            stage.work(run, folder)
            return
        folder.mkdir(parents=True, exist_ok=True)
        with _only_process(run.directory / f".{stage.name}.lock", folder):
            if not is_done(folder, basis):  # by another process, just now
                _work(run, stage, folder, basis)


def current_record(run: Run, stage: Stage) -> dict[str, Any]:
    """The record of a stage that is done, as are those that it needs, with the settings, seed and data of this run.

    Raises:
        InputError: one of them is not done, or was done with others.
    """
    is_done(run.directory / stage.name, _basis(run, stage))
    return run.record(stage.name)


def commits_behind(directory: Path, *stages: str) -> dict[str, str]:
    """The commit at which each stage was done that the results of some come from, theirs included.

    Args:
        directory: of the run.
        stages: names of finished stages.
    """
    commits: dict[str, str] = {}
    for name in stages:
        record = read_json(directory / name / RECORD)
        commits |= commits_behind(directory, *record[_EARLIER]) | {name: record["environment"]["commit"]}
    return commits


def sha256_of_results(record: dict[str, Any]) -> str:
    """Digest of what came out of a finished stage, and from what: the same when it is repeated to the same effect."""
    lasting = {key: value for key, value in record.items() if key not in _COST}
    return sha256(json.dumps(lasting, sort_keys=True).encode())


def environment() -> dict[str, str]:
    """Versions, hardware and commit of this run."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return {
        "version": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{library: version(library) for library in _LIBRARIES},
        "device": device,
        "cores": str(os.cpu_count()),
    }


def processor() -> str:
    """The processor's name; Linux says it in a file."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _work(run: Run, stage: Stage, folder: Path, basis: dict[str, Any]) -> None:
    remove_stale(folder, untouched_s=_PATIENCE_S if processes() > 1 else 0.0)
    (folder / RECORD).unlink(missing_ok=True)
    write_json(folder / BASIS, basis)
    about = {"config": run.config.model_dump(mode="json"), "environment": environment()}
    write_json(run.directory / CONFIG, {"data": str(run.data), **about})
    with all_starts(folder / SECONDS) as seconds:
        results = stage.work(run, folder)
        end_workers()  # the system counts the memory of processes that have ended
        record = {
            "stage": stage.name,
            **basis,
            "processes": processes(),
            "results": results,
            "files_sha256": _sha256_of_files(folder),
            "seconds": seconds(),
            "peak_memory_gb": _peak_memory_gb(resource.RUSAGE_SELF),
            "peak_memory_of_a_worker_gb": _peak_memory_gb(resource.RUSAGE_CHILDREN),
            **about,
        }
        write_json(folder / RECORD, record)
    peaks = f"peak {record['peak_memory_gb']} GB, of a worker {record['peak_memory_of_a_worker_gb']} GB"
    cost = f"{record['seconds']} s, {peaks}"
    console.print(f"{stage.name}: {cost}; {folder}", markup=False, soft_wrap=True)


def _peak_memory_gb(whose: int) -> float:
    """Greatest memory so far of this process, or of the largest of its children that have ended."""
    return round(resource.getrusage(whose).ru_maxrss * 1024 / 1e9, 2)


def _basis(run: Run, stage: Stage) -> dict[str, Any]:
    """What a stage's results come from; an error where a stage that it needs is not done on a basis of today."""
    table = run.data / TABLE
    if not table.is_file():
        raise InputError(f"{table}: no such file; expected the table of cases (see README, training data)")
    basis = {
        "settings": stage.settings(run.config).model_dump(mode="json"),
        "seed": run.config.seed,
        "data_sha256": sha256(table.read_bytes()),
        _EARLIER: {need.name: sha256_of_results(current_record(run, need)) for need in stage.needs},
    }
    if stage.uses:
        records = {name: run.record_if_current(name) for name in stage.uses}
        basis[_USED] = {name: record and sha256_of_results(record) for name, record in records.items()}
    return basis


def _sha256_of_files(folder: Path) -> str:
    """Digest of the files directly in a stage's folder."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file())
    return sha256_of_files(path for path in files if path.name not in (BASIS, RECORD, SECONDS))


def is_done(folder: Path, basis: dict[str, Any]) -> bool:
    """Whether the stage is done on this basis; an error where it was begun on one that it cannot go on from."""
    if (folder / BASIS).is_file():
        begun = read_json(folder / BASIS)
        different = [name for name in basis if begun.get(name) != basis[name]]
        if different == [_USED]:
            return False
        if different:
            changed = changes(begun.get("settings"), basis.get("settings"), "settings")
            raise InputError(
                f"{folder}: begun with other {' and '.join(different)}; use the same ones, another run directory, "
                "or delete this folder to start the stage again" + (f" ({'; '.join(changed)})" if changed else "")
            )
    return (folder / RECORD).is_file()


@contextmanager
def _only_process(lock: Path, folder: Path) -> Iterator[None]:
    """Keep other processes out; the operating system lets them in when this one ends, however it ends."""
    try:
        held = FileLock(lock).acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{folder}: another process is working on this stage; wait for it to end") from error
    with held:
        yield


def rank() -> int:
    """Number of this process among those that train together, as torchrun gives it."""
    return int(os.environ.get("RANK", 0))


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _wait_for(path: Path) -> None:
    """Wait until rank 0 has written a file."""
    ends = time.monotonic() + _PATIENCE_S
    while not path.is_file():
        if time.monotonic() > ends:
            raise InputError(f"{path}: rank 0 has not begun the stage within {_PATIENCE_S:g} s; see its messages")
        time.sleep(_POLL_S)


def _commit() -> str:
    """Commit of this code, with ``-dirty`` where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
