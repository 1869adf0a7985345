"""Whether lobes that were found in a scan can be lobes, and whether the scan shows all of the lungs."""

from __future__ import annotations

from algorithm.errors import InputError
from algorithm.images import Volume
from algorithm.lobes import LEFT, LOBES, RIGHT, lobe_volumes_ml

SMALLEST_LUNGS_ML = 300.0
SMALLEST_AERATED_ML = 100.0
AERATED_HU = (-1000.0, -500.0)
LUNG_ML = (300.0, 5500.0)
"""Of one lung; real ones at inspiration measured 1000 to 4000 ml, and less where they are diseased or out of breath."""
LOBE_SHARES = {1: (0.25, 0.85), 2: (0.15, 0.75), 3: (0.15, 0.70), 4: (0.15, 0.75), 5: (0.03, 0.40)}
"""Of its lung by label; real ones measured 0.40-0.69, 0.31-0.60, 0.27-0.55, 0.28-0.60 and 0.10-0.28."""
CONFIDENT = 0.8
CUT_ML_PER_MM = 0.2
"""Area of lung in an outermost slice, 200 mm2, from which on the scan cuts the lungs."""
NAMES = {lobe.label: lobe.name for lobe in LOBES}
_FACES = (("lower", "upper"), ("front", "back"), ("right", "left"))  # of a scan in LPS order, first and last index


class NoLungsError(InputError):
    """A scan in which no lungs were found."""


def require_lungs(labels: Volume, ct: Volume) -> None:
    """Refuse a scan in which no lungs were found.

    Args:
        labels: lobe labels.
        ct: HU on the same grid.

    Raises:
        NoLungsError: less than 300 ml of lobes, or less than 100 ml of them with air in it.
    """
    voxel_ml = ct.geometry.voxel_ml
    hu = ct.array[labels.array > 0]
    lung_ml = len(hu) * voxel_ml
    aerated_ml = float(((hu > AERATED_HU[0]) & (hu < AERATED_HU[1])).sum()) * voxel_ml
    if lung_ml < SMALLEST_LUNGS_ML or aerated_ml < SMALLEST_AERATED_ML:
        raise NoLungsError(
            f"no lungs were found: got {lung_ml:.0f} ml that look like lung, {aerated_ml:.0f} ml of them with air, "
            f"expected at least {SMALLEST_LUNGS_ML:.0f} and {SMALLEST_AERATED_ML:.0f} ml; give a chest CT, or a lobe "
            "mask with it"
        )


def what_is_implausible(labels: Volume, confidence: dict[int, float]) -> list[str]:
    """What speaks against lobes that were found.

    Args:
        labels: lobe labels, in LPS order (`algorithm.orientation.to_canonical`).
        confidence: expected Dice by label.

    Returns:
        A sentence for each lung or lobe of an implausible size or little confidence, and for each side on which the
        scan ends within the lungs.
    """
    ml = lobe_volumes_ml(labels)
    doubts = []
    for name, side in (("left", LEFT), ("right", RIGHT)):
        lung_ml = sum(ml[label] for label in side)
        if not LUNG_ML[0] <= lung_ml <= LUNG_ML[1]:
            expected = f"expected {LUNG_ML[0]:.0f} to {LUNG_ML[1]:.0f}"
            doubts.append(f"the {name} lung that was found has {lung_ml:.0f} ml, {expected}: check the lobes")
    for lobe in LOBES:
        share, (low, high) = _share_of_lung(ml, lobe.label), LOBE_SHARES[lobe.label]
        if share is not None and not low <= share <= high:
            expected = f"expected {100 * low:.0f} to {100 * high:.0f} %"
            doubts.append(
                f"the {lobe.name} that was found is {100 * share:.0f} % of its lung, {expected}: check the lobes"
            )
    for label, value in confidence.items():
        if value < CONFIDENT:
            doubts.append(f"the {NAMES[label]} was found with little confidence ({value:.2f}): check the lobes")
    if ends := _where_cut(labels):
        doubts.append(f"the scan ends within the lungs ({', '.join(ends)}): percentages are of what it shows")
    return doubts


def _share_of_lung(ml: dict[int, float], label: int) -> float | None:
    """Share of a lobe's lung that is this lobe; None where there is no lung."""
    side = LEFT if label in LEFT else RIGHT
    lung_ml = sum(ml[other] for other in side)
    return ml[label] / lung_ml if lung_ml > 0 else None


def _where_cut(labels: Volume) -> list[str]:
    """The sides of the scan at which there is lung in the outermost slice."""
    ends = []
    for axis, names in enumerate(_FACES):
        ml_per_mm = labels.geometry.voxel_ml / labels.geometry.spacing_zyx_mm[axis]
        for name, index in zip(names, (0, -1), strict=True):
            if (labels.array.take(index, axis=axis) > 0).sum() * ml_per_mm > CUT_ML_PER_MM:
                ends.append(name)
    return ends
