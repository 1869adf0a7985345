"""Lesion subtypes: each connected lesion takes the subtype of the reference lesions that resemble it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cc3d
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from algorithm.errors import InputError

SUBTYPES = {1: "ground-glass", 2: "consolidation", 3: "mixed"}
SMALLEST_SD_HU = 1.0
SLAB = 8  # slices
COLUMNS = ("volume_ml", "mean_hu", "sd_hu", "subtype")
Divergence = Literal["component||reference", "reference||component"]
Weights = Literal["rank", "equal"]


class VoteRules(BaseModel):
    """How reference lesions vote; the dRAM paper, III-E, has K = 10 and N = 5, and leaves the rest open."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shortlist: int = Field(10, ge=1, description="reference lesions nearest in volume that are looked at (K)")
    voters: int = Field(5, ge=1, description="of these, the ones with the smallest divergence (N)")
    divergence: Divergence = Field("component||reference", description="direction of the Kullback-Leibler divergence")
    weights: Weights = Field("rank", description="rank gives the best voter N votes, the last one 1")


DEFAULT_RULES = VoteRules()


@dataclass(frozen=True)
class Components:
    """Connected lesions of one scan, one array entry each.

    Attributes:
        labels: (z, y, x), 0 outside lesions, component k + 1 for entry k.
        volume_ml: volumes.
        mean_hu: mean HU of the voxels.
        sd_hu: their standard deviation, at least 1 HU.
        centre_zyx: centres of mass in voxels, (n, 3).
    """

    labels: NDArray[np.integer]
    volume_ml: NDArray[np.float64]
    mean_hu: NDArray[np.float64]
    sd_hu: NDArray[np.float64]
    centre_zyx: NDArray[np.float64]

    def __len__(self) -> int:
        """Number of components."""
        return len(self.volume_ml)


@dataclass(frozen=True)
class ReferenceComponents:
    """Lesions of known subtype, one array entry each: what the vote compares with."""

    volume_ml: NDArray[np.float64]
    mean_hu: NDArray[np.float64]
    sd_hu: NDArray[np.float64]
    subtype: NDArray[np.uint8]

    @classmethod
    def read(cls, path: Path) -> ReferenceComponents:
        """Read the table ``subtypes.csv`` with the columns volume_ml, mean_hu, sd_hu, subtype.

        Raises:
            InputError: the file or a column is missing, a value is no finite number, or a subtype is unknown.
        """
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            columns = {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS}
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path.name}: got {error!r}, expected a table with {', '.join(COLUMNS)}") from error
        if not rows or not all(np.isfinite(values).all() for values in columns.values()):
            raise InputError(f"{path.name}: got no usable rows, expected at least one row of finite numbers")
        if not np.isin(columns["subtype"], list(SUBTYPES)).all():
            raise InputError(f"{path.name}: got an unknown subtype, expected {SUBTYPES}")
        return cls(
            volume_ml=columns["volume_ml"],
            mean_hu=columns["mean_hu"],
            sd_hu=np.maximum(columns["sd_hu"], SMALLEST_SD_HU),
            subtype=columns["subtype"].astype(np.uint8),
        )


def find_components(
    lesions: NDArray[np.bool_], hu: NDArray[np.integer | np.floating], *, voxel_ml: float
) -> Components:
    """Connected lesions (26 neighbours) with their volume and the normal distribution of their HU.

    Args:
        lesions: bool (z, y, x).
        hu: CT on the same grid.
        voxel_ml: volume of a voxel.
    """
    labels, count = cc3d.connected_components(lesions.astype(np.uint8, copy=False), connectivity=26, return_N=True)
    voxels, total, squares = np.zeros(count), np.zeros(count), np.zeros(count)
    places = np.zeros((count, 3))
    for start, where, inside in _slabs(labels):
        voxels += np.bincount(where, minlength=count)
        total += np.bincount(where, weights=hu[start : start + SLAB][inside], minlength=count)
        for axis, place in enumerate(np.nonzero(inside)):
            offset = start if axis == 0 else 0
            places[:, axis] += np.bincount(where, weights=place + offset, minlength=count)
    mean = total / voxels
    for start, where, inside in _slabs(labels):
        squares += np.bincount(where, weights=(hu[start : start + SLAB][inside] - mean[where]) ** 2, minlength=count)
    return Components(
        labels=labels,
        volume_ml=voxels * voxel_ml,
        mean_hu=mean,
        sd_hu=np.maximum(np.sqrt(squares / voxels), SMALLEST_SD_HU),
        centre_zyx=places / voxels[:, None],
    )


def _slabs(labels: NDArray[np.integer]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.bool_]]]:
    """A few slices after another, as sums in 64 bits over a whole scan take much memory.

    Yields:
        The first slice; the entries of its lesion voxels; where these are, bool (z, y, x).
    """
    for start in range(0, len(labels), SLAB):
        slab = labels[start : start + SLAB]
        inside = slab > 0
        if inside.any():
            yield start, slab[inside].astype(np.int64) - 1, inside


def normal_kld(
    mean_p: NDArray[np.float64] | float,
    sd_p: NDArray[np.float64] | float,
    mean_q: NDArray[np.float64] | float,
    sd_q: NDArray[np.float64] | float,
) -> NDArray[np.float64]:
    """Kullback-Leibler divergence KL(p || q) of two normal distributions.

    Source: dRAM paper, Eq. 6, with p the first distribution.
    """
    variance_q = np.square(sd_q)
    return np.asarray(
        np.log(sd_q)
        - np.log(sd_p)
        + (np.square(sd_p) + np.square(np.subtract(mean_p, mean_q))) / (2 * variance_q)
        - 0.5
    )


def vote(
    components: Components | ReferenceComponents, reference: ReferenceComponents, rules: VoteRules = DEFAULT_RULES
) -> NDArray[np.uint8]:
    """Subtype of each component.

    The reference lesions nearest in volume are ordered by their divergence from the component; the best ones vote, by
    default five of ten with weights 5, 4, 3, 2, 1. A tie goes to the subtype whose best voter diverges less.

    Args:
        components: the lesions to name.
        reference: lesions of known subtype.
        rules: how many are asked, and how their votes count.

    Returns:
        uint8, one of `SUBTYPES` per component.
    """
    subtypes = np.zeros(len(components.volume_ml), dtype=np.uint8)
    for k in range(len(subtypes)):
        near = np.argsort(np.abs(reference.volume_ml - components.volume_ml[k]), kind="stable")[: rules.shortlist]
        component = components.mean_hu[k], components.sd_hu[k]
        references = reference.mean_hu[near], reference.sd_hu[near]
        is_forward = rules.divergence == "component||reference"
        divergence = normal_kld(*component, *references) if is_forward else normal_kld(*references, *component)
        voters = reference.subtype[near[np.argsort(divergence, kind="stable")[: rules.voters]]]
        ballots = np.zeros(1 + max(SUBTYPES))
        weights = np.arange(rules.voters, 0, -1) if rules.weights == "rank" else np.ones(rules.voters)
        np.add.at(ballots, voters, weights[: len(voters)])
        winners = np.flatnonzero(ballots == ballots.max())
        subtypes[k] = next(voter for voter in voters if voter in winners)
    return subtypes


def paint(components: Components, subtypes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The label map (z, y, x) in which each component carries its subtype."""
    painted = np.empty(components.labels.shape, dtype=np.uint8)
    by_label = np.concatenate([np.zeros(1, dtype=np.uint8), subtypes])
    for slice_labels, target in zip(components.labels, painted, strict=True):
        target[:] = by_label[slice_labels]
    return painted
