"""Settings of every stage, checked; the defaults are the project's recommendation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, field_validator, model_validator
from typing_extensions import Self

from algorithm.network import PERIOD, SMALLEST_VALID_INPUT
from algorithm.subtypes import Divergence, VoteRules, Weights


class Settings(BaseModel):
    """Base of all settings: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PrepareSettings(Settings):
    """Caches of lobe chunks and whole scans."""

    chunk_spacing_mm: float = Field(1.2, gt=0, description="isotropic spacing of lobe chunks before resizing")
    chunk_margin_mm: float = Field(5.0, ge=0, description="margin around a lobe's bounding box")
    scan_spacing_mm: float = Field(1.5, gt=0, description="isotropic spacing of the final network's input")


class LoopSettings(Settings):
    """What every training loop needs."""

    width: int = Field(32, ge=1, description="filters of the network's first convolution")
    steps: int = Field(20_000, ge=1, description="optimiser steps")
    batch: int = Field(4, ge=1, description="chunks or crops per step and process")
    optimiser: Literal["adam", "sgd"] = Field("adam", description="sgd has momentum 0.9, as in the paper")
    learning_rate: float = Field(1e-4, gt=0, description="of the optimiser at the first step")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="cosine falls to zero over the steps")
    precision: Literal["32-true", "bf16-mixed"] = Field("bf16-mixed", description="arithmetic of the network")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")


class BatchNormSettings(LoopSettings):
    """What the training loop of a network with batch norm needs beside."""

    settled: float = Field(0.2, ge=0, le=1, description="share of the steps from which batch norm's statistics stay")


def check_mixed_precision(precision: str, depth: int) -> None:
    """Refuse the depth at which a network on the CPU computes wrong gradients in bfloat16.

    After three poolings 16 voxels are 2, and there the weight gradient of oneDNN's bfloat16 convolution reads memory
    that was never written (PyTorch 2.13; float32 and every other depth are right).

    Raises:
        ValueError: the depth is below 24 voxels in mixed precision.
    """
    if precision == "bf16-mixed" and depth < 3 * PERIOD:
        raise ValueError(f"{depth} voxels are too few in bf16-mixed: expected 24 or more, or precision 32-true")


def check_start(steps: int, start_from: Path | None) -> None:
    """Check that there is a network after training.

    Raises:
        ValueError: training has no steps, and begins with an untrained network.
    """
    if not steps and start_from is None:
        raise ValueError("steps: got 0 without start_from, expected steps to train a network, or one to take")


class Ramp(Settings):
    """Weight of a loss term: nothing before ``start``, full from ``full`` on, linear between."""

    weight: float = Field(1.0, ge=0, description="of the term in the sum, once ramped in; 0 leaves the term out")
    start: float = Field(0.0, ge=0, le=1, description="fraction of the steps before the term begins")
    full: float = Field(0.0, ge=0, le=1, description="fraction of the steps when it has its full weight")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.full < self.start:
            raise ValueError(f"full {self.full} is before start {self.start}")
        return self


class CrfSettings(Settings):
    """Dense CRF with a smoothness and an appearance kernel, in voxels and grey levels of 0 to 255."""

    engine: Literal["torch", "pydensecrf2"] = Field("torch", description="pydensecrf2 is the reference, on the CPU")
    iterations: int = Field(5, ge=0, description="of mean field; 0 thresholds the probability")
    smoothness_sigma: float = Field(3.0, gt=0, description="spatial SD of the smoothness kernel, voxels")
    smoothness_weight: float = Field(6.0, ge=0, description="Potts weight of the smoothness kernel")
    appearance_sigma: float = Field(15.0, gt=0, description="spatial SD of the appearance kernel, voxels")
    appearance_sigma_grey: float = Field(10.0, gt=0, description="intensity SD of the appearance kernel, grey levels")
    appearance_weight: float = Field(8.0, ge=0, description="Potts weight of the appearance kernel")


