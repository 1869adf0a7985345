"""Settings of every stage: one TOML file, checked, with the paper's values as defaults."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from algorithm.errors import InputError
from algorithm.network import PERIOD, SMALLEST_VALID_INPUT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = Path(__file__).parent / "presets"


class Settings(BaseModel):
    """Base of all settings: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PrepareSettings(Settings):
    """Caches of lobe chunks and whole scans."""

    chunk_spacing_mm: float = Field(1.2, gt=0, description="isotropic spacing of lobe chunks before resizing")
    chunk_margin_mm: float = Field(5.0, ge=0, description="margin around a lobe's bounding box")
    scan_spacing_mm: float = Field(1.5, gt=0, description="isotropic spacing of the final network's input")
    workers: int = Field(2, ge=1, description="scans prepared at a time")


class LoopSettings(Settings):
    """What every training loop needs."""

    width: int = Field(32, ge=1, description="filters of the network's first convolution")
    steps: int = Field(20_000, ge=1, description="optimiser steps")
    batch: int = Field(4, ge=1, description="chunks or crops per step")
    learning_rate: float = Field(1e-4, gt=0, description="of Adam, decayed to zero along a cosine")
    precision: Literal["32-true", "bf16-mixed"] = Field("bf16-mixed", description="arithmetic of the network")
    workers: int = Field(1, ge=0, description="processes that read ahead")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")


class RegressSettings(LoopSettings):
    """Interval regression of the lesion percentage per lobe."""

    chunk_size: int = Field(80, multiple_of=8, ge=16, description="voxels per side that a lobe chunk is resized to")
    spacing_jitter_mm: float = Field(0.1, ge=0, description="largest change of the chunk spacing in training")
    interval_weight: float = Field(2.0, ge=0, description="of the interval loss in the sum")
    entropy_weight: float = Field(1.0, ge=0, description="of the entropy term in the sum, once ramped in")
    entropy_start: float = Field(0.3, ge=0, le=1, description="fraction of the steps before the entropy term begins")
    entropy_full: float = Field(0.6, ge=0, le=1, description="fraction of the steps when it has its full weight")
    prior: float = Field(0.1, gt=0, lt=1, description="lesion probability of the untrained network")

    @model_validator(mode="after")
    def _check_ramp(self) -> Self:
        if self.entropy_full < self.entropy_start:
            raise ValueError(f"entropy_full {self.entropy_full} is before entropy_start {self.entropy_start}")
        return self


class PseudoSettings(Settings):
    """Pseudo labels from dRAMs."""

    threshold: float = Field(0.5, gt=0, lt=1, description="probability above which a voxel becomes pseudo lesion")


class SegmentSettings(LoopSettings):
    """The final network on pseudo labels."""

    batch: int = Field(2, ge=1, description="crops per step")
    crop_size: int = Field(132, ge=SMALLEST_VALID_INPUT, description="input voxels per side; 4 (mod 8)")
    beta: float = Field(0.8, ge=0, le=1, description="weight of the pseudo label against the network's own in Eq. 4")
    lesion_share: float = Field(0.5, ge=0, le=1, description="share of crops centred on pseudo lesion")

    @field_validator("crop_size")
    @classmethod
    def _check_crop(cls, size: int) -> int:
        if size % PERIOD != 4:
            raise ValueError("expected 4 more than a multiple of 8")
        return size


class ExportSettings(Settings):
    """What model.json says of the model."""

    name: str = Field("dram", description="the model's name")
    version: str = Field("0.1.0", description="the model's version")
    data: str = Field("not described", description="what the model was trained on, in a sentence")
    licence: str = Field("Apache-2.0", description="licence of the weights")


class TrainingConfig(Settings):
    """All stages of one run."""

    seed: int = Field(0, ge=0)
    prepare: PrepareSettings = PrepareSettings()
    regress: RegressSettings = RegressSettings()
    pseudo: PseudoSettings = PseudoSettings()
    segment: SegmentSettings = SegmentSettings()
    export: ExportSettings = ExportSettings()


def preset_names() -> list[str]:
    """Names of the presets that come with the project."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_config(source: str | Path) -> TrainingConfig:
    """Read settings from a TOML file, or a preset by its name.

    Raises:
        InputError: the file is missing or no TOML, a key is unknown (the nearest known one is named), or a value is
            out of range.
    """
    path = PRESETS / f"{source}.toml" if str(source) in preset_names() else Path(source)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"settings {source}: no such file; expected a TOML file or one of {preset_names()}") from error
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"settings {source}: got {error}, expected TOML") from error
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"settings {source}: " + "; ".join(_explained(e) for e in error.errors())) from error


def _explained(problem: Any) -> str:
    keys = [str(key) for key in problem["loc"]]
    where = ".".join(keys)
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg']}, got {problem['input']!r}"
    section: Any = TrainingConfig
    for key in keys[:-1]:
        section = section.model_fields[key].annotation
    known = list(section.model_fields)
    near = difflib.get_close_matches(keys[-1], known, n=1)
    return f"{where}: unknown key, " + (f"did you mean {near[0]}?" if near else f"expected one of {known}")
