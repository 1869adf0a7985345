"""A data set of a few coarse phantoms, and settings that make every stage take seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.config import TrainingConfig
from training.phantom.generate import PhantomOptions, write_phantoms


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training cases, one for validation and one for testing."""
    out = tmp_path_factory.mktemp("phantoms")
    write_phantoms(cases=4, seed=4, out=out, options=PhantomOptions(coarseness=4.0, validation=1, test=1))
    return out


@pytest.fixture(scope="session")
def tiny_config() -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "prepare": {"chunk_spacing_mm": 4.0, "scan_spacing_mm": 5.0, "workers": 1},
            "regress": {
                "width": 1, "chunk_size": 16, "batch": 4, "steps": 6, "workers": 0, "checkpoint_every": 2,
                "learning_rate": 1e-2, "precision": "32-true", "entropy_start": 0.0, "entropy_full": 0.5,
            },
            "segment": {"width": 1, "crop_size": 92, "steps": 3, "workers": 0, "precision": "32-true"},
        }
    )  # fmt: skip