class RegressSettings(BatchNormSettings):
    """Interval regression of the lesion percentage per lobe, with regularisers and refinement."""

    chunk_size: int = Field(80, multiple_of=PERIOD, ge=16, description="voxels per side a lobe chunk is resized to")
    spacing_jitter_mm: float = Field(0.1, ge=0, description="largest change of the chunk spacing in training")
    norm: Literal["batch", "instance"] = Field("batch", description="instance is for batches of one or two chunks")
    prior: float = Field(0.1, gt=0, lt=1, description="lesion probability of the untrained network")
    weighting: Literal["reverse-frequency", "balanced-sampling"] = Field(
        "reverse-frequency", description="how rare scores are made up for: by their loss, or by drawing them more often"
    )
    interval_weight: float = Field(2.0, ge=0, description="of the interval loss in the sum")
    equivariance: Ramp = Field(Ramp(), description="consistency under scaling and rotation")
    scale_range: tuple[float, float] = Field((0.8, 1.2), description="of the equivariance term's scaling")
    free_angle_degrees: float = Field(
        0.0, ge=0, le=45, description="largest rotation of the equivariance term beside multiples of 90 degrees"
    )
    entropy: Ramp = Field(Ramp(start=0.3, full=0.6), description="few uncertain voxels")
    refinement: Ramp = Field(Ramp(start=0.3, full=0.6), description="bootstrapping loss against the CRF's target")
    beta: float = Field(0.8, ge=0, le=1, description="weight of the target against the network's own label in Eq. 4")
    attention: bool = Field(True, description="refine by local attention; else the target acts on the raw dRAM")
    suppress_vessels: bool = Field(True, description="take vessels out of the map before the CRF")
    crf: CrfSettings = Field(CrfSettings(), description="makes the refinement's target")
    validate_every: int = Field(500, ge=1, description="steps between validations")

    @property
    def needs_vessels(self) -> bool:
        """Whether any loss term asks where vessels are."""
        return self.suppress_vessels and self.refinement.weight > 0

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        """The ratios must allow a size that the network takes, and the smallest must suit the precision."""
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(f"scale_range: got {low} and {high}, expected two positive numbers, the smaller one first")
        allowed = range(16, int(high * self.chunk_size) + 1, PERIOD)
        sizes = [size for size in allowed if low <= size / self.chunk_size <= high]
        if not sizes:
            raise ValueError(
                f"scale_range: no multiple of {PERIOD} is within it for chunks of {self.chunk_size} voxels"
            )
        check_mixed_precision(self.precision, min(self.chunk_size, *sizes))
        return self


class VesselSettings(BatchNormSettings):
    """Vessel references by Frangi's filter on healthy scans, and the vessel network."""

    patch_size: int = Field(80, multiple_of=PERIOD, ge=16, description="voxels per side of a training patch")
    sigmas_mm: tuple[PositiveFloat, ...] = Field(
        (1.0, 1.5, 2.0, 2.5, 3.0), min_length=1, description="scales of the vesselness filter"
    )
    alpha: float = Field(0.5, gt=0, description="Frangi's constant against plates")
    beta: float = Field(0.5, gt=0, description="Frangi's constant against blobs")
    erosion_mm: float = Field(3.0, ge=0, description="by which the lungs are shrunk for the references")
    threshold: float = Field(0.7, gt=0, lt=1, description="probability above which a voxel is vessel")
    spotted_share: float = Field(
        0.5, ge=0, le=1, description="of training patches with made-up lesions, which are no vessels; 0 in the paper"
    )
    thickest_mm: float = Field(
        8.0, gt=0, description="vessels thicker than this are left out, for dense lesions look like them"
    )

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        check_mixed_precision(self.precision, self.patch_size)
        return self


