"""The run directory: a folder per stage, and the record that says a stage is done, with what and from what."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from algorithm import __version__
from algorithm.errors import InputError
from training.cases import TABLE
from training.config import Settings, TrainingConfig

RECORD = "done.json"
console = Console()


@dataclass(frozen=True)
class Run:
    """What every stage is given.

    Attributes:
        data: directory with cases.csv.
        directory: where the stages write, a folder each.
        config: settings of all stages.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    data: Path
    directory: Path
    config: TrainingConfig
    device: str = "auto"

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
        content: dict[str, Any] = json.loads((self.folder(stage) / RECORD).read_text(encoding="utf-8"))
        return content


@dataclass(frozen=True)
class Stage:
    """A step of the training.

    Attributes:
        name: the sub-command, and the stage's folder.
        summary: one line of help.
        needs: stages whose results it reads.
        settings: the part of the configuration that it depends on.
        work: does it, resuming from whatever it finds in its folder, and returns results worth recording.
    """

    name: str
    summary: str
    needs: tuple[str, ...]
    settings: Callable[[TrainingConfig], Settings]
    work: Callable[[Run, Path], dict[str, Any]]


def execute(run: Run, stage: Stage) -> None:
    """Do a stage unless it is done already, and record what it took.

    Raises:
        InputError: a stage that it needs is not done, or it was done, or begun, on another basis: other settings,
            data, or results of earlier stages.
    """
    folder = run.directory / stage.name
    basis = {
        "settings": stage.settings(run.config).model_dump(mode="json"),
        "seed": run.config.seed,
        "data_sha256": _sha256(run.data / TABLE),
        "earlier_stages_sha256": {name: _sha256(run.folder(name) / RECORD) for name in stage.needs},
    }
    _require_same_basis(folder, basis)
    if (folder / RECORD).is_file():
        console.print(f"{stage.name}: done already in {folder}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "basis.json", basis)
    started = time.perf_counter()
    results = stage.work(run, folder)
    record = {
        "stage": stage.name,
        **basis,
        "results": results,
        "seconds_of_last_start": round(time.perf_counter() - started, 1),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "environment": environment(),
    }
    write_json(folder / RECORD, record)
    console.print(f"{stage.name}: {record['seconds_of_last_start']} s, peak {record['peak_memory_gb']} GB; {folder}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file under a temporary name, then rename it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def environment() -> dict[str, str]:
    """Versions, hardware and commit of this run."""
    git = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "version": __version__,
        "commit": git.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "cores": str(os.cpu_count()),
    }


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected the table of cases (see README, training data)") from error


def _require_same_basis(folder: Path, basis: dict[str, Any]) -> None:
    path = folder / "basis.json"
    if not path.is_file():
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    different = [name for name in basis if begun.get(name) != basis[name]]
    if different:
        raise InputError(
            f"{folder}: begun with other {' and '.join(different)}; use the same ones, another run directory, "
            "or delete this folder to start the stage again"
        )
