"""The model directory: model.json, safetensors weights, the subtype table; nothing is loaded unchecked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from algorithm.errors import InputError
from algorithm.folded_network import FoldedUNet
from algorithm.lobes import LOBES
from algorithm.network import UNet3D
from algorithm.preprocess import WINDOW_HU
from algorithm.report import ModelIdentity
from algorithm.severity import SCORE_LOWER_PERCENT
from algorithm.subtypes import ReferenceComponents, VoteRules

DESCRIPTION = "model.json"
LESION_WEIGHTS = "lesion.safetensors"
LOBE_WEIGHTS = "lobes.safetensors"
SUBTYPE_TABLE = "subtypes.csv"
PLATFORM_DIRECTORY = Path("/opt/ml/model")
PACKAGED_DIRECTORY = Path(__file__).parent / "model"
CLASSES = ("background", "vessel", "lesion")
VESSEL, LESION = CLASSES.index("vessel"), CLASSES.index("lesion")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LobeNetworks(nn.Module):
    """What a model finds lobes with.

    Attributes:
        chest: finds them in a whole scan; six logits, background first.
        fissures: one logit, of a voxel beside a fissure, on the same grid; None where a model has no such network.
    """

    def __init__(self, chest: FoldedUNet, fissures: UNet3D | None) -> None:
        """Join networks."""
        super().__init__()
        self.chest, self.fissures = chest, fissures


class Architecture(_Part):
    """Size of the final network; everything else about it is fixed."""

    name: Literal["UNet3D"] = "UNet3D"
    width: int = Field(ge=1)
    padding: Literal["valid"] = "valid"
    norm: Literal["batch"] = "batch"


class Preprocessing(_Part):
    """How a scan becomes the network's input."""

    spacing_mm: float = Field(gt=0)
    window_hu: tuple[float, float] = WINDOW_HU


class LobeNetwork(_Part):
    """The networks that find the lobes where none are given: their size, and how a scan becomes their input."""

    name: Literal["UNet3D"] = "UNet3D"
    width: int = Field(ge=1)
    padding: Literal["same"] = "same"
    norm: Literal["instance"] = "instance"
    spacing_mm: float = Field(gt=0)
    fold: int = Field(1, ge=1, description="voxels per axis of the blocks that the network computes on")
    fissure_width: int | None = Field(None, ge=1, description="of the network that sees fissures; null without one")
    window_hu: tuple[float, float]

    def untrained(self) -> LobeNetworks:
        """Networks of this size."""
        chest = FoldedUNet(classes=1 + len(LOBES), width=self.width, fold=self.fold, norm=self.norm)
        fissures = UNet3D(out_channels=1, width=self.fissure_width, padding="valid") if self.fissure_width else None
        return LobeNetworks(chest, fissures)


class ModelDescription(_Part):
    """The contents of model.json."""

    schema_version: Literal[1] = 1
    name: str
    version: str
    architecture: Architecture
    preprocessing: Preprocessing
    lobe_network: LobeNetwork | None = Field(None, description="null where the model cannot find lobes by itself")
    classes: tuple[str, ...] = CLASSES
    lobes: dict[str, int] = {lobe.key: lobe.label for lobe in LOBES}
    score_lower_percent: tuple[float, ...] = SCORE_LOWER_PERCENT
    lesion_margin: float = Field(
        0.0,
        gt=-1,
        lt=1,
        description="lesion is where its probability exceeds that of any other class by more than this",
    )
    subtype_vote: VoteRules = VoteRules()
    training: dict[str, Any] = Field(description="data, seed, commit, settings")
    results: dict[str, Any] = Field(description="what was measured, on what")
    intended_use: str
    licence: str
    files: dict[str, str] = Field(description="SHA-256 of each file beside model.json")

    @property
    def identity(self) -> ModelIdentity:
        """What a report says of the model."""
        return ModelIdentity(
            name=self.name,
            version=self.version,
            weights_sha256=self.files[LESION_WEIGHTS],
            lobe_weights_sha256=self.files.get(LOBE_WEIGHTS),
        )