class LobeSettings(LoopSettings):
    """The network that finds the lobes of a scan that comes without."""

    width: int = Field(16, ge=1, description="filters of the network's first convolution")
    steps: int = Field(10_000, ge=0, description="optimiser steps; 0 leaves the network of start_from as it is")
    batch: int = Field(1, ge=1, description="crops per step and process")
    learning_rate: float = Field(1e-3, gt=0, description="of the optimiser at the first step")
    spacing_mm: float = Field(1.5, gt=0, description="isotropic spacing of the network's input")
    fold: int = Field(2, ge=1, description="voxels per axis of the blocks that the network computes on")
    window_hu: tuple[float, float] = Field((-1024.0, 400.0), description="HU that become 0 and 1")
    crop_size_zyx: tuple[int, int, int] = Field(
        (224, 208, 256), description="voxels of a crop; multiples of 8 blocks, two of them or more"
    )
    rotation_degrees: float = Field(15.0, ge=0, description="largest turn about each axis")
    scale_range: tuple[PositiveFloat, PositiveFloat] = Field((0.8, 1.25), description="by which chests are scaled")
    bend_mm: float = Field(6.0, ge=0, description="largest deviation of the smooth displacement that bends chests")
    spotted_share: float = Field(0.2, ge=0, le=1, description="of chests that are given more lesions, spot to lobe")
    consolidated_share: float = Field(0.12, ge=0, le=1, description="of chests of which a lung or both consolidate")
    start_from: Path | None = Field(None, description="model directory whose lobe network the training begins with")
    validate_every: int = Field(500, ge=1, description="steps between validations")

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        check_start(self.steps, self.start_from)
        return self

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        for name, (low, high) in {"window_hu": self.window_hu, "scale_range": self.scale_range}.items():
            if low > high or (name == "window_hu" and low == high):
                raise ValueError(f"{name}: got {low:g} and {high:g}, expected the smaller one first")
        return self

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        period = PERIOD * self.fold
        if any(n % period or n < 2 * period for n in self.crop_size_zyx):
            raise ValueError(
                f"crop_size_zyx: got {self.crop_size_zyx}, expected multiples of {period}, {2 * period} or more, "
                f"with fold {self.fold}"
            )
        check_mixed_precision(self.precision, self.crop_size_zyx[0] // self.fold)
        return self


class FissureSettings(BatchNormSettings):
    """The network that sees fissures, of which the borders of found lobes are drawn again."""

    width: int = Field(8, ge=1, description="filters of the network's first convolution")
    patch_size: int = Field(
        64, multiple_of=PERIOD, ge=16, description="voxels per side of a patch, of the lobes' spacing"
    )
    batch: int = Field(2, ge=1, description="patches per step and process")
    steps: int = Field(10_000, ge=0, description="optimiser steps; 0 leaves the network of start_from as it is")
    learning_rate: float = Field(2e-3, gt=0, description="of the optimiser at the first step")
    drawn_share: float = Field(0.7, ge=0, le=1, description="of patches whose fissures are drawn, faint to bright")
    spotted_share: float = Field(0.2, ge=0, le=1, description="of patches that are given lesions, spot to lobe")
    start_from: Path | None = Field(None, description="model directory whose network for fissures training begins with")
    validate_every: int = Field(500, ge=1, description="steps between validations")

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        check_start(self.steps, self.start_from)
        return self

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        check_mixed_precision(self.precision, self.patch_size)
        return self


class CamSettings(BatchNormSettings):
    """The class activation map baseline."""

    chunk_size: int = Field(80, multiple_of=PERIOD, ge=16, description="voxels per side a lobe chunk is resized to")
    spacing_jitter_mm: float = Field(0.1, ge=0, description="largest change of the chunk spacing in training")
    attenuation_factor: float = Field(
        1.0, gt=0, description="of Otsu's threshold above -1200 HU in the refined map; the authors' code takes 0.75"
    )
    skip_negative_lobes: bool = Field(False, description="zero the map of lobes that are classified as healthy")

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        check_mixed_precision(self.precision, self.chunk_size)
        return self


class PseudoSettings(Settings):
    """Pseudo labels from dRAMs."""

    scales: tuple[PositiveFloat, ...] = Field(
        (0.8, 1.0, 1.2, 1.5), min_length=1, description="of the chunk size, averaged"
    )
    threshold: float | None = Field(
        None, gt=0, lt=1, description="probability above which a voxel is lesion; left out: chosen by validation scores"
    )
    vessel_wins: bool = Field(True, description="a voxel of a vessel is none of the lesion around it, as in the paper")


class SegmentSettings(BatchNormSettings):
    """The final network on pseudo labels."""

    batch: int = Field(2, ge=1, description="crops per step and process")
    crop_size: int = Field(132, ge=SMALLEST_VALID_INPUT, description="input voxels per side; 4 (mod 8)")
    beta: float = Field(0.8, ge=0, le=1, description="weight of the pseudo label against the network's own in Eq. 4")
    lesion_share: float = Field(0.5, ge=0, le=1, description="share of crops centred on pseudo lesion")
    lesion_margin: float | None = Field(
        None,
        gt=-1,
        lt=1,
        description="lesion is where its probability exceeds any other by more; left out: chosen by validation scores",
    )

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
    lobe_data: str = Field("not described", description="what the lobe network was trained on, where the run has one")
    licence: str = Field("Apache-2.0", description="licence of the weights")
    lobes_from: Path | None = Field(
        None, description="model directory whose lobe network is taken over where the run has learnt none"
    )


class SubtypeSettings(Settings):
    """The vote on the subtype of a lesion (`algorithm.subtypes.vote`)."""

    shortlist: int | None = Field(
        None, ge=1, description="lesions nearest in volume that are looked at, 10 in the paper; null chooses"
    )
    voters: int = Field(5, ge=1, description="of these, the ones with the smallest divergence")
    divergence: Divergence = Field("component||reference", description="direction of the Kullback-Leibler divergence")
    weights: Weights = Field("rank", description="of the voters: by their rank, or equal")

    def rules(self, shortlist: int) -> VoteRules:
        """The rules with the shortlist that was chosen."""
        return VoteRules(**self.model_dump() | {"shortlist": shortlist})


class TrainingConfig(Settings):
    """All stages of one run."""

    seed: int = Field(0, ge=0)
    prepare: PrepareSettings = PrepareSettings()
    vessels: VesselSettings = VesselSettings()
    regress: RegressSettings = RegressSettings()
    cam: CamSettings = CamSettings()
    pseudo: PseudoSettings = PseudoSettings()
    segment: SegmentSettings = SegmentSettings()
    subtypes: SubtypeSettings = SubtypeSettings()
    lobes: LobeSettings = LobeSettings()
    fissures: FissureSettings = FissureSettings()
    export: ExportSettings = ExportSettings()

    @model_validator(mode="after")
    def _check_jitter(self) -> Self:
        for name, jitter_mm in (("regress", self.regress.spacing_jitter_mm), ("cam", self.cam.spacing_jitter_mm)):
            if jitter_mm >= self.prepare.chunk_spacing_mm:
                raise ValueError(f"{name}.spacing_jitter_mm {jitter_mm}: expected less than prepare.chunk_spacing_mm")
        return self
