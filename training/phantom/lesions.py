"""Lesions of COVID-19: where they lie, how much of each lobe they fill, and what they do to the density."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from algorithm.lobes import LEFT, RIGHT
from training.phantom.lobes import LOBE_LABELS
from training.phantom.texture import FloatArray, fractal, ramp

SCORE_SHARES = (0.25, 0.25, 0.25, 0.14, 0.08, 0.03)
SCORE_LIMITS_PERCENT = (0.0, 5.0, 25.0, 50.0, 75.0, 100.0)
GROUND_GLASS, CONSOLIDATION, MIXED = 1, 2, 3
_WELL_SHARE = 0.09
_CASE_CORRELATION = 0.72
_PAVING_WEIGHT = 0.4
_GLASS_BELOW, _CONSOLIDATED_ABOVE = 0.2, 0.55  # share of consolidation in a component


def score_of(percent: float) -> int:
    """The severity score of a lobe: 0 for none, then (0,5), [5,25), [25,50), [50,75), [75,100] percent."""
    return 0 if percent <= 0 else int(np.searchsorted(SCORE_LIMITS_PERCENT[1:5], percent, side="right")) + 1


def draw_percentages(rng: np.random.Generator) -> dict[int, float]:
    """How much of each lobe is diseased, in percent; correlated within the case, all 0 in some cases."""
    shares = np.array(SCORE_SHARES)
    shares[0] -= _WELL_SHARE
    limits = stats.norm.ppf(np.cumsum(shares / shares.sum())[:-1])
    severity = rng.standard_normal()
    healthy = rng.random() < _WELL_SHARE
    percentages = {}
    for label in LOBE_LABELS:
        own = rng.standard_normal() + (0.35 if label in (2, 4) else -0.23)
        level = _CASE_CORRELATION * severity + np.sqrt(1 - _CASE_CORRELATION**2) * own
        score = 0 if healthy else int(np.searchsorted(limits, level))
        low, high = ((0.0, 0.0), (0.7, 4.6), (5.5, 24.0), (26.0, 49.0), (51.0, 74.0), (76.0, 97.0))[score]
        percentages[label] = low if score == 0 else float(np.exp(rng.uniform(np.log(low), np.log(high))))
    return percentages


@dataclass(frozen=True)
class _Style:
    """How a case's lesions look."""

    solid: float  # usual share of consolidation
    paving: float  # share of lesions with a network of thickened septa
    faint: float
    peripheral: float
    posterior: float
    roughness: float
    border_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Style:
        pattern = rng.choice(3, p=(0.42, 0.33, 0.25))  # ground-glass, with cores, mostly consolidated
        return cls(
            solid=float((rng.uniform(0, 0.06), rng.uniform(0.08, 0.4), rng.uniform(0.7, 0.95))[pattern]),
            paving=float(rng.uniform(0.2, 0.9) if rng.random() < 0.15 else 0.0),
            faint=float(rng.uniform(0, 0.8) ** 1.5),
            peripheral=float(rng.uniform(0.2, 1.6)),
            posterior=float(rng.uniform(0.0, 1.4)),
            roughness=float(rng.uniform(0.25, 0.6)),
            border_mm=float(rng.uniform(1.5, 6.0)),
        )


@dataclass(frozen=True)
class LungPoints:
    """What lesions need to know of the lungs' voxels, all (N,) or (N, 3) in the same order."""

    position_mm: FloatArray
    label: NDArray[np.uint8]
    depth_mm: FloatArray


@dataclass(frozen=True)
class LesionFields:
    """Lesions on the lungs' voxels, all (N,).

    Attributes:
        presence: contribution relative to its plateau, 0 to 1; the reference is where it exceeds one half.
        gain_hu: what ground-glass adds at its plateau, texture included.
        solid: share of consolidation, 0 to 1.
        solid_hu: density of consolidation.
        weight: how much a voxel counts as consolidated when a component's subtype is decided.
    """

    presence: FloatArray
    gain_hu: FloatArray
    solid: FloatArray
    solid_hu: FloatArray
    weight: FloatArray


def make_lesions(rng: np.random.Generator, points: LungPoints, percentages: dict[int, float]) -> LesionFields:
    """Fill the wanted share of every lobe with lesions."""
    count = len(points.label)
    fields = LesionFields(*(np.zeros(count, dtype=np.float32) for _ in range(5)))
    style = _Style.draw(rng)
    for label in LOBE_LABELS:
        member = np.flatnonzero(points.label == label)
        if percentages[label] > 0 and len(member) > 0:
            _fill_lobe(rng, style, points, member, percentages[label] / 100, fields)
    return fields


def consolidate_half_a_lung(rng: np.random.Generator, points: LungPoints) -> LesionFields:
    """Fill the lower back half of one lung, by volume, with consolidation; the rest is healthy."""
    member = np.flatnonzero(np.isin(points.label, (LEFT, RIGHT)[rng.integers(2)]))
    position = points.position_mm[member]
    lowness_mm = position @ np.array([0.0, rng.uniform(0.2, 1.5), -rng.uniform(0.2, 1.5)], dtype=np.float32)
    lowness_mm += fractal(rng, position, (60.0, 18.0), (12.0, 4.0))
    inside_mm = lowness_mm - np.median(lowness_mm)
    fields = LesionFields(*(np.zeros(len(points.label), dtype=np.float32) for _ in range(5)))
    fields.presence[member] = ramp(inside_mm, rng.uniform(2, 10))
    fields.solid[member] = fields.weight[member] = inside_mm > -10
    fields.solid_hu[member] = rng.uniform(-60, 50) + 18 * fractal(rng, position, (9.0, 3.6), (0.7, 0.7))
    return fields