@dataclass(frozen=True)
class Model:
    """A loaded and checked model directory."""

    description: ModelDescription
    network: UNet3D
    reference: ReferenceComponents
    lobe_networks: LobeNetworks | None


def find_model(explicit: Path | None = None) -> Path:
    """The model directory to use: the one asked for, else the platform's if it holds anything, else the packaged one.

    Raises:
        InputError: there is none.
    """
    if explicit is not None:
        return explicit
    if PLATFORM_DIRECTORY.is_dir() and any(PLATFORM_DIRECTORY.iterdir()):
        return PLATFORM_DIRECTORY
    if PACKAGED_DIRECTORY.is_dir():
        return PACKAGED_DIRECTORY
    raise InputError(
        f"no model: got none in {PLATFORM_DIRECTORY} nor in the package; name a directory with --model DIR"
    )


def load_model(directory: Path) -> Model:
    """Load a model directory after checking schema, checksums, names and shapes.

    Raises:
        InputError: anything is missing, unknown, tampered with, or does not fit.
    """
    description = _read_description(directory)
    for name in (LESION_WEIGHTS, SUBTYPE_TABLE, *([LOBE_WEIGHTS] if description.lobe_network else [])):
        if name not in description.files:
            raise InputError(f"{directory}/{DESCRIPTION}: got no checksum for {name}; export the model again")
    contents = {name: _checked(directory / name, digest) for name, digest in description.files.items()}
    network = UNet3D(
        out_channels=len(CLASSES),
        width=description.architecture.width,
        padding=description.architecture.padding,
        norm=description.architecture.norm,
    )
    _load_weights(network, contents[LESION_WEIGHTS], directory / LESION_WEIGHTS)
    lobe_networks = description.lobe_network.untrained().eval() if description.lobe_network else None
    if lobe_networks is not None:
        _load_weights(lobe_networks, contents[LOBE_WEIGHTS], directory / LOBE_WEIGHTS)
    return Model(description, network.eval(), ReferenceComponents.read(directory / SUBTYPE_TABLE), lobe_networks)


def sha256(content: bytes) -> str:
    """The checksum that model.json states for a file."""
    return hashlib.sha256(content).hexdigest()


def _read_description(directory: Path) -> ModelDescription:
    path = directory / DESCRIPTION
    if not path.is_file():
        raise InputError(
            f"model directory {directory}: got no {DESCRIPTION}, expected what `python -m training export` writes"
        )
    try:
        description = ModelDescription.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(
            f"{path}: {where}: {first['msg']}; expected schema version 1 as `training export` writes it"
        ) from error
    ours = {
        "classes": CLASSES,
        "lobes": {lobe.key: lobe.label for lobe in LOBES},
        "score_lower_percent": SCORE_LOWER_PERCENT,
    }
    for field, expected in ours.items():
        got = getattr(description, field)
        if got != expected:
            raise InputError(f"{path}: {field}: got {got}, expected {expected}; the model follows other conventions")
    return description


def _checked(path: Path, digest: str) -> bytes:
    if not path.is_file():
        raise InputError(f"model file {path}: missing, though {DESCRIPTION} lists it; copy the whole model directory")
    content = path.read_bytes()
    if sha256(content) != digest:
        raise InputError(
            f"model file {path}: got SHA-256 {sha256(content)[:12]}..., expected {digest[:12]}...; "
            "the file was changed or damaged, copy the model directory again"
        )
    return content


def _load_weights(network: nn.Module, content: bytes, path: Path) -> None:
    try:
        weights: dict[str, Tensor] = load_safetensors(content)
    except SafetensorError as error:
        raise InputError(f"model file {path}: got {error}, expected safetensors; export the model again") from error
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in weights.items()}
    if got != expected:
        name = min(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        raise InputError(
            f"model file {path}: {name} has shape {got.get(name)}, expected {expected.get(name)}; "
            f"weights and {DESCRIPTION} do not belong together"
        )
    network.load_state_dict(weights)
