"""How far the surfaces of two masks lie apart, in mm.

Surfaces, their areas and both measures are those of the `surface-distance` package (Nikolov et al. 2018,
arXiv:1809.04430): a surface element sits at every corner of voxels where the 2 x 2 x 2 voxels around it are neither all
in nor all out of the mask, and has the area that marching cubes give that neighbourhood. Differs: the package's own
search for distances calls names that NumPy 2 and SciPy removed or will remove, keeps whole volumes of distances and
sorts Python tuples; here the nearest element is looked up in a k-d tree, which gives the same distances.
"""

from __future__ import annotations

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

_ROUNDING_MM = 1e-6  # a distance of exactly the tolerance is within it, whatever the spacing's last digit
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
    reference_points, reference_areas = _surface(reference, areas_mm2, spacing_zyx_mm)
    predicted_points, predicted_areas = _surface(prediction, areas_mm2, spacing_zyx_mm)
    to_prediction, reference_areas = _sorted_distances(reference_points, reference_areas, predicted_points)
    to_reference, predicted_areas = _sorted_distances(predicted_points, predicted_areas, reference_points)
    distances = {
        "distances_gt_to_pred": to_prediction,
        "surfel_areas_gt": reference_areas,
        "distances_pred_to_gt": to_reference,
        "surfel_areas_pred": predicted_areas,
    }
    return SurfaceAgreement(
        dice_2mm=float(surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM + _ROUNDING_MM)),
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


def _surface(
    mask: NDArray[np.bool_], areas_mm2: NDArray[np.float64], spacing_zyx_mm: tuple[float, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places (n, 3) in mm and areas (n,) in mm2 of a mask's surface elements."""
    box = bounding_box(mask)
    code: NDArray[Any] = np.pad(mask[box].view(np.uint8), 1)  # becomes a bit for each of the eight voxels at a corner
    code = code[:, :, :-1] << 1 | code[:, :, 1:]
    code = code[:, :-1] << 2 | code[:, 1:]
    code = code[:-1] << 4 | code[1:]
    places = np.flatnonzero((code != 0) & (code != _ALL_IN))
    corners = np.stack(np.unravel_index(places, code.shape), axis=1) + [part.start for part in box]
    return corners * np.asarray(spacing_zyx_mm), areas_mm2[code.ravel()[places]]


def _sorted_distances(
    points: NDArray[np.float64], areas: NDArray[np.float64], others: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance from each point to the nearest of the others, ascending, and the points' areas in that order."""
    tree = KDTree(others, balanced_tree=False, compact_nodes=False)
    distances = tree.query(points)[0]
    order = np.argsort(distances, kind="stable")
    return distances[order], areas[order]
