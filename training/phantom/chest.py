"""One phantom: lobes, body, vessels, lesions and scanner put together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from algorithm.images import Geometry, Volume
from algorithm.lobes import lobe_voxels
from training.phantom.body import make_body
from training.phantom.grid import indices, positions, resample
from training.phantom.lesions import (
    LesionFields,
    LungPoints,
    consolidate_half_a_lung,
    draw_percentages,
    label_subtypes,
    make_lesions,
)
from training.phantom.lobes import LOBE_LABELS, LobeFields, LungsOnGrid, lung_depth, lungs_on_grid, warp_lobes
from training.phantom.parenchyma import Drawing, lung_hu
from training.phantom.scanner import (
    FieldOfView,
    add_noise,
    blur,
    breathe,
    draw_protocol,
    field_of_view,
    smallest_component_voxels,
    to_int16,
)
from training.phantom.shapes import procedural_lobes
from training.phantom.texture import FloatArray
from training.phantom.vessels import LungTubes, draw_tubes, grow_lung_tubes

_VESSEL_COVERAGE = 0.34
_SMALLEST_RADIUS_MM = 0.45
_HIDES_VESSELS = 0.5  # share of consolidation in a voxel

Disease = Literal["usual", "none", "half-lung"]


class PhantomOptions(BaseModel):
    """What the phantoms of a data set have in common.

    Attributes:
        lobe_shapes: directory of real lobe label maps (*.nii.gz, labels 1-5, identity direction); procedural if None.
        coarseness: voxel size factor in each axis; 1 is realistic, 2 is quick.
        validation: number of validation cases.
        test: number of test cases.
        healthy: number of training cases, the first ones, without any lesion; others may be healthy by chance.
        disease: lesions of all other cases: ``usual``, ``none``, or ``half-lung``, one lung consolidated by half.
        score_noise: probability that the score of a training or validation lobe near a border is its neighbour's.
        field_of_view: ``lungs``, narrowly around them, or ``wide``, with more or less of neck, belly and arms' room.
        workers: processes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lobe_shapes: Path | None = None
    coarseness: float = Field(default=1.0, ge=0.5, le=6.0)
    validation: int = Field(default=0, ge=0)
    test: int = Field(default=0, ge=0)
    healthy: int = Field(default=0, ge=0)
    disease: Disease = "usual"
    score_noise: float = Field(default=0.0, ge=0, le=1)
    field_of_view: FieldOfView = "lungs"
    workers: int = Field(default=1, ge=1)


@dataclass(frozen=True)
class Phantom:
    """One case; all volumes lie on the same grid.

    Attributes:
        ct: int16 HU.
        lobes: uint8, 1 left upper, 2 left lower, 3 right upper, 4 right lower, 5 right middle.
        lesions: uint8, 0 background, 1 ground-glass, 2 consolidation, 3 mixed; the vessels that can be seen in a
            lesion do not belong to it (the paper's references, II-2), those that consolidation hides do.
        vessels: uint8, 1 where intrapulmonary vessels of about 1 mm calibre or more fill a third of the voxel.
    """

    ct: Volume
    lobes: Volume
    lesions: Volume
    vessels: Volume

    def percentages(self) -> dict[int, float]:
        """Share of lesion voxels of each lobe, 0 to 100, by lobe label."""
        sizes, diseased = lobe_voxels(self.lobes.array), lobe_voxels(self.lobes.array, self.lesions.array)
        return {label: 100.0 * diseased[label] / max(sizes[label], 1) for label in LOBE_LABELS}


