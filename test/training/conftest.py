"""A data set of a few coarse phantoms, and settings that make every stage take seconds."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.phantom.generate import PhantomOptions, write_phantoms
from training.run import PREPARE, STAGES, VESSELS
from training.settings import TrainingConfig
from training.stages import Run, execute


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training cases, the first of them healthy, one for validation and one for testing."""
    out = tmp_path_factory.mktemp("phantoms")
    options = PhantomOptions(coarseness=4.0, validation=1, test=1, healthy=1)
    write_phantoms(cases=5, seed=5, out=out, options=options)
    return out


@pytest.fixture(scope="session")
def tiny_config() -> TrainingConfig:
    loop = {"width": 1, "precision": "32-true", "learning_rate": 1e-2}
    return TrainingConfig.model_validate(
        {
            "prepare": {"chunk_spacing_mm": 4.0, "scan_spacing_mm": 5.0},
            "vessels": {
                **loop, "patch_size": 16, "batch": 2, "steps": 3, "sigmas_mm": [3.0, 5.0], "thickest_mm": 500.0,
            },
            "regress": {
                **loop, "chunk_size": 16, "batch": 4, "steps": 6, "checkpoint_every": 2, "validate_every": 3,
                "equivariance": {"start": 0.3, "full": 0.5}, "entropy": {"start": 0.3, "full": 0.5},
                "refinement": {"start": 0.3, "full": 0.5},
            },
            "cam": {**loop, "chunk_size": 16, "batch": 4, "steps": 3},
            "lobes": {
                **loop, "spacing_mm": 8.0, "crop_size_zyx": [32, 32, 32], "steps": 6, "checkpoint_every": 2,
                "validate_every": 3,
            },
            "fissures": {**loop, "patch_size": 16, "steps": 6, "checkpoint_every": 2, "validate_every": 3},
            "pseudo": {"scales": [1.0, 1.5]},
            "segment": {**loop, "crop_size": 92, "steps": 3},
        }
    )  # fmt: skip


@pytest.fixture(scope="session")
def ready(phantoms: Path, tiny_config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose caches and vessels are made."""
    run = Run(phantoms, tmp_path_factory.mktemp("ready"), tiny_config, device="cpu")
    for stage in (PREPARE, VESSELS):
        execute(run, stage)
    return run


@pytest.fixture
def with_caches(ready: Run) -> Callable[[Path], Path]:
    """Make a new run directory that has the caches and the vessels already."""

    def make(directory: Path) -> Path:
        directory.mkdir()
        for stage in (PREPARE, VESSELS):
            (directory / stage.name).symlink_to(ready.directory / stage.name)
        return directory

    return make


@pytest.fixture(scope="session")
def start_from() -> Callable[..., Run]:
    """Make a run in another directory of which a stage begins with a model's network."""

    def make(run: Run, stage: str, directory: Path, model: Path, **values: Any) -> Run:
        settings = run.config.model_dump(mode="json")
        settings[stage] |= {"start_from": str(model), **values}
        config = TrainingConfig.model_validate_json(json.dumps(settings))
        return replace(run, config=config, directory=directory)

    return make


@pytest.fixture(scope="session")
def finished(phantoms: Path, tiny_config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All stages, the comparison before the export so that its results are exported."""
    run = Run(phantoms, tmp_path_factory.mktemp("run"), tiny_config, device="cpu")
    for stage in STAGES:
        execute(run, stage)
    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 KiB, less than a checkpoint and a picture take."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)
