"""What is said about a scan: the contract of severity.json."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LobeEntry(_Entry):
    """One lobe; percent and score are null where the lobe is absent from the lobe mask."""

    name: str
    label: int = Field(ge=1, le=5)
    volume_ml: float = Field(ge=0)
    lesion_ml: float = Field(ge=0)
    percent: float | None = Field(ge=0, le=100)
    score: int | None = Field(ge=0, le=5)
    confidence: float | None = Field(
        None, ge=0, le=1, description="Dice that the lobe network expects of its own lobe; null where lobes were given"
    )


class ComponentEntry(_Entry):
    """One connected lesion."""

    subtype: Literal["ground-glass", "consolidation", "mixed"]
    volume_ml: float = Field(gt=0)
    mean_hu: float
    centre_xyz_mm: tuple[float, float, float] = Field(description="centre of mass in patient coordinates (LPS)")


class ModelIdentity(_Entry):
    """Which model made the result."""

    name: str
    version: str
    weights_sha256: str
    lobe_weights_sha256: str | None = Field(None, description="null where the model cannot find lobes")


class Timings(_Entry):
    """Seconds spent per step."""

    lobes_s: float = Field(0.0, ge=0)
    preprocess_s: float = Field(ge=0)
    network_s: float = Field(ge=0)
    postprocess_s: float = Field(ge=0)


class SeverityReport(_Entry):
    """Involvement of each lobe, the scores, and every lesion."""

    schema_version: Literal[1] = 1
    algorithm_version: str
    model: ModelIdentity
    device: str
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of the lesion network")
    lobes_source: Literal["given", "model", "lungmask"] = "given"
    lobes: list[LobeEntry] = Field(min_length=5, max_length=5)
    total_score: int | None = Field(ge=0, le=25, description="null where a lobe is absent")
    lesion_ml: float = Field(ge=0)
    subtype_ml: dict[str, float]
    components: list[ComponentEntry] = Field(description="largest first")
    warnings: list[str]
    timings: Timings


class FoundLobe(_Entry):
    """One lobe of a scan that came without."""

    name: str
    label: int = Field(ge=1, le=5)
    volume_ml: float = Field(ge=0)
    confidence: float | None = Field(ge=0, le=1, description="expected Dice; null where none is known")


class LobesReport(_Entry):
    """What `lobes` says of the lobes that it found."""

    schema_version: Literal[1] = 1
    algorithm_version: str
    source: Literal["model", "lungmask"]
    lobes: list[FoundLobe] = Field(min_length=5, max_length=5)
    lungs_ml: float = Field(ge=0)
    warnings: list[str]
    seconds: float = Field(ge=0)


def severity_json_schema() -> dict[str, Any]:
    """The JSON schema of severity.json."""
    return SeverityReport.model_json_schema()


def or_dash(value: float | None, form: str) -> str:
    """A number as a table shows it, formatted by ``form``; a dash where there is none."""
    return "-" if value is None else format(value, form)