def _fill_lobe(
    rng: np.random.Generator,
    style: _Style,
    points: LungPoints,
    member: NDArray[np.intp],
    share: float,
    fields: LesionFields,
) -> None:
    position, depth = points.position_mm[member], points.depth_mm[member]
    size_mm = float(np.prod(np.ptp(position, axis=0)) ** (1 / 3))
    centres = _centres(rng, style, position, depth, share)
    radius = size_mm * np.exp(rng.normal(np.log(0.16), 0.35, len(centres)))
    near = np.empty((len(centres), len(member)), dtype=np.float32)
    for k, centre in enumerate(centres):
        stretch = np.exp(rng.normal(0, 0.25, 3)) / radius[k]
        near[k] = -np.linalg.norm((position - centre) * stretch.astype(np.float32), axis=1)
    whole = near.max(axis=0)
    whole += np.float32(style.roughness) * fractal(rng, position, (0.35 * size_mm, 14.0, 6.0), (0.75, 0.5, 0.3))
    whole += np.float32(0.5 * style.peripheral) * np.exp(-depth / np.float32(rng.uniform(5, 14)))
    inside_mm = (whole - np.quantile(whole, 1 - share)) * np.float32(np.median(radius))
    # a soft rim inside, a narrow one outside: haze that no one would outline must not spread
    slope = np.where(inside_mm > 0, 0.5 / style.border_mm, 1.2 / style.border_mm).astype(np.float32)
    fields.presence[member] = np.clip(0.5 + inside_mm * slope, 0, 1)
    some = inside_mm > -style.border_mm
    _fill_kinds(rng, style, position[some], inside_mm[some], near[:, some], member[some], fields)


def _centres(
    rng: np.random.Generator, style: _Style, position: FloatArray, depth: FloatArray, share: float
) -> FloatArray:
    """Seeds of lesions: peripheral, posterior and basal ones are likelier, by the case's preference."""
    candidates = rng.integers(0, len(position), 400)
    spread = position.std(axis=0) + 1e-3
    standing = (position[candidates] - position.mean(axis=0)) / spread
    liking = style.posterior * (standing[:, 1] - 0.4 * standing[:, 2]) - style.peripheral * depth[candidates] / 12
    chance = np.exp(liking - liking.max())
    count = 1 + rng.poisson(1.5 + 7 * np.sqrt(share) * rng.uniform(0.2, 1.3))
    centres: FloatArray = position[candidates[rng.choice(len(candidates), size=count, p=chance / chance.sum())]]
    return centres


def _fill_kinds(
    rng: np.random.Generator,
    style: _Style,
    position: FloatArray,
    inside_mm: FloatArray,
    near: FloatArray,
    member: NDArray[np.intp],
    fields: LesionFields,
) -> None:
    """Density of the lesions of a lobe: each has its own, and they blend where they meet."""
    count = len(near)
    faint = rng.random(count) < style.faint
    gain = np.where(faint, rng.uniform(60, 150, count), rng.uniform(130, 330, count))
    solid_hu, leaning = rng.uniform(-90, 50, count), rng.normal(0, 7, count)
    paved = rng.random(count) < style.paving
    belongs = special.softmax(near / np.float32(0.12), axis=0)
    with np.errstate(invalid="ignore"):  # BLAS may say so of what lies past the end of finite arrays
        gain_hu, solid_hu, leaning, paving = (
            (np.asarray(value, dtype=np.float32) @ belongs) for value in (gain, solid_hu, leaning, paved)
        )
    mottle = fractal(rng, position, (9.0, 3.6), (0.7, 0.7))
    lines = np.exp(-((fractal(rng, position, (7.0,), (1.0,)) / np.float32(0.25)) ** 2))
    rank = np.minimum(inside_mm, 12) + 2 * mottle + leaning + 7 * fractal(rng, position, (26.0,), (1.0,))
    present = inside_mm > 0
    # large lesions consolidate in part only
    most = np.interp(present.mean() * len(position) / len(fields.presence), (0.05, 0.2), (0.95, 0.6))
    share = float(np.clip(style.solid * np.exp(rng.normal(0, 0.4)), 0, most))
    limit = np.quantile(rank[present], 1 - share) if present.any() else np.inf
    solid = special.expit((rank - np.float32(limit)) / np.float32(rng.uniform(0.7, 2.0)))
    fields.gain_hu[member] = np.maximum(gain_hu * (1 + 0.25 * mottle) + paving * 200 * lines, 20)
    fields.solid[member] = solid
    fields.solid_hu[member] = solid_hu + 18 * mottle
    fields.weight[member] = np.maximum(solid, paving * _PAVING_WEIGHT)


def label_subtypes(presence: NDArray[np.bool_], weight: FloatArray, smallest_voxels: int) -> NDArray[np.uint8]:
    """One subtype for every 26-connected component; components below the smallest size are dropped.

    Args:
        presence: lesion mask (z, y, x).
        weight: share of consolidation (z, y, x).
        smallest_voxels: components with fewer voxels are dropped.

    Returns:
        0 background, 1 ground-glass, 2 consolidation, 3 mixed; uint8 (z, y, x).
    """
    kept = cc3d.dust(presence.astype(np.uint8), threshold=smallest_voxels, connectivity=26)
    components = cc3d.connected_components(kept, connectivity=26)
    where = np.flatnonzero(components)
    member = components.ravel()[where]
    mean = np.bincount(member, weights=weight.ravel()[where]) / np.maximum(np.bincount(member), 1)
    subtype = np.select([mean < _GLASS_BELOW, mean > _CONSOLIDATED_ABOVE], [GROUND_GLASS, CONSOLIDATION], MIXED).astype(
        np.uint8
    )
    result = np.zeros(components.shape, dtype=np.uint8)
    result.ravel()[where] = subtype[member]
    return result
