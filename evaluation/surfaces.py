"""How far the surfaces of two masks lie apart, in mm.

Surfaces, their areas and both measures are those of the `surface-distance` package (Nikolov et al. 2018,
arXiv:1809.04430): a surface element sits at every corner of voxels where the 2 x 2 x 2 voxels around it are neither all
in nor all out of the mask, and has the area that marching cubes give that neighbourhood. Differs: the package's own
search for distances calls names that NumPy 2 and SciPy removed or will remove, keeps whole volumes of distances and
sorts Python tuples; here the nearest element is looked up in a k-d tree, slab by slab, which gives the same distances,
and they are kept as area per whole micrometre. Memory so stays small even where a mask is noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import surface_distance
from numpy.typing import NDArray
from scipy.spatial import KDTree
from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

from evaluation.errors import InputError

TOLERANCE_MM = 2.0
PERCENT = 95.0
ELEMENTS_AT_ONCE = 1 << 22
"""Surface elements of a slab: few enough for half a GiB, and so many that lesions are one slab."""

_STEPS_PER_MM = 1000  # a distance of exactly the tolerance is within it, whatever the spacing's last digit
_ALL_IN = 0b1111_1111


@dataclass(frozen=True)
class SurfaceAgreement:
    """How well two surfaces agree.

    Attributes:
        dice_2mm: share of both surfaces' area that lies at most 2 mm from the other surface, 0 to 1.
        hausdorff95_mm: 95 % of the reference's area lies at most this far from the prediction's surface, and 95 % of
            the prediction's from the reference's (the greater of the two).
    """

    dice_2mm: float
    hausdorff95_mm: float


def surface_agreement(
    reference: NDArray[np.bool_], prediction: NDArray[np.bool_], *, spacing_zyx_mm: tuple[float, ...]
) -> SurfaceAgreement | None:
    """Compare the surfaces of two masks.

    Args:
        reference: bool, (z, y, x).
        prediction: bool, same shape.
        spacing_zyx_mm: distance between voxel centres along the array's axes.

    Returns:
        The agreement; None when a mask is empty, for there is then no surface to be near to.

    Raises:
        InputError: the shapes differ.
    """
    if reference.shape != prediction.shape:
        raise InputError(f"got masks of shapes {reference.shape} and {prediction.shape}, expected one grid")
    if not (reference.any() and prediction.any()):
        return None
    areas_mm2 = create_table_neighbour_code_to_surface_area(spacing_zyx_mm)
    surfaces = [_Surface.of(mask, spacing_zyx_mm) for mask in (reference, prediction)]
    to_prediction, reference_areas = _areas_by_distance(surfaces[0], surfaces[1], areas_mm2)
    to_reference, predicted_areas = _areas_by_distance(surfaces[1], surfaces[0], areas_mm2)
    distances = {
        "distances_gt_to_pred": to_prediction,
        "surfel_areas_gt": reference_areas,
        "distances_pred_to_gt": to_reference,
        "surfel_areas_pred": predicted_areas,
    }
    return SurfaceAgreement(
        dice_2mm=float(surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)),
        hausdorff95_mm=float(surface_distance.compute_robust_hausdorff(distances, PERCENT)),
    )


def bounding_box(mask: NDArray[Any]) -> tuple[slice, ...]:
    """The smallest box around the voxels that are not zero, as slices; empty slices without any."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0))
    return tuple(box)


@dataclass(frozen=True)
class _Surface:
    """The surface of a mask, to be taken slab by slab.

    Attributes:
        codes: a bit for each of the eight voxels around a corner, uint8 (z, y, x); 0 where there is no surface.
        first: index (z, y, x) of the first of these corners among those of the whole array.
        slabs: layers of corners that are taken at once, from low to high z.
    """

    codes: NDArray[np.uint8]
    first: NDArray[np.int64]
    slabs: tuple[slice, ...]
    spacing_zyx_mm: NDArray[np.float64]

    @classmethod
    def of(cls, mask: NDArray[np.bool_], spacing_zyx_mm: tuple[float, ...]) -> _Surface:
        box = bounding_box(mask)
        code: NDArray[Any] = np.pad(mask[box].view(np.uint8), 1)
        code = code[:, :, :-1] << 1 | code[:, :, 1:]
        code = code[:, :-1] << 2 | code[:, 1:]
        code = code[:-1] << 4 | code[1:]
        code[code == _ALL_IN] = 0
        first = np.array([part.start for part in box], dtype=np.int64)
        return cls(
            code, first, tuple(_slabs([int(np.count_nonzero(layer)) for layer in code])), np.array(spacing_zyx_mm)
        )

    def elements(self, slab: slice) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        """Places (n, 3) in mm and codes (n,) of the elements of a slab."""
        codes = self.codes[slab]
        places = np.flatnonzero(codes)
        corners = np.stack(np.unravel_index(places, codes.shape), axis=1) + self.first
        corners[:, 0] += slab.start
        return corners * self.spacing_zyx_mm, codes.ravel()[places]

    def ends_mm(self, slab: slice) -> tuple[float, float]:
        """Between which z a slab lies."""
        low, high = (float(self.first[0] + layer) * self.spacing_zyx_mm[0] for layer in (slab.start, slab.stop - 1))
        return low, high


def _slabs(counts: list[int]) -> Iterator[slice]:
    """Neighbouring layers together, up to `ELEMENTS_AT_ONCE` elements; a layer stays whole."""
    start, held = 0, 0
    for layer, count in enumerate(counts):
        if held and held + count > ELEMENTS_AT_ONCE:
            yield slice(start, layer)
            start, held = layer, 0
        held += count
    yield slice(start, len(counts))


def _areas_by_distance(
    surface: _Surface, other: _Surface, areas_mm2: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The distances in mm from a surface to the nearest place of another, ascending, and the area at each of them."""
    by_slab = []
    for slab in surface.slabs:
        points, codes = surface.elements(slab)
        steps = np.rint(_nearest_mm(points, other) * _STEPS_PER_MM).astype(np.int64)
        by_slab.append(np.bincount(steps, weights=areas_mm2[codes]))
    areas = np.zeros(max(map(len, by_slab)))
    for part in by_slab:
        areas[: len(part)] += part
    steps = np.flatnonzero(areas)
    return steps / _STEPS_PER_MM, areas[steps]


def _nearest_mm(points: NDArray[np.float64], other: _Surface) -> NDArray[np.float64]:
    """Distance from each point to a surface: its slabs from near to far, each where it may be nearer than the last."""
    z = points[:, 0]
    distances = np.full(len(points), np.inf)
    for slab in sorted(other.slabs, key=lambda slab: abs(sum(other.ends_mm(slab)) / 2 - z.mean())):
        low, high = other.ends_mm(slab)
        is_near = np.maximum(low - z, z - high) < distances
        if is_near.any():
            tree = KDTree(other.elements(slab)[0], balanced_tree=False, compact_nodes=False)
            distances[is_near] = np.minimum(distances[is_near], tree.query(points[is_near])[0])
    return distances