def make_phantom(
    rng: np.random.Generator, options: PhantomOptions, lobe_shape: Volume | None = None, *, healthy: bool = False
) -> Phantom:
    """Draw one phantom.

    Args:
        rng: source of randomness.
        options: voxel size, disease, field of view.
        lobe_shape: real lobes to deform; drawn from implicit surfaces if absent.
        healthy: no lobe has a lesion.
    """
    step_mm = 2.0 * max(1.0, options.coarseness / 1.5)
    protocol = draw_protocol(rng, options.coarseness)
    shape = procedural_lobes(rng, step_mm) if lobe_shape is None else lobe_shape
    lobes = warp_lobes(rng, shape, step_mm)
    geometry = field_of_view(rng, protocol, lobes, options.field_of_view)
    tubes = grow_lung_tubes(rng, lobes)
    lungs = lungs_on_grid(lobes, geometry)
    body = make_body(rng, lobes, geometry, hila=tubes.hila, blood_hu=protocol.blood_hu, step_mm=1.25 * step_mm)
    hu = resample(body, geometry)

    covered = np.flatnonzero(lungs.coverage > 0)
    points = _lung_points(lobes, lungs, covered)
    lesions = _lesions(rng, points, "none" if healthy else options.disease)
    drawing, vessels = _draw(tubes, lungs, covered)
    subtypes = _subtypes(lungs, covered, lesions, smallest_component_voxels(geometry))
    subtypes[vessels & (_scatter(lungs, covered, lesions.solid) < _HIDES_VESSELS)] = 0
    inside = lung_hu(rng, points, lesions, drawing, protocol.blood_hu)

    chest = hu[lungs.box].ravel()
    chest[covered] += lungs.coverage.ravel()[covered] * (inside - chest[covered])
    hu[lungs.box] = blur(chest.reshape(lungs.labels.shape), protocol)
    breathe(hu, protocol)
    add_noise(rng, hu, protocol)
    return Phantom(
        ct=Volume(to_int16(hu), geometry),
        lobes=_whole(geometry, lungs, lungs.labels),
        lesions=_whole(geometry, lungs, subtypes),
        vessels=_whole(geometry, lungs, vessels),
    )


def _draw(tubes: LungTubes, lungs: LungsOnGrid, covered: NDArray[np.intp]) -> tuple[Drawing, NDArray[np.bool_]]:
    """Vessels and airways at the lungs' voxels, and the reference mask of vessels on the lungs' box."""
    counted = tubes.vessels.radius_mm >= _SMALLEST_RADIUS_MM
    vessels = draw_tubes(tubes.vessels.where(counted), lungs.geometry)
    reference = (vessels >= _VESSEL_COVERAGE) & (lungs.labels > 0)
    np.maximum(vessels, draw_tubes(tubes.vessels.where(~counted), lungs.geometry), out=vessels)
    sheath = draw_tubes(tubes.sheaths, lungs.geometry)
    lumen = draw_tubes(tubes.airways, lungs.geometry)
    outer_mm = tubes.airways.radius_mm * np.float32(1.2) + np.float32(0.5)
    wall = draw_tubes(tubes.airways.with_radius(outer_mm), lungs.geometry)
    return Drawing(*(part.ravel()[covered] for part in (vessels, sheath, lumen, wall, lungs.fissure_mm))), reference


def _lesions(rng: np.random.Generator, points: LungPoints, disease: Disease) -> LesionFields:
    if disease == "half-lung":
        return consolidate_half_a_lung(rng, points)
    percentages = draw_percentages(rng)
    return make_lesions(rng, points, dict.fromkeys(percentages, 0.0) if disease == "none" else percentages)


def _subtypes(
    lungs: LungsOnGrid, covered: NDArray[np.intp], lesions: LesionFields, smallest_voxels: int
) -> NDArray[np.uint8]:
    """The reference on the lungs' box; lesions too small to count are taken out of the fields as well."""
    present = (_scatter(lungs, covered, lesions.presence) > 0.5) & (lungs.labels > 0)
    subtypes = label_subtypes(present, _scatter(lungs, covered, lesions.weight), smallest_voxels)
    lesions.presence[(present & (subtypes == 0)).ravel()[covered]] = 0.0
    return subtypes


def _lung_points(lobes: LobeFields, lungs: LungsOnGrid, covered: NDArray[np.intp]) -> LungPoints:
    index = np.stack(np.unravel_index(covered, lungs.labels.shape)).astype(np.float32)
    position = positions(lungs.geometry, index)
    depth = lung_depth(lobes)
    depth_mm = ndimage.map_coordinates(
        depth.array, indices(depth.geometry, position).astype(np.float32), order=1, output=np.float32
    )
    return LungPoints(position, lungs.labels.ravel()[covered], depth_mm)


def _scatter(lungs: LungsOnGrid, covered: NDArray[np.intp], values: FloatArray) -> FloatArray:
    array = np.zeros(lungs.labels.size, dtype=np.float32)
    array[covered] = values
    return array.reshape(lungs.labels.shape)


def _whole(geometry: Geometry, lungs: LungsOnGrid, part: NDArray[np.uint8] | NDArray[np.bool_]) -> Volume:
    array = np.zeros(geometry.size_zyx, dtype=np.uint8)
    array[lungs.box] = part
    return Volume(array, geometry)
